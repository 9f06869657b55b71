package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"testing"
	"time"

	"github.com/causeway-net/causeway/cni-plugin/internal/sandbox"
	"github.com/causeway-net/causeway/cni-plugin/wire"
)

// age makes the ready file look as if the agent had been away so long.
func (r *rig) age(d time.Duration) {
	r.t.Helper()
	when := time.Now().Add(-d)
	if err := os.Chtimes(wire.ReadyFile(r.socket), when, when); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) status() error {
	return r.cni.GetStatusNetworkList(context.Background(), r.list("1.1.0", ""))
}

// TestUpgrade: while an agent that was ready is away, and until the next one is ready,
// STATUS succeeds and ADD waits.
func TestUpgrade(t *testing.T) {
	r := newRig(t)
	l, rt := r.list("1.1.0", ""), runtime("c1", sandbox.Pod(t))
	never := func(why string) {
		t.Helper()
		if err := r.status(); code(err) != wire.CodeNotAvailable {
			t.Errorf("%s: STATUS: %v", why, err)
		}
		start := time.Now()
		if _, err := r.cni.AddNetworkList(context.Background(), l, rt); code(err) != wire.CodeTryAgain || time.Since(start) > 2*time.Second {
			t.Errorf("%s: ADD after %v: %v", why, time.Since(start), err)
		}
	}
	never("no agent ever")
	r.start()
	eventually(t, "the ready file is made", func() bool { return wire.WasReady(wire.ReadyFile(r.socket), time.Now()) })
	r.stop()
	if err := r.status(); err != nil {
		t.Errorf("STATUS while away: %v", err)
	}
	added := make(chan error, 1)
	go func() {
		_, err := r.cni.AddNetworkList(context.Background(), l, rt)
		added <- err
	}()
	waits := func(why string) {
		t.Helper()
		select {
		case err := <-added:
			t.Fatalf("%s: ADD did not wait: %v", why, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
	waits("while away")
	r.notReady(errors.New("starting"))
	r.start()
	waits("while starting")
	if err := r.status(); err != nil {
		t.Errorf("STATUS while starting: %v", err)
	}
	r.notReady(nil)
	if err := <-added; err != nil {
		t.Errorf("ADD: %v", err)
	}
	r.del(l, rt)
	r.stop()
	r.age(2 * wire.Away)
	never("away too long")
	r.age(-2 * wire.Away)
	never("away since the future")
}

// TestStartTakesTooLong: a new agent that does not become ready says so when the time that
// upgrades have is over.
func TestStartTakesTooLong(t *testing.T) {
	r := newRig(t)
	l, rt := r.list("1.1.0", ""), runtime("c1", sandbox.Pod(t))
	if err := wire.MarkReady(wire.ReadyFile(r.socket), time.Now()); err != nil {
		t.Fatal(err)
	}
	r.age(wire.Away - time.Second/2)
	r.notReady(errors.New("no pools yet"))
	r.start()
	_, err := r.cni.AddNetworkList(context.Background(), l, rt)
	if code(err) != wire.CodeTryAgain {
		t.Errorf("ADD: %v", err)
	}
	if err := r.status(); code(err) != wire.CodeNotAvailable || err.Error() == "" {
		t.Errorf("STATUS: %v", err)
	}
	// Pods can go all the same.
	r.del(l, rt)
}

// TestReadiness: STATUS follows Ready; ADD does not once the agent has been ready.
func TestReadiness(t *testing.T) {
	r := newRig(t)
	r.start()
	l, rt := r.list("1.1.0", ""), runtime("c1", sandbox.Pod(t))
	eventually(t, "the ready file is made", func() bool { return wire.WasReady(wire.ReadyFile(r.socket), time.Now()) })
	r.notReady(fmt.Errorf("no session is up: %w", ErrLimited))
	if err := r.status(); code(err) != wire.CodeLimited {
		t.Errorf("STATUS: %v", err)
	}
	r.notReady(errors.New("datastore is away"))
	if err := r.status(); code(err) != wire.CodeNotAvailable || err.Error() != "Causeway is not ready on this node; datastore is away" {
		t.Errorf("STATUS: %v", err)
	}
	r.add(l, rt)
	r.del(l, rt)
	eventually(t, "the ready file is removed", func() bool { return !wire.WasReady(wire.ReadyFile(r.socket), time.Now()) })
	r.notReady(nil)
	if err := r.status(); err != nil {
		t.Errorf("STATUS: %v", err)
	}
	eventually(t, "the ready file is made again", func() bool { return wire.WasReady(wire.ReadyFile(r.socket), time.Now()) })
}

// TestKilledMidRequest: the agent dies with the request in its hands; the plugin sends it
// to the next one.
func TestKilledMidRequest(t *testing.T) {
	r := newRig(t)
	l, rt := r.list("1.1.0", ""), runtime("c1", sandbox.Pod(t))
	dying, err := net.ListenUnix("unix", &net.UnixAddr{Name: r.socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dying.SetUnlinkOnClose(false)
	if err := wire.MarkReady(wire.ReadyFile(r.socket), time.Now()); err != nil {
		t.Fatal(err)
	}
	added := make(chan error, 1)
	go func() {
		_, err := r.cni.AddNetworkList(context.Background(), l, rt)
		added <- err
	}()
	conn, err := dying.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	var req wire.Request
	if ns, err := receive(conn, &req); err != nil || ns == nil {
		t.Fatal(err)
	} else {
		ns.Close()
	}
	dying.Close()
	conn.Close()
	r.start()
	if err := <-added; err != nil {
		t.Errorf("ADD: %v", err)
	}
	if err := r.check(l, rt); err != nil {
		t.Error(err)
	}
	r.del(l, rt)
	r.clean()
}
