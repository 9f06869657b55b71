package child

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// plumbing is what connects the agent to the child.
type plumbing struct {
	control *os.File // our end of the socket pair
	stderr  *os.File // the child's lines
	crash   *os.File // the Go runtime's crash report

	child []*os.File // the child's ends, by descriptor number
}

// stderrSize is how many bytes of log the child can write before it must wait for the agent.
const stderrSize = 256 << 10

// newPlumbing makes the pipes. dir becomes the child's descriptor fdDir and stays the caller's.
func newPlumbing(dir *os.File) (*plumbing, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	p := &plumbing{child: []*os.File{null}}
	fail := func(err error) (*plumbing, error) {
		p.closeChild()
		p.close()
		return nil, err
	}
	var out, crash [2]int
	if err := unix.Pipe2(out[:], unix.O_CLOEXEC); err != nil {
		return fail(fmt.Errorf("pipe2: %w", err))
	}
	errW := os.NewFile(uintptr(out[1]), "stderr")
	p.stderr, p.child = pollable(out[0], "stderr"), append(p.child, errW, errW)
	// A smaller pipe than asked for will do as well.
	_, _ = unix.FcntlInt(uintptr(out[1]), unix.F_SETPIPE_SZ, stderrSize)

	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fail(fmt.Errorf("socketpair: %w", err))
	}
	p.control, p.child = pollable(pair[0], "control"), append(p.child, os.NewFile(uintptr(pair[1]), "control"))

	// With O_DIRECT each write takes a page of the pipe, and the pipe has one page: the second
	// write of a report waits until the first was read.
	if err := unix.Pipe2(crash[:], unix.O_CLOEXEC|unix.O_DIRECT); err != nil {
		return fail(fmt.Errorf("pipe2(O_DIRECT): %w", err))
	}
	p.crash, p.child = pollable(crash[0], "crash"), append(p.child, os.NewFile(uintptr(crash[1]), "crash"))
	if _, err := unix.FcntlInt(uintptr(crash[1]), unix.F_SETPIPE_SZ, os.Getpagesize()); err != nil {
		return fail(fmt.Errorf("fcntl(F_SETPIPE_SZ): %w", err))
	}
	p.child = append(p.child, dir)
	return p, nil
}

// pollable makes a file whose reads respect deadlines.
func pollable(fd int, name string) *os.File {
	_ = unix.SetNonblock(fd, true)
	return os.NewFile(uintptr(fd), name)
}

// closeChild closes the child's ends in this process, but not its folder.
func (p *plumbing) closeChild() {
	for n, f := range p.child {
		if n != fdDir {
			_ = f.Close()
		}
	}
}

// close closes our ends.
func (p *plumbing) close() {
	for _, f := range []*os.File{p.control, p.stderr, p.crash} {
		if f != nil {
			_ = f.Close()
		}
	}
}

// crash is what the crash pipe said.
type crash struct {
	text  string // at most maxTrace bytes
	heard []Heard
	err   error // why heard is missing
}

// watchCrash waits for a crash report. When its first bytes come, the child stands still in
// the next write with its sockets open: look is called before the rest is read.
func watchCrash(r io.Reader, look func() ([]Heard, error)) crash {
	var c crash
	var text bytes.Buffer
	buf := make([]byte, 4096)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			if text.Len() == 0 {
				c.heard, c.err = look()
			}
			text.Write(buf[:min(n, max(0, maxTrace-text.Len()))])
		}
		if err != nil {
			c.text = text.String()
			return c
		}
	}
}

// forward hands the child's log lines on and returns the first maxTrace bytes of the last lines
// that are none: what a runtime says before it dies.
func forward(r io.Reader, log *slog.Logger) string {
	var other []byte
	br := bufio.NewReaderSize(r, 64<<10)
	for {
		line, err := br.ReadSlice('\n')
		long := errors.Is(err, bufio.ErrBufferFull)
		if s := bytes.TrimRight(line, "\r\n"); len(s) > 0 {
			if rec, ok := parseLine(s); ok {
				if log.Enabled(context.Background(), rec.Level) {
					_ = log.Handler().Handle(context.Background(), rec)
				}
			} else if other = append(append(other, s...), '\n'); len(other) > 2*maxTrace {
				other = append(other[:0], other[len(other)-maxTrace:]...)
			}
		}
		if err != nil && !long {
			return string(other)
		}
	}
}

// parseLine reads a line of slog.JSONHandler; the order of its attributes is kept.
func parseLine(line []byte) (slog.Record, bool) {
	if line[0] != '{' {
		return slog.Record{}, false
	}
	var (
		rec = slog.NewRecord(time.Now(), slog.LevelInfo, "", 0)
		dec = json.NewDecoder(bytes.NewReader(line))
	)
	dec.UseNumber()
	if _, err := dec.Token(); err != nil {
		return slog.Record{}, false
	}
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return slog.Record{}, false
		}
		var value any
		if err := dec.Decode(&value); err != nil {
			return slog.Record{}, false
		}
		text, _ := value.(string)
		switch key {
		case slog.TimeKey:
			if t, err := time.Parse(time.RFC3339Nano, text); err == nil {
				rec.Time = t
			}
		case slog.LevelKey:
			if rec.Level.UnmarshalText([]byte(text)) != nil {
				return slog.Record{}, false
			}
		case slog.MessageKey:
			rec.Message = text
		default:
			if n, ok := value.(json.Number); ok {
				value = n.String()
				if i, err := n.Int64(); err == nil {
					value = i
				}
			}
			rec.AddAttrs(slog.Any(key.(string), value))
		}
	}
	return rec, rec.Message != ""
}

// crashTrace is a report with what stderr alone had: the runtime names a fatal error there
// before the report begins.
func crashTrace(spoken, text string) string {
	for line := range strings.Lines(spoken) {
		if strings.HasPrefix(line, "fatal error: ") && !strings.Contains(text, line) {
			return line + text
		}
	}
	return text
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}
