package child

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// The descriptors that the child finds open.
const (
	fdControl = 3 // socket pair: Handover, "stop" to the child; "ready" from it
	fdCrash   = 4 // pipe for the Go runtime's crash report
	fdDir     = 5 // the child's own directory
)

// SocketName is the name of the gRPC socket in the child's directory.
const SocketName = "gobgp.sock"

// TokenKey is the gRPC metadata key of the agent's token.
const TokenKey = "causeway-token"

// Words on the control socket, each a line.
const (
	wordReady = "ready"
	wordStop  = "stop"
)

// Handover is the first line on the control socket: all that the child is told. It is neither
// in its arguments nor in its environment, where others could read it.
type Handover struct {
	Token       string     // what a caller must show to write
	AllowWrites bool       // anyone who reaches the socket may write
	TCPAddr     string     // additional gRPC listener on loopback; empty: none
	LogLevel    slog.Level // of the lines on stderr
	Memory      Memory
}

// ErrOrphaned says that the agent is gone.
var ErrOrphaned = errors.New("the agent is gone")

// Inheritance is what a child process got from its parent.
type Inheritance struct {
	Handover
	Crash *os.File // crash reports go here (debug.SetCrashOutput)
	Dir   *os.File // the only place where it may create something: its socket

	control *os.File
	lines   *bufio.Reader
}

// Inherit reads what the agent handed over. It fails in a process that no agent started.
func Inherit() (*Inheritance, error) {
	if t, err := unix.GetsockoptInt(fdControl, unix.SOL_SOCKET, unix.SO_DOMAIN); err != nil || t != unix.AF_UNIX {
		return nil, fmt.Errorf("descriptor %d is no unix socket: the speaker is started by causeway agent, not by hand", fdControl)
	}
	in := &Inheritance{
		control: os.NewFile(fdControl, "control"),
		Crash:   os.NewFile(fdCrash, "crash"),
		Dir:     os.NewFile(fdDir, "dir"),
	}
	for _, fd := range []int{fdControl, fdCrash, fdDir} {
		unix.CloseOnExec(fd)
	}
	in.lines = bufio.NewReader(in.control)
	line, err := in.lines.ReadBytes('\n')
	if err != nil {
		return nil, fmt.Errorf("handover: %w", ErrOrphaned)
	}
	if err := json.Unmarshal(line, &in.Handover); err != nil {
		return nil, fmt.Errorf("handover: %w", err)
	}
	if in.Token == "" {
		return nil, errors.New("handover: Token: empty")
	}
	return in, nil
}

// Ready tells the agent that the socket answers.
func (in *Inheritance) Ready() error {
	_, err := in.control.WriteString(wordReady + "\n")
	return err
}

// AwaitStop blocks until the agent asks for an orderly end, and returns nil, or is gone, and
// returns ErrOrphaned.
func (in *Inheritance) AwaitStop() error {
	for {
		line, err := in.lines.ReadString('\n')
		if err != nil {
			return ErrOrphaned
		}
		if line == wordStop+"\n" {
			return nil
		}
	}
}

// CheckTCPAddr says what is wrong with the address of the additional gRPC listener: it must be
// a literal loopback address with a port.
func CheckTCPAddr(s string) error {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return fmt.Errorf("gRPC TCP address %q: want a loopback address and a port, as 127.0.0.1:50051", s)
	}
	ip := net.ParseIP(host)
	if ip == nil || !ip.IsLoopback() {
		return fmt.Errorf("gRPC TCP address %q: %q is no loopback address; want 127.0.0.1 or ::1, since every caller there can read the speaker", s, host)
	}
	if n, err := net.LookupPort("tcp", port); err != nil || n == 0 || port[0] < '0' || port[0] > '9' {
		return fmt.Errorf("gRPC TCP address %q: port %q: want a number from 1 to 65535", s, port)
	}
	return nil
}
