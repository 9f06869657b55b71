package onesubnet

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/causeway-net/causeway/internal/status"
	"github.com/causeway-net/causeway/test/lab"
	"github.com/causeway-net/causeway/test/lab/traffic"
	"github.com/causeway-net/causeway/test/topology/fabric"
	"github.com/causeway-net/causeway/test/topology/operator"
	"github.com/causeway-net/causeway/test/topology/scenario"
)

// fromPool is a network configuration that asks for an IPv4 address of a pool.
func fromPool(name string) []byte {
	return fmt.Appendf(nil, `{"cniVersion": "1.1.0", "name": "causeway", "plugins": [{"type": "causeway-cni",
		"capabilities": {"ips": true}, "args": {"cni": {"cni.projectcalico.org/ipv4pools": "[\"%s\"]"}}}]}`, name)
}

func pool(name, cidr string, blockSize int, more string) string {
	return fmt.Sprintf("apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: %s}\nspec:\n  cidr: %s\n  blockSize: %d\n%s", name, cidr, blockSize, more)
}

func poolIs(st status.Status, name string, disabled bool) error {
	for _, p := range st.Pools {
		if p.Name == name {
			if p.Disabled != disabled {
				return fmt.Errorf("pool %s: disabled is %t", name, p.Disabled)
			}
			return nil
		}
	}
	return fmt.Errorf("there is no pool %s: %v", name, st.Pools)
}

func deletePods(t *testing.T, ctx context.Context, pods ...*lab.Pod) {
	t.Helper()
	for _, p := range pods {
		if err := p.Node().DeletePod(ctx, p.Name); err != nil {
			t.Error(err)
		}
	}
}

// reachEachOther waits until a pod and all pods of the fabric reach each other.
func reachEachOther(t *testing.T, f *scenario.Fabric, p *lab.Pod) {
	t.Helper()
	one := []traffic.Endpoint{fabric.Endpoint(p)}
	scenario.Reach(t, 15*time.Second, one, f.Endpoints())
	scenario.Reach(t, 15*time.Second, f.Endpoints(), one)
}

