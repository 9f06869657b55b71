// Package client is the CNI plugin's half: it hands the runtime's request and the pod's
// network namespace to the agent and prints what the agent answers. It decides nothing but
// what to say while no agent answers.
//
// The executable starts once for every pod, so the package uses system calls where package
// net would cost start-up time.
package client

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/causeway-net/causeway/cni-plugin/wire"
)

// Config is the plugin's surroundings. All fields are required.
type Config struct {
	Getenv         func(string) string
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	About          string // printed to Stderr when there is no CNI_COMMAND
}

// retry is how long the plugin rests between two attempts to reach an agent that is away.
const retry = 20 * time.Millisecond

// conf is what the plugin itself reads of the network configuration.
type conf struct {
	CNIVersion string `json:"cniVersion"`
	// Socket is where the agent listens; empty means wire.DefaultSocket.
	Socket string `json:"socket"`
}

// Run handles one execution of the plugin and returns its exit code: 0, or 1 when it
// printed a CNI error to Stdout.
func Run(c Config) int {
	command := c.Getenv("CNI_COMMAND")
	if command == "" {
		fmt.Fprintf(c.Stderr, "%s\nCNI specification versions: %s\n", c.About, strings.Join(wire.SpecVersions, ", "))
		return 0
	}
	var cf conf
	code := 0
	out, err := c.run(command, &cf)
	if err != nil {
		code = 1
		var e *wire.Error
		if !errors.As(err, &e) {
			e = &wire.Error{Code: wire.CodeInternal, Msg: err.Error()}
		}
		if e.CNIVersion == "" {
			e.CNIVersion = cf.CNIVersion
		}
		if out, err = json.Marshal(e); err != nil {
			fmt.Fprintln(c.Stderr, err)
		}
	}
	if len(out) == 0 {
		return code
	}
	if _, err := c.Stdout.Write(append(out, '\n')); err != nil {
		fmt.Fprintln(c.Stderr, "writing the answer:", err)
		return 1
	}
	return code
}

// run returns what to print; an error is printed as a CNI error instead.
func (c Config) run(command string, cf *conf) ([]byte, error) {
	if !slices.Contains([]string{"ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"}, command) {
		return nil, &wire.Error{Code: wire.CodeInvalidEnvironment, Msg: fmt.Sprintf("CNI_COMMAND %q: want ADD, DEL, CHECK, GC, STATUS or VERSION", command)}
	}
	stdin, err := io.ReadAll(io.LimitReader(c.Stdin, wire.MaxFrame+1))
	if err != nil {
		return nil, &wire.Error{Code: wire.CodeIO, Msg: "reading the network configuration from stdin", Details: err.Error()}
	}
	if len(stdin) > wire.MaxFrame {
		return nil, &wire.Error{Code: wire.CodeInvalidConfig, Msg: fmt.Sprintf("network configuration on stdin has more than %d bytes", wire.MaxFrame)}
	}
	if command == "VERSION" {
		return versions(stdin)
	}
	if err := json.Unmarshal(stdin, cf); err != nil {
		return nil, &wire.Error{Code: wire.CodeDecoding, Msg: "network configuration on stdin is not a JSON object", Details: err.Error()}
	}
	socket := cf.Socket
	if socket == "" {
		socket = wire.DefaultSocket
	}
	if !filepath.IsAbs(socket) || len(socket) >= len(syscall.RawSockaddrUnix{}.Path) {
		return nil, &wire.Error{Code: wire.CodeInvalidConfig, Msg: fmt.Sprintf("network configuration: socket %q: want an absolute path of at most %d bytes", socket, len(syscall.RawSockaddrUnix{}.Path)-1)}
	}
	frame, err := wire.Frame(wire.Request{
		Version: wire.Version, Command: command, Stdin: stdin,
		ContainerID: c.Getenv("CNI_CONTAINERID"), NetNS: c.Getenv("CNI_NETNS"), IfName: c.Getenv("CNI_IFNAME"),
		Args: c.Getenv("CNI_ARGS"), Path: c.Getenv("CNI_PATH"),
	})
	if err != nil {
		return nil, &wire.Error{Code: wire.CodeInvalidConfig, Msg: "network configuration", Details: err.Error()}
	}
	ns, err := openNetNS(command, c.Getenv("CNI_NETNS"))
	if err != nil {
		return nil, err
	}
	if ns >= 0 {
		defer syscall.Close(ns)
	}
	return ask(command, socket, frame, ns)
}

// versions answers VERSION, which needs no agent (CNI spec 1.1.0, section 2, "VERSION").
// The answer is in the version that was asked in, where that is one we speak.
func versions(stdin []byte) ([]byte, error) {
	var v struct {
		CNIVersion        string   `json:"cniVersion"`
		SupportedVersions []string `json:"supportedVersions"`
	}
	if len(strings.TrimSpace(string(stdin))) > 0 {
		if err := json.Unmarshal(stdin, &v); err != nil {
			return nil, &wire.Error{Code: wire.CodeDecoding, Msg: "stdin of VERSION is not a JSON object", Details: err.Error()}
		}
	}
	v.SupportedVersions = wire.SpecVersions
	if !slices.Contains(wire.SpecVersions, v.CNIVersion) {
		v.CNIVersion = wire.SpecVersions[len(wire.SpecVersions)-1]
	}
	return json.Marshal(v)
}

// openNetNS opens the pod's network namespace, or returns -1 where it is not given or gone
// and the command can do without.
func openNetNS(command, path string) (int, error) {
	needed := command == "ADD" || command == "CHECK"
	if path == "" {
		if needed {
			return -1, &wire.Error{Code: wire.CodeInvalidEnvironment, Msg: "CNI_NETNS is not set: " + command + " needs the path of the container's network namespace"}
		}
		return -1, nil
	}
	fd, err := again(func() (int, error) {
		return syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC|syscall.O_NONBLOCK, 0)
	})
	switch {
	case err == nil:
		return fd, nil
	case needed:
		return -1, &wire.Error{Code: wire.CodeInvalidNetNS, Msg: fmt.Sprintf("CNI_NETNS %q cannot be opened", path), Details: err.Error()}
	}
	return -1, nil
}

// errAway means that the request got no answer because nobody serves the socket, or not
// any more; it can be sent again, since every command is idempotent.
type errAway struct{ why string }

func (e errAway) Error() string { return e.why }

// ask brings the request to the agent. While an agent that was ready is away it waits; at
// most wire.Away since it first found none, whatever the ready file says, so that an agent that
// a request brings down is not asked for ever.
func ask(command, socket string, frame []byte, ns int) ([]byte, error) {
	ready := wire.ReadyFile(socket)
	var since time.Time
	for ; ; time.Sleep(retry) {
		out, err := exchange(socket, frame, ns)
		var away errAway
		if !errors.As(err, &away) {
			return out, err
		}
		now := time.Now()
		if since.IsZero() {
			since = now
		}
		switch fresh := now.Sub(since) < wire.Away && wire.WasReady(ready, now); {
		case fresh && command == "STATUS":
			return nil, nil
		case fresh:
			continue
		case command == "STATUS":
			return nil, &wire.Error{Code: wire.CodeNotAvailable, Msg: "the Causeway agent does not run on this node", Details: socket + ": " + away.why}
		}
		return nil, &wire.Error{Code: wire.CodeTryAgain, Msg: "the Causeway agent does not run on this node", Details: socket + ": " + away.why}
	}
}
