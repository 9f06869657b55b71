package machine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"time"
)

// Daemon is a program that the machine's first process keeps running.
type Daemon struct {
	Name string   `json:"name"` // of its log, too
	Argv []string `json:"argv"` // Argv[0] is a path
	Env  []string `json:"env"`
}

// Status says what a daemon is doing.
type Status struct {
	Name    string    `json:"name"`
	Wanted  bool      `json:"wanted"` // false after Stop
	PID     int       `json:"pid"`    // in the machine's pid namespace; 0 when it does not run
	Exit    string    `json:"exit"`   // how it ended last: "exit status 1"
	Started time.Time `json:"started"`
	Starts  int       `json:"starts"`
}

// request is one question to a machine's first process, one JSON object a connection.
type request struct {
	Op     string `json:"op"` // "start", "stop", "kill", "list"
	Daemon Daemon `json:"daemon"`
}

type reply struct {
	Error   string   `json:"error,omitempty"`
	Daemons []Status `json:"daemons,omitempty"`
}

func controlPath(dir string) string { return filepath.Join(dir, "ctl") }

func (m *Machine) ask(ctx context.Context, q request) ([]Status, error) {
	fail := func(err error) error {
		return fmt.Errorf("machine %s: %s %s: %w", filepath.Base(m.dir), q.Op, q.Daemon.Name, err)
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", controlPath(m.dir))
	if err != nil {
		return nil, fail(err)
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := json.NewEncoder(c).Encode(q); err != nil {
		return nil, fail(err)
	}
	var r reply
	if err := json.NewDecoder(c).Decode(&r); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, fail(err)
	}
	if r.Error != "" {
		return nil, fail(errors.New(r.Error))
	}
	return r.Daemons, nil
}

// Keep starts a daemon and keeps it running: one that ends is started again after a
// second, as systemd would with Restart=always.
func (m *Machine) Keep(ctx context.Context, d Daemon) error {
	_, err := m.ask(ctx, request{Op: "start", Daemon: d})
	return err
}

// Stop ends a daemon with SIGTERM, after ten seconds with SIGKILL, and waits until it is
// gone; children of it live on. It stays down until Keep.
func (m *Machine) Stop(ctx context.Context, daemon string) error {
	_, err := m.ask(ctx, request{Op: "stop", Daemon: Daemon{Name: daemon}})
	return err
}

// Kill ends a daemon with SIGKILL; it is started again as any that ends.
func (m *Machine) Kill(ctx context.Context, daemon string) error {
	_, err := m.ask(ctx, request{Op: "kill", Daemon: Daemon{Name: daemon}})
	return err
}

// Restart stops a daemon and starts it as it was.
func (m *Machine) Restart(ctx context.Context, daemon string) error {
	if err := m.Stop(ctx, daemon); err != nil {
		return err
	}
	return m.Resume(ctx, daemon)
}

// Resume starts a daemon that was stopped, as it was.
func (m *Machine) Resume(ctx context.Context, daemon string) error {
	_, err := m.ask(ctx, request{Op: "start", Daemon: Daemon{Name: daemon}})
	return err
}

// Daemons says what the machine's daemons are doing, in the order of their first start.
func (m *Machine) Daemons(ctx context.Context) ([]Status, error) {
	return m.ask(ctx, request{Op: "list"})
}
