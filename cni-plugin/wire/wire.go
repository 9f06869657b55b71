// Package wire is the protocol between the CNI plugin and the agent: one request and one
// response per connection on a unix stream socket.
//
// Each of the two is a frame: four bytes of length, big endian, and so many bytes of JSON.
// The pod's network namespace travels as an open descriptor (SCM_RIGHTS, unix(7)) with the
// first byte of the request; a request without one has no control message. A connection that
// the agent closes without a response means that it ended before the request was done: what it
// had begun is taken back, by it or by the next one, to whom the request may be sent again. The
// plugin links this package, so it imports little of the standard library and nothing else.
package wire

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// Version is the version of this protocol. Whoever reads another one says so.
const Version = 1

const (
	// DefaultSocket is where the agent listens unless the network configuration's
	// "socket" key says otherwise.
	DefaultSocket = "/run/causeway/cni.sock"
	// MaxFrame bounds a frame's JSON, in bytes. The largest request is a GC, which
	// lists every attachment of the node at about 100 bytes each.
	MaxFrame = 4 << 20
	// Away is how long a ready agent may be away (an upgrade) before the plugin stops
	// waiting for it and STATUS fails.
	Away = 60 * time.Second
	// RefreshReady is how often the agent touches its ready file while it is ready; the
	// plugin takes an agent as away since the file's modification time.
	RefreshReady = 2 * time.Second
	// RequestTimeout bounds the agent's work on one request, and AnswerTimeout the
	// plugin's wait for the answer, which must be the longer one.
	RequestTimeout = 60 * time.Second
	AnswerTimeout  = 75 * time.Second
)

// SpecVersions are the versions of the CNI specification that the plugin speaks.
var SpecVersions = []string{"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"}

// ReadyFile is the file that tells the plugin whether an agent that does not answer was
// ready a moment ago: it stands beside the socket, "cni.sock" having "cni.ready".
//
// The agent sets its modification time every RefreshReady while it is ready and removes it
// when it is not; it stays when the agent ends. It lies on a tmpfs and so is gone at boot.
func ReadyFile(socket string) string { return strings.TrimSuffix(socket, ".sock") + ".ready" }

// Request is what the runtime gave to the plugin.
type Request struct {
	Version     int    `json:"version"`
	Command     string `json:"command"`               // CNI_COMMAND
	ContainerID string `json:"containerID,omitempty"` // CNI_CONTAINERID
	NetNS       string `json:"netns,omitempty"`       // CNI_NETNS: the path, for the result's "sandbox"
	IfName      string `json:"ifName,omitempty"`      // CNI_IFNAME
	Args        string `json:"args,omitempty"`        // CNI_ARGS
	Path        string `json:"path,omitempty"`        // CNI_PATH
	Stdin       []byte `json:"stdin,omitempty"`       // the network configuration
}

// Response is the agent's answer. Error is set when the command failed; otherwise Result is
// what the plugin prints, which may be nothing.
type Response struct {
	Version int             `json:"version"`
	Result  json.RawMessage `json:"result,omitempty"`
	Error   *Error          `json:"error,omitempty"`
}

// Error is a CNI error (CNI spec 1.1.0, section 5, "Error").
type Error struct {
	CNIVersion string `json:"cniVersion,omitempty"`
	Code       uint   `json:"code"`
	Msg        string `json:"msg"`
	Details    string `json:"details,omitempty"`
}

func (e *Error) Error() string {
	if e.Details == "" {
		return e.Msg
	}
	return e.Msg + ": " + e.Details
}

// The CNI specification's error codes in use.
const (
	CodeIncompatibleVersion uint = 1
	CodeUnknownContainer    uint = 3
	CodeInvalidEnvironment  uint = 4
	CodeIO                  uint = 5
	CodeDecoding            uint = 6
	CodeInvalidConfig       uint = 7
	CodeInvalidNetNS        uint = 8
	CodeTryAgain            uint = 11
	CodeNotAvailable        uint = 50
	CodeLimited             uint = 51
	CodeInternal            uint = 999
)

// ErrTooLong is returned for a frame of more than MaxFrame bytes.
var ErrTooLong = errors.New("frame is too long")

// Frame returns v as a frame.
func Frame(v any) ([]byte, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	if len(body) > MaxFrame {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrTooLong, len(body), MaxFrame)
	}
	return append(binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(body)), uint32(len(body))), body...), nil
}

// ReadFrame reads one frame into v. It returns io.EOF when the stream ends before the
// frame's first byte and io.ErrUnexpectedEOF when it ends within the frame. Memory grows
// with what arrives, not with what the length claims.
func ReadFrame(r io.Reader, v any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > MaxFrame {
		return fmt.Errorf("%w: %d bytes, at most %d", ErrTooLong, n, MaxFrame)
	}
	body, err := io.ReadAll(io.LimitReader(r, int64(n)))
	if err != nil {
		return err
	}
	if len(body) < int(n) {
		return io.ErrUnexpectedEOF
	}
	return json.Unmarshal(body, v)
}

// CheckVersion says clearly that the two ends come from different releases; self and peer
// name them.
func CheckVersion(self, peer string, version int) error {
	if version == Version {
		return nil
	}
	return fmt.Errorf("the %s speaks version %d of the plugin protocol and the %s version %d: install both from one release",
		peer, version, self, Version)
}
