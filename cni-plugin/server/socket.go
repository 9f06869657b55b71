package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/causeway-net/causeway/cni-plugin/wire"
)

// maxSocketPath is what fits into sun_path with its final zero (unix(7)), less what the
// temporary name is longer by.
const maxSocketPath = 107 - len("/.new-0000000000")

// listen makes the socket with mode 0600 at no moment wider, whatever the umask: it is
// bound inside a folder that is ours alone and moved to its place. A socket that stands
// there is replaced only if nobody answers on it.
func listen(path string) (*net.UnixListener, error) {
	// Without a deadline: the kernel answers at once whether anybody listens, and a node so
	// busy that a second passes first would be told that the agent cannot start.
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		return nil, fmt.Errorf("%s: another agent answers on it", path)
	} else if !errors.Is(err, syscall.ENOENT) && !errors.Is(err, syscall.ECONNREFUSED) {
		return nil, fmt.Errorf("%s: is somebody using it? %w", path, err)
	}
	if st, err := os.Lstat(path); err == nil && st.Mode().Type() != os.ModeSocket {
		return nil, fmt.Errorf("%s: is there and is not a socket", path)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(filepath.Dir(path), ".new-") // mode 0700
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	fresh := filepath.Join(dir, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: fresh, Net: "unix"})
	if err != nil {
		return nil, err
	}
	// It stays when we end: a plugin that finds it refused waits for the next agent.
	l.SetUnlinkOnClose(false)
	if err = os.Chmod(fresh, 0o600); err == nil {
		err = os.Rename(fresh, path)
	}
	if err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// serve answers one connection. Whatever happens to it concerns no other one. Once ctx has
// ended an agent answers only what it has done: any failure may come from its end, and a plugin
// that gets no answer asks the next agent.
func (s *Server) serve(ctx, work context.Context, conn *net.UnixConn) {
	defer conn.Close()
	answer := wire.Response{Version: wire.Version}
	result, err := s.exchange(ctx, work, conn)
	if err != nil && ctx.Err() != nil {
		return
	}
	if err != nil {
		answer.Error = asWire(err)
	} else {
		answer.Result = result
	}
	frame, err := wire.Frame(answer)
	if err != nil {
		answer = wire.Response{Version: wire.Version, Error: &wire.Error{Code: wire.CodeInternal, Msg: "the answer cannot be sent", Details: err.Error()}}
		if frame, err = wire.Frame(answer); err != nil {
			s.Log.Error("answer failed", "error", err)
			return
		}
	}
	conn.SetWriteDeadline(time.Now().Add(readTimeout))
	if _, err := conn.Write(frame); err != nil {
		s.Log.Warn("answer not taken", "error", err)
	}
}

// exchange reads the request and works on it within work. What has not had its turn when
// ending is cancelled never gets one.
func (s *Server) exchange(ending, work context.Context, conn *net.UnixConn) ([]byte, error) {
	if err := checkPeer(conn); err != nil {
		s.Log.Warn("request refused", "error", err)
		return nil, &wire.Error{Code: wire.CodeInternal, Msg: "the agent refuses the request", Details: err.Error()}
	}
	conn.SetReadDeadline(time.Now().Add(readTimeout))
	var req wire.Request
	ns, err := receive(conn, &req)
	if ns != nil {
		defer ns.Close()
	}
	if err != nil {
		return nil, &wire.Error{Code: wire.CodeIO, Msg: "the agent cannot read the request", Details: err.Error()}
	}
	if err := wire.CheckVersion("agent", "plugin", req.Version); err != nil {
		return nil, &wire.Error{Code: wire.CodeInternal, Msg: err.Error()}
	}
	conn.SetReadDeadline(time.Time{})
	ctx, cancel := context.WithTimeout(work, s.Timeout)
	defer cancel()
	// The plugin says no more: whatever the connection yields now is its end.
	go func() {
		conn.Read(make([]byte, 1))
		cancel()
	}()
	return s.guarded(ending, ctx, &req, ns)
}

// guarded turns a panic into an error of this one request.
func (s *Server) guarded(ending, ctx context.Context, req *wire.Request, ns *os.File) (result []byte, err error) {
	defer func() {
		if p := recover(); p != nil {
			s.Log.Error("panic", "command", req.Command, "container", req.ContainerID, "panic", p, "stack", string(debug.Stack()))
			result, err = nil, &wire.Error{Code: wire.CodeInternal, Msg: "the agent failed on this request", Details: fmt.Sprint(p)}
		}
	}()
	return s.handle(ending, ctx, req, ns)
}

// checkPeer refuses whoever is neither root nor the agent's own user (SO_PEERCRED, unix(7)).
func checkPeer(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); cerr != nil {
		return cerr
	}
	if err != nil {
		return err
	}
	if cred.Uid != 0 && int(cred.Uid) != os.Geteuid() {
		return fmt.Errorf("process %d runs as user %d: only root may attach pods", cred.Pid, cred.Uid)
	}
	return nil
}

// receive reads a request and the descriptor that came with its first byte, if any.
func receive(conn *net.UnixConn, req *wire.Request) (ns *os.File, err error) {
	head := make([]byte, 4)
	oob := make([]byte, unix.CmsgSpace(4)) // room for one descriptor
	n, oobn, flags, _, err := conn.ReadMsgUnix(head, oob)
	if err != nil {
		return nil, err
	}
	if ns, err = descriptor(oob[:oobn]); err != nil {
		return nil, err
	}
	if flags&unix.MSG_CTRUNC != 0 {
		return ns, errors.New("more than one descriptor came with it")
	}
	err = wire.ReadFrame(io.MultiReader(bytes.NewReader(head[:n]), conn), req)
	return ns, err
}

// descriptor returns the one descriptor of a control message, or nil without a message. It
// closes every descriptor that it does not return.
func descriptor(oob []byte) (*os.File, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var fds []int
	for _, m := range messages {
		got, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue // credentials, say
		}
		fds = append(fds, got...)
	}
	switch len(fds) {
	case 0:
		return nil, nil
	case 1:
		return os.NewFile(uintptr(fds[0]), "CNI_NETNS"), nil
	}
	for _, fd := range fds {
		unix.Close(fd)
	}
	return nil, fmt.Errorf("%d descriptors came with it, want one", len(fds))
}