// livePool adds a pool, uses it, disables it, and then all of IPv4.
func livePool(t *testing.T, f *scenario.Fabric) {
	ctx := scenario.Context(t, time.Minute)
	m, n1 := operator.ManifestsOf(f), f.Node("n1")
	edited := func(what, name string, disabled bool, write func()) {
		t.Helper()
		at := time.Now()
		write()
		operator.Await(t, 10*time.Second, n1, what, func(st status.Status) error { return poolIs(st, name, disabled) })
		t.Logf("%s: seen %s after the edit", what, time.Since(at).Round(time.Millisecond))
	}
	edited("a new pool", "second", false, func() { m.Write(t, "second.yaml", pool("second", "10.245.0.0/24", 28, "")) })
	old, err := n1.AddPod(ctx, "second-pool", lab.PodOptions{Netconf: fromPool("second")})
	if err != nil {
		t.Fatal(err)
	}
	if a := old.Address(false); !netip.MustParsePrefix("10.245.0.0/24").Contains(a) || !old.Address(true).IsValid() {
		t.Errorf("asked for the pool 10.245.0.0/24, got %v", old.Addresses)
	}
	reachEachOther(t, f, old)

	edited("the new pool is disabled", "second", true, func() { m.Write(t, "second.yaml", pool("second", "10.245.0.0/24", 28, "  disabled: true\n")) })
	if p, err := n1.AddPod(ctx, "late", lab.PodOptions{Netconf: fromPool("second")}); err == nil {
		t.Errorf("a disabled pool gave %v", p.Addresses)
		deletePods(t, ctx, p)
	} else if !contains(err, "second") {
		t.Errorf("ADD does not say which pool is disabled: %v", err)
	}
	reachEachOther(t, f, old)

	// The same pods go on when the last pool of their family is disabled, and new ones
	// come from the pool that is not.
	m.Restore(t, "pools.yaml")
	edited("the other pool is disabled and the new one enabled", "pods-ipv4", true, func() {
		m.Write(t, "second.yaml", pool("second", "10.245.0.0/24", 28, ""))
		m.Edit(t, "pools.yaml", "  cidr: 10.244.0.0/16", "  disabled: true\n  cidr: 10.244.0.0/16")
	})
	operator.Await(t, 10*time.Second, n1, "the new pool is enabled", func(st status.Status) error { return poolIs(st, "second", false) })
	p, err := n1.AddPod(ctx, "moved", lab.PodOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if a := p.Address(false); !netip.MustParsePrefix("10.245.0.0/24").Contains(a) {
		t.Errorf("got %v, from the disabled pool", p.Addresses)
	}
	reachEachOther(t, f, p)
	f.PodsTalk(t, 10*time.Second)
	deletePods(t, ctx, old, p)
	edited("the first pool is enabled", "pods-ipv4", false, func() {
		m.Edit(t, "pools.yaml", "  disabled: true\n  cidr: 10.244.0.0/16", "  cidr: 10.244.0.0/16")
	})
	removePool(t, f, "second.yaml", "second")
}

// removePool deletes a manifest and waits until all nodes know that the pool is gone.
func removePool(t *testing.T, f *scenario.Fabric, file, name string) {
	t.Helper()
	operator.ManifestsOf(f).Remove(t, file)
	for _, n := range f.Agents() {
		operator.Await(t, 10*time.Second, n, "the pool is gone", func(st status.Status) error {
			if slices.ContainsFunc(st.Pools, func(p status.Pool) bool { return p.Name == name }) {
				return fmt.Errorf("pool %s is there", name)
			}
			return nil
		})
	}
}

// borrowed asks on n2 for addresses in n1's blocks.
func borrowed(t *testing.T, f *scenario.Fabric) {
	ctx := scenario.Context(t, time.Minute)
	n2 := f.Node("n2")
	var want []netip.Addr
	for _, v6 := range families {
		b := blockOf(t, f.Node("n1"), v6)
		last := b.Addr()
		for next := last; b.Contains(next); next = next.Next() {
			last = next
		}
		want = append(want, last)
	}
	p, err := n2.AddPod(ctx, "borrower", lab.PodOptions{IPs: want})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal([]netip.Addr{p.Address(false), p.Address(true)}, want) {
		t.Fatalf("asked for %v, got %v", want, p.Addresses)
	}
	at := func(present bool) {
		t.Helper()
		for _, n := range f.Agents() {
			for i, v6 := range families {
				single := netip.PrefixFrom(want[i], want[i].BitLen())
				scenario.Eventually(t, 10*time.Second, fmt.Sprintf("%s: route to %s: %t", n, single, present), func() error {
					rs, err := operator.RoutesOf(ctx, n, v6)
					switch {
					case err != nil:
						return err
					case !present && len(rs.At(single)) > 0:
						return fmt.Errorf("still there: %v", rs.At(single))
					case !present:
						return nil
					case n.Name() == "n2":
						if at := rs.At(single); len(at) != 1 || !strings.HasPrefix(at[0].Device, "cali") {
							return fmt.Errorf("%v", at)
						}
						return nil
					}
					return rs.Via(single, addressOf("n2", v6))
				})
				if slices.Contains(operator.Status(t, n2).Adverts, single) != present {
					t.Errorf("n2 advertises %s: want %t", single, present)
				}
			}
		}
	}
	at(true)
	reachEachOther(t, f, p)
	// The address has one holder.
	if twice, err := f.Node("n3").AddPod(ctx, "twice", lab.PodOptions{IPs: want[:1]}); err == nil {
		t.Errorf("%s holds %v, which %s has", twice, twice.Addresses, p)
		deletePods(t, ctx, twice)
	} else if !contains(err, "in use") {
		t.Errorf("ADD of an address in use says: %v", err)
	}
	if other, err := n2.AddPod(ctx, "nowhere", lab.PodOptions{IPs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}); err == nil {
		t.Errorf("%s holds %v, which is in no pool", other, other.Addresses)
		deletePods(t, ctx, other)
	} else if !contains(err, "192.0.2.1") {
		t.Errorf("ADD of an address in no pool says: %v", err)
	}
	scenario.Eventually(t, 15*time.Second, "blocks", func() error { return operator.AccountedFor(f) })
	deletePods(t, ctx, p)
	at(false)
	f.PodsTalk(t, 10*time.Second)
	scenario.Eventually(t, 15*time.Second, "blocks", func() error { return operator.AccountedFor(f) })
}

// reserved uses up a pool of which two addresses are left by a reservation.
func reserved(t *testing.T, f *scenario.Fabric) {
	ctx := scenario.Context(t, time.Minute)
	m, n1 := operator.ManifestsOf(f), f.Node("n1")
	m.Restore(t, "reserved.yaml")
	m.Write(t, "reserved.yaml", `apiVersion: projectcalico.org/v3
kind: IPReservation
metadata: {name: most}
spec:
  reservedCIDRs: [10.246.0.0/30, 10.246.0.4/31]
---
`+pool("small", "10.246.0.0/29", 29, ""))
	operator.Await(t, 10*time.Second, n1, "the small pool", func(st status.Status) error { return poolIs(st, "small", false) })
	if p, err := n1.AddPod(ctx, "asks", lab.PodOptions{IPs: []netip.Addr{netip.MustParseAddr("10.246.0.3")}}); err == nil {
		t.Errorf("a reserved address was given out: %v", p.Addresses)
		deletePods(t, ctx, p)
	} else if !contains(err, "reserved") {
		t.Errorf("ADD of a reserved address says: %v", err)
	}
	var pods []*lab.Pod
	var got []string
	for i := range 2 {
		p, err := n1.AddPod(ctx, fmt.Sprintf("small%d", i), lab.PodOptions{Netconf: fromPool("small")})
		if err != nil {
			t.Fatal(err)
		}
		pods = append(pods, p)
		got = append(got, p.Address(false).String())
	}
	slices.Sort(got)
	if want := []string{"10.246.0.6", "10.246.0.7"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if p, err := n1.AddPod(ctx, "third", lab.PodOptions{Netconf: fromPool("small")}); err == nil {
		t.Errorf("a third address: %v", p.Addresses)
		deletePods(t, ctx, p)
	} else if !contains(err, "no free address") {
		t.Errorf("ADD without a free address says: %v", err)
	}
	deletePods(t, ctx, pods...)
	removePool(t, f, "reserved.yaml", "small")
}

const racers = 20 // pods on each node at once

// race lets all nodes claim small blocks of one pool at once, and release them at once.
func race(t *testing.T, f *scenario.Fabric) {
	ctx := scenario.Context(t, 2*time.Minute)
	m := operator.ManifestsOf(f)
	m.Restore(t, "raced.yaml")
	m.Write(t, "raced.yaml", pool("raced", "10.247.0.0/25", 30, ""))
	for _, n := range f.Agents() {
		operator.Await(t, 10*time.Second, n, "the pool", func(st status.Status) error { return poolIs(st, "raced", false) })
	}
	all := func(what string, do func(n *lab.Node, name string) error) {
		t.Helper()
		at := time.Now()
		var wg sync.WaitGroup
		errs := make(chan error, racers*3)
		for _, n := range f.Agents() {
			for i := range racers {
				wg.Add(1)
				go func() {
					defer wg.Done()
					errs <- do(n, fmt.Sprintf("race%d", i))
				}()
			}
		}
		wg.Wait()
		close(errs)
		for err := range errs {
			if err != nil {
				t.Error(err)
			}
		}
		t.Logf("%s of %d pods took %s", what, 3*racers, time.Since(at).Round(time.Millisecond))
	}
	all("ADD", func(n *lab.Node, name string) error {
		_, err := n.AddPod(ctx, name, lab.PodOptions{Netconf: fromPool("raced")})
		return err
	})
	holder := map[netip.Addr]string{}
	var raced []traffic.Endpoint
	for _, n := range f.Agents() {
		for _, p := range n.Pods() {
			for _, a := range p.Addresses {
				if other, twice := holder[a.Addr()]; twice {
					t.Errorf("%s has two holders: %s and %s", a, other, p)
				}
				holder[a.Addr()] = p.String()
			}
			if p.Name == "race0" || p.Name == fmt.Sprintf("race%d", racers-1) {
				raced = append(raced, fabric.Endpoint(p))
			}
		}
	}
	if want := 2 * (3*racers + len(f.Pods)); len(holder) != want {
		t.Errorf("%d addresses, want %d", len(holder), want)
	}
	scenario.Eventually(t, 20*time.Second, "blocks", func() error { return operator.AccountedFor(f) })
	scenario.Eventually(t, 20*time.Second, "routes of all blocks", func() error { return routesComplete(ctx, t, f, f.Agents()...) })
	scenario.Reach(t, 20*time.Second, raced, raced)
	all("DEL", func(n *lab.Node, name string) error { return n.DeletePod(ctx, name) })
	scenario.Eventually(t, 20*time.Second, "blocks", func() error { return operator.AccountedFor(f) })
	removePool(t, f, "raced.yaml", "raced")
}
