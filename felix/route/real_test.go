package route

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// netns is a network namespace of its own for one test.
type netns struct {
	t    testing.TB
	name string
}

var nsCount atomic.Int32

func newNetNS(t testing.TB) *netns {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("these tests make network namespaces: run them as root")
	}
	n := &netns{t, fmt.Sprintf("cwroute-%d-%d", os.Getpid(), nsCount.Add(1))}
	if out, err := exec.Command("ip", "netns", "add", n.name).CombinedOutput(); err != nil {
		t.Fatalf("ip netns add: %v: %s (iproute2 and CAP_SYS_ADMIN are needed)", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("ip", "netns", "del", n.name).CombinedOutput(); err != nil {
			t.Errorf("ip netns del %s: %v: %s", n.name, err, out)
		}
	})
	n.ip("link set lo up")
	return n
}

func (n *netns) path() string { return "/run/netns/" + n.name }

// try runs ip(8) inside and returns its output and error.
func (n *netns) try(args string) (string, error) {
	out, err := exec.Command("ip", append([]string{"-n", n.name}, strings.Fields(args)...)...).CombinedOutput()
	return string(out), err
}

func (n *netns) ip(args string) string {
	n.t.Helper()
	out, err := n.try(args)
	if err != nil {
		n.t.Fatalf("ip %s: %v: %s", args, err, out)
	}
	return out
}

// batch feeds lines to ip -batch.
func (n *netns) batch(lines string) {
	n.t.Helper()
	cmd := exec.Command("ip", "-n", n.name, "-batch", "-")
	cmd.Stdin = strings.NewReader(lines)
	if out, err := cmd.CombinedOutput(); err != nil {
		n.t.Fatalf("ip -batch: %v: %s", err, out)
	}
}

// eventually polls until check returns an empty string.
func eventually(t testing.TB, check func() string) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		what := check()
		if what == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func mustPrefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
