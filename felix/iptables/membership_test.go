package iptables

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/causeway-net/causeway/felix/ipset"
	"github.com/causeway-net/causeway/felix/policy"
	"github.com/causeway-net/causeway/internal/model"
)

// pod makes a workload's endpoint with addresses 10.0.0.N.
func pod(iface string, open bool, addrs ...int) *policy.Endpoint {
	e := &policy.Endpoint{ID: model.PolicyEndpointID{Namespace: "red", Name: iface}, Interface: iface, Ingress: policy.Path{Default: policy.Allow}, Egress: policy.Path{Default: policy.Allow}}
	if !open {
		e.Ingress.Default = policy.Deny
	}
	for _, n := range addrs {
		a := netip.AddrFrom4([4]byte{10, 0, 0, byte(n)})
		e.Addresses, e.Sources = append(e.Addresses, a), append(e.Sources, netip.PrefixFrom(a, 32))
	}
	return e
}

// sets are the members of both roles, "10.0.0.1,cali0", as edits leave them.
type sets [2]map[string]bool

func (s *sets) take(t *testing.T, edits []memberEdit) {
	t.Helper()
	for _, e := range edits {
		for _, a := range e.remove {
			if slices.Contains(e.add, a) {
				t.Fatalf("%s is added and removed: %+v", a, e)
			}
			delete(s[e.role], a.String()+","+e.iface)
		}
		for _, a := range e.add {
			s[e.role][a.String()+","+e.iface] = true
		}
	}
}

func (s *sets) has(r role, iface string, n int) bool {
	return s[r][fmt.Sprintf("10.0.0.%d,%s", n, iface)]
}

// TestMembershipAdopts takes over from an earlier agent: what is not the pod's any more goes with
// its own state, in both sets, whether they were read before or after.
func TestMembershipAdopts(t *testing.T) {
	for _, late := range []bool{false, true} {
		for _, was := range roles {
			for _, now := range roles {
				m := newMembership([]string{"cali0", "cali1"})
				s := sets{{}, {}}
				read := func() {
					for _, n := range []int{1, 2} { // 10.0.0.2 is not its own any more
						name := fmt.Sprintf("10.0.0.%d,cali0", n)
						wanted := s[was][name]
						s[was][name] = m.adopted.of(was)(ipset.Member{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(n)}), 32), Interface: "cali0"}) || wanted
					}
					if m.adopted.of(was)(ipset.Member{Prefix: netip.MustParsePrefix("10.0.0.9/32"), Interface: "cali9"}) {
						t.Error("an interface that is not known is kept")
					}
				}
				if !late {
					read()
				}
				s.take(t, m.place(pod("cali0", now == opened, 1, 3), 7))
				if late {
					read()
				}
				if was != now && !s.has(was, "cali0", 1) {
					t.Errorf("late %v, %d to %d: what held before its rules are there is gone", late, was, now)
				}
				s.take(t, m.settle(6))
				if was != now && !s.has(was, "cali0", 1) {
					t.Errorf("late %v, %d to %d: gone with a step too early", late, was, now)
				}
				s.take(t, m.settle(7))
				for n, want := range map[int]bool{1: true, 2: false, 3: true} {
					if s.has(now, "cali0", n) != want || was != now && s.has(was, "cali0", n) {
						t.Errorf("late %v, %d to %d: 10.0.0.%d: %v", late, was, now, n, s)
					}
				}
				s.take(t, m.inSync())
				if len(m.adopted.interfaces()) != 0 || m.adopted.keeping(was, "cali1") {
					t.Errorf("still kept: %v", m.adopted.interfaces())
				}
			}
		}
	}
}

// TestMembershipWalk changes pods at random: an open one is always a member of the open, a selected
// one of the sources; nobody is open that has not been so since the last step that is in the kernel; and
// once all steps are, nothing is left over.
func TestMembershipWalk(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 200 {
		m, s := newMembership(nil), sets{{}, {}}
		now := map[string]*policy.Endpoint{}
		since := map[string]uint64{} // the step that closed it; 0: it is open, or was never
		step, done := uint64(0), uint64(0)
		for range 60 {
			iface := fmt.Sprintf("cali%d", rng.IntN(3))
			switch step++; rng.IntN(5) {
			case 0:
				delete(now, iface)
				delete(since, iface)
				s.take(t, m.vacate(iface))
			case 1:
				done += uint64(rng.IntN(int(step - done)))
				s.take(t, m.settle(done))
			default:
				e := pod(iface, rng.IntN(2) == 0, rng.Perm(4)[:rng.IntN(3)]...)
				was := now[iface]
				if now[iface] = e; unruled(e) {
					since[iface] = 0
				} else if was == nil || unruled(was) {
					since[iface] = step
				}
				s.take(t, m.place(e, step))
			}
			for _, iface := range []string{"cali0", "cali1", "cali2"} {
				e := now[iface]
				for n := range 4 {
					is := e != nil && slices.Contains(e.Addresses, netip.AddrFrom4([4]byte{10, 0, 0, byte(n)}))
					if r := source; is {
						if r = roleOf(e); !s.has(r, iface, n) {
							t.Fatalf("10.0.0.%d,%s is in no set of its role", n, iface)
						}
					}
					if s.has(opened, iface, n) && (e == nil || !unruled(e) && since[iface] <= done && m.leaving[iface] == 0) {
						t.Fatalf("10.0.0.%d,%s is open still", n, iface)
					}
				}
			}
		}
		s.take(t, m.settle(step))
		members := 0
		for _, e := range now {
			members += len(e.Addresses)
		}
		if len(s[0])+len(s[1]) != members || len(m.leaving) != 0 {
			t.Fatalf("%v is left of %v", s, now)
		}
	}
}
