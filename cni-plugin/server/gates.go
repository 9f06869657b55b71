package server

import (
	"context"
	"sync"
)

// gates lets one through at a time for each name.
type gates struct {
	mu sync.Mutex
	m  map[string]*gate
}

type gate struct {
	token chan struct{} // holds one value while somebody is through
	users int           // through or waiting; guarded by gates.mu
}

// enter waits for its turn and returns what lets the next one in.
func (g *gates) enter(ctx context.Context, name string) (leave func(), err error) {
	g.mu.Lock()
	if g.m == nil {
		g.m = make(map[string]*gate)
	}
	e := g.m[name]
	if e == nil {
		e = &gate{token: make(chan struct{}, 1)}
		g.m[name] = e
	}
	e.users++
	g.mu.Unlock()
	unuse := func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if e.users--; e.users == 0 {
			delete(g.m, name)
		}
	}
	select {
	case e.token <- struct{}{}:
		return func() { <-e.token; unuse() }, nil
	case <-ctx.Done():
		unuse()
		return nil, ctx.Err()
	}
}
