package client

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"syscall"
	"time"

	"github.com/causeway-net/causeway/cni-plugin/wire"
)

// exchange sends one request and reads its answer. It returns errAway when nobody listens
// or the listener ended before it answered, and a CNI error otherwise.
func exchange(socket string, frame []byte, ns int) ([]byte, error) {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, ioError("socket", err)
	}
	defer syscall.Close(fd)
	c := conn{fd: fd, deadline: time.Now().Add(wire.AnswerTimeout)}
	// The kernel's timeouts make a blocked call come back; the deadline decides.
	tick := syscall.Timeval{Sec: 1}
	for _, opt := range []int{syscall.SO_SNDTIMEO, syscall.SO_RCVTIMEO} {
		if err := syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, opt, &tick); err != nil {
			return nil, ioError("setsockopt", err)
		}
	}
	_, err = c.try(func() (int, error) { return 0, syscall.Connect(fd, &syscall.SockaddrUnix{Name: socket}) })
	switch {
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ECONNREFUSED):
		return nil, errAway{"connect: " + err.Error()}
	case err != nil:
		return nil, ioError("connect to "+socket, err)
	}
	var rights []byte
	if ns >= 0 {
		rights = syscall.UnixRights(ns)
	}
	for len(frame) > 0 {
		n, err := c.try(func() (int, error) { return syscall.SendmsgN(fd, frame, rights, nil, syscall.MSG_NOSIGNAL) })
		if errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
			break // what it said before it closed is still to be read
		}
		if err != nil {
			return nil, ioError("sending the request to "+socket, err)
		}
		frame, rights = frame[n:], nil
	}
	var answer wire.Response
	err = wire.ReadFrame(&c, &answer)
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		return nil, errAway{"the agent closed the connection before it answered"}
	case err != nil:
		return nil, ioError("reading the answer from "+socket, err)
	}
	// An agent of another version may refuse the request; its reason comes first.
	if answer.Error != nil {
		return nil, answer.Error
	}
	if err := wire.CheckVersion("plugin", "agent", answer.Version); err != nil {
		return nil, &wire.Error{Code: wire.CodeInternal, Msg: err.Error()}
	}
	var out bytes.Buffer
	if len(answer.Result) > 0 {
		if err := json.Indent(&out, answer.Result, "", "    "); err != nil {
			return nil, ioError("reading the answer from "+socket, err)
		}
	}
	return out.Bytes(), nil
}

// ioError is a CNI error of code 5; when time ran out it is "try again later".
func ioError(what string, err error) error {
	code := wire.CodeIO
	if errors.Is(err, errDeadline) {
		code = wire.CodeTryAgain
	}
	return &wire.Error{Code: code, Msg: what, Details: err.Error()}
}

var errDeadline = fmt.Errorf("the agent did not answer within %v", wire.AnswerTimeout)

// conn is a connected socket with a deadline over everything done on it.
type conn struct {
	fd       int
	deadline time.Time
}

// Read implements io.Reader.
func (c *conn) Read(b []byte) (int, error) {
	n, err := c.try(func() (int, error) { return syscall.Read(c.fd, b) })
	if n == 0 && err == nil && len(b) > 0 {
		return 0, io.EOF
	}
	return max(n, 0), err
}

// try calls f again for as long as it is interrupted or its timeout passes, up to the
// deadline. Calls on a socket with a timeout are not restarted by the kernel (signal(7)).
func (c *conn) try(f func() (int, error)) (int, error) {
	for {
		n, err := again(f)
		if !errors.Is(err, syscall.EAGAIN) {
			return n, err
		}
		if time.Now().After(c.deadline) {
			return n, errDeadline
		}
	}
}

// again calls f until it is not interrupted by a signal.
func again(f func() (int, error)) (int, error) {
	for {
		n, err := f()
		if err != syscall.EINTR {
			return n, err
		}
	}
}
