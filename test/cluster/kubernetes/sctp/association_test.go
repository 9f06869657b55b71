package main

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"testing"
	"time"
)

// TestMain runs the tests in a network namespace of their own.
func TestMain(m *testing.M) {
	if os.Getenv("IN_NAMESPACE") == "" {
		cmd := exec.Command("unshare", append([]string{"-n", "sh", "-c", `ip link set lo up && exec "$@"`, "sh"}, os.Args...)...)
		cmd.Env, cmd.Stdout, cmd.Stderr = append(os.Environ(), "IN_NAMESPACE=1"), os.Stdout, os.Stderr
		if cmd.Run() != nil {
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// TestAssociation: a served port answers, in both families; one that is not served does
// not, and that is said as a deadline's end.
func TestAssociation(t *testing.T) {
	done := make(chan error, 1)
	ctx, stop := context.WithCancel(t.Context())
	go func() { done <- serve(ctx, 80) }()
	for _, to := range []string{"127.0.0.1:80", "[::1]:80"} {
		// INIT is sent again until the server listens.
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		if err := associate(ctx, netip.MustParseAddrPort(to)); err != nil {
			t.Errorf("%s: %v", to, err)
		}
		cancel()
	}
	silent, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := associate(silent, netip.MustParseAddrPort("127.0.0.1:81")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a port that nobody serves: %v", err)
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestParse: what a translation of ports without a new checksum leaves is refused.
func TestParse(t *testing.T) {
	b := packet{from: 1, to: 2, tag: 3, chunk: chunkInit, value: initValue(4)}.marshal()
	if p, ok := parse(b); !ok || p.from != 1 || p.to != 2 || p.tag != 3 || p.chunk != chunkInit || len(p.value) != 16 {
		t.Errorf("parsed %+v, %v", p, ok)
	}
	b[0]++
	if _, ok := parse(b); ok {
		t.Error("a wrong checksum is taken")
	}
	if _, ok := parse(b[:10]); ok {
		t.Error("half a packet is taken")
	}
}
