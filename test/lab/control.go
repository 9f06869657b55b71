package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"time"
)

// request is what the lab asks of a node's init over its control socket, one JSON object
// per connection.
type request struct {
	Op     string   `json:"op"` // "start", "signal", "list", "wait", "forget"
	Name   string   `json:"name,omitempty"`
	Argv   []string `json:"argv,omitempty"`
	Env    []string `json:"env,omitempty"`
	Signal int      `json:"signal,omitempty"`
	// NetNS gives the process a network namespace of its own with this name below
	// the node's /run/netns, and the process lives as its holder; "forget" undoes it.
	NetNS string `json:"netns,omitempty"`
}

type reply struct {
	Error     string          `json:"error,omitempty"`
	Processes []processStatus `json:"processes,omitempty"`
}

// processStatus is what init knows of a process it started.
type processStatus struct {
	Name string `json:"name"`
	// PID in the node's pid namespace.
	PID     int       `json:"pid"`
	Running bool      `json:"running"`
	Exit    string    `json:"exit,omitempty"` // "exit status 1", "signal: killed"
	Started time.Time `json:"started"`
	Ended   time.Time `json:"ended,omitzero"`
	Starts  int       `json:"starts"` // how often it was started
}

func controlPath(nodeDir string) string { return filepath.Join(nodeDir, "ctl") }

// ask sends one request to the init of the node in dir.
func ask(ctx context.Context, dir string, q request) (*reply, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", controlPath(dir))
	if err != nil {
		return nil, fmt.Errorf("init of the node: %w", err)
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := json.NewEncoder(c).Encode(q); err != nil {
		return nil, fmt.Errorf("init of the node: %w", err)
	}
	var r reply
	if err := json.NewDecoder(c).Decode(&r); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("init of the node: %w", err)
	}
	if r.Error != "" {
		return nil, errors.New(r.Error)
	}
	return &r, nil
}
