package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/causeway-net/causeway/test/lab/traffic"
)

func upShipped(t *testing.T, name string) *Lab {
	t.Helper()
	l, err := Up(t.Context(), topologies(t)[name], Options{Name: uniqueName(t), Ephemeral: true, NoAgents: true, StateRoot: stateRoot(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Down(context.Background()); err != nil {
			t.Error(err)
		}
		assertNothingLeft(t, l.opts.StateRoot, l.Name)
	})
	return l
}

// eventually repeats a check until it returns "" and shows its last complaint otherwise.
func eventually(t *testing.T, limit time.Duration, check func() string) {
	t.Helper()
	for deadline := time.Now().Add(limit); ; time.Sleep(50 * time.Millisecond) {
		complaint := check()
		if complaint == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", limit, complaint)
		}
	}
}

// established lists the FRR router's peers with a session, both families.
func established(t *testing.T, n *Node) map[string]bool {
	t.Helper()
	out, err := n.Exec(t.Context(), "vtysh", "-c", "show bgp summary json")
	if err != nil {
		t.Fatal(err)
	}
	var families map[string]struct {
		Peers map[string]struct {
			State string `json:"state"`
		} `json:"peers"`
	}
	if err := json.Unmarshal([]byte(out), &families); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	up := map[string]bool{}
	for _, f := range families {
		for peer, p := range f.Peers {
			if p.State == "Established" {
				up[peer] = true
			}
		}
	}
	return up
}

// TestTwoRacksFabric: the routers' half of the fabric, with nobody in the nodes' seats.
func TestTwoRacksFabric(t *testing.T) {
	t.Parallel()
	l := upShipped(t, "two-racks")
	spine := l.Node("spine")
	eventually(t, 30*time.Second, func() string {
		if up := established(t, spine); len(up) != 8 {
			return fmt.Sprintf("the spine's sessions: %v", up)
		}
		return ""
	})
	for _, prefix := range []string{"10.0.1.11/32", "fd00:0:2::14/128"} {
		eventually(t, 10*time.Second, func() string {
			out, err := spine.Exec(t.Context(), "vtysh", "-c", "show bgp "+map[bool]string{true: "ipv6", false: "ipv4"}[strings.Contains(prefix, ":")]+" unicast "+prefix)
			if err != nil || strings.Count(out, "multipath") < 2 {
				return fmt.Sprintf("%s has not two paths at the spine: %s %v", prefix, out, err)
			}
			return ""
		})
	}
	// A path in use is left at once when its link goes, and the daemons live on.
	if err := l.Node("tor1a").LinkDown("eth1"); err != nil {
		t.Fatal(err)
	}
	eventually(t, 2*time.Second, func() string {
		out, err := spine.Exec(t.Context(), "ip", "route", "show", "10.0.1.11")
		if err != nil || strings.Contains(out, "10.255.11.1") || !strings.Contains(out, "10.255.12.1") {
			return fmt.Sprintf("the spine's route to n1: %s %v", out, err)
		}
		return ""
	})
}

// TestRestartOfToR: all daemons killed and started again; the kernel's routes stay and
// sessions come back.
func TestRestartOfToR(t *testing.T) {
	t.Parallel()
	l := upShipped(t, "two-racks")
	tor, spine := l.Node("tor1a"), l.Node("spine")
	sessions := func() string {
		if up := established(t, spine); len(up) != 8 {
			return fmt.Sprintf("the spine's sessions: %v", up)
		}
		if out, _ := tor.Exec(t.Context(), "ip", "route", "show", "10.0.2.13"); !strings.Contains(out, "10.255.11.0") {
			return "tor1a has no route to n3: " + out
		}
		if out, _ := l.Node("tor2a").Exec(t.Context(), "ip", "route", "show", "10.0.1.1"); !strings.Contains(out, "10.255.21.0") {
			return "tor2a has no route to tor1a: " + out
		}
		return ""
	}
	eventually(t, 30*time.Second, sessions)
	// From rack 2 over the spine to tor1a's loopback, which tor1a must go on answering from
	// its own table.
	s, err := traffic.Start(t.Context(), traffic.Config{From: l.Node("tor2a"), To: tor, Target: tor.mustAddr(t, "lo"), PPS: 500, Flows: 5})
	if err != nil {
		t.Fatal(err)
	}
	if err := tor.Kill(t.Context(), 9); err != nil {
		t.Fatal(err)
	}
	if out, _ := tor.Exec(t.Context(), "ip", "route", "show", "10.0.2.13"); !strings.Contains(out, "10.255.11.0") {
		t.Errorf("the kernel's routes went with the daemons: %q", out)
	}
	if err := tor.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, sessions)
	if r := s.Stop(); r.Lost > 0 || r.Sent < 100 {
		t.Errorf("traffic while the ToR restarted: %s", r)
	}
}

func (n *Node) mustAddr(t *testing.T, ifname string) netip.Addr {
	t.Helper()
	m, err := n.Addresses()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range m[ifname] {
		if p.Addr().Is4() {
			return p.Addr()
		}
	}
	t.Fatalf("%s has no IPv4 address on %s: %v", n, ifname, m)
	return netip.Addr{}
}

// TestDualStackFabric: IPv4 crosses the transit that has IPv6 only (RFC 8950).
func TestDualStackFabric(t *testing.T) {
	t.Parallel()
	l := upShipped(t, "dual-stack")
	tor1, tor2 := l.Node("tor1"), l.Node("tor2")
	eventually(t, 30*time.Second, func() string {
		out, _ := tor1.Exec(t.Context(), "ip", "route", "show", "10.0.0.2")
		if !strings.Contains(out, "via inet6") {
			return "tor1's route to tor2's loopback: " + out
		}
		return ""
	})
	m := traffic.PingAll(t.Context(), []traffic.Endpoint{{Space: tor1}}, []traffic.Endpoint{{Space: tor2, Addrs: []netip.Addr{tor2.mustAddr(t, "lo")}}}, traffic.PingConfig{Timeout: 5 * time.Second})
	if len(m) != 1 || len(m.Failed()) > 0 {
		t.Errorf("ping over the transit:\n%s", m)
	}
}

// TestBIRDTakesItsConfiguration: the ToR with MD5 and TTL security runs and waits for both
// nodes, in both families.
func TestBIRDTakesItsConfiguration(t *testing.T) {
	t.Parallel()
	l := upShipped(t, "bird-tor-md5")
	out, err := l.Node("tor").Exec(t.Context(), "birdc", "show", "protocols")
	if err != nil || strings.Count(out, "BGP ") != 4 || strings.Count(out, "kernel") != 2 {
		t.Errorf("%s %v", out, err)
	}
}

// TestSwitchedTopologies: every node reaches every other over the switch.
func TestSwitchedTopologies(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"one-subnet", "route-reflectors"} {
		l := upShipped(t, name)
		var all []traffic.Endpoint
		for _, n := range l.Nodes() {
			e := traffic.Endpoint{Space: n}
			addrs, err := n.Addresses()
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range addrs["eth1"] {
				e.Addrs = append(e.Addrs, p.Addr())
			}
			if n.Spec.Role == RoleCauseway {
				all = append(all, e)
			}
		}
		m := traffic.PingAll(t.Context(), all, all, traffic.PingConfig{Timeout: 5 * time.Second})
		if want := 2 * len(all) * (len(all) - 1); len(m) != want || len(m.Failed()) > 0 {
			t.Errorf("%s: %d pings, want %d; failed:\n%s", name, len(m), want, m.Failed())
		}
	}
}
