package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/causeway-net/causeway/cni-plugin/wire"
)

// pulse asks the parts of the agent, each on its own, whether they still answer. It knows
// of no server and no peer: an agent that is started anew for what others lack helps nobody.
type pulse struct {
	every, bound time.Duration
	parts        []part

	mu    sync.Mutex
	since map[string]time.Time // the beginning of questions without an answer
	err   map[string]error     // answers that say that the part is broken
}

// part is one that can be asked. ask returns when it answered.
type part struct {
	name string
	ask  func() error
}

func newPulse(parts []part) *pulse {
	return &pulse{every: 5 * time.Second, bound: 30 * time.Second, parts: parts, since: map[string]time.Time{}, err: map[string]error{}}
}

func (p *pulse) String() string { return "pulse" }

// Run asks until ctx is cancelled. A part that does not answer keeps its own goroutine
// alone, which is not waited for.
func (p *pulse) Run(ctx context.Context) error {
	for _, x := range p.parts {
		go p.follow(ctx, x)
	}
	<-ctx.Done()
	return nil
}

func (p *pulse) follow(ctx context.Context, x part) {
	for {
		p.mu.Lock()
		p.since[x.name] = time.Now()
		p.mu.Unlock()
		err := x.ask()
		p.mu.Lock()
		delete(p.since, x.name)
		p.err[x.name] = err
		p.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-time.After(p.every):
		}
	}
}

// live names the parts that have not answered for longer than bound.
func (p *pulse) live() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for _, x := range p.parts {
		if t, asked := p.since[x.name]; asked && time.Since(t) > p.bound {
			errs = append(errs, fmt.Errorf("%s: no answer for %s", x.name, time.Since(t).Round(time.Second)))
		} else if err := p.err[x.name]; err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", x.name, err))
		}
	}
	return errors.Join(errs...)
}

// askCNI sends what the plugin sends. A socket that is not there yet is no illness: the
// agent is starting.
func askCNI(socket string) error {
	conn, err := net.DialTimeout("unix", socket, 10*time.Second)
	if err != nil {
		return nil
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	frame, err := wire.Frame(wire.Request{Version: wire.Version, Command: "VERSION"})
	if err != nil {
		return err
	}
	if _, err := conn.Write(frame); err != nil {
		return err
	}
	var answer wire.Response
	if err := wire.ReadFrame(conn, &answer); err != nil {
		return fmt.Errorf("no answer on %s: %w", socket, err)
	}
	return nil
}
