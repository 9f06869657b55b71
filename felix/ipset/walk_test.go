package ipset_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/causeway-net/causeway/felix/ipset"
	"github.com/causeway-net/causeway/felix/ipset/ipsettest"
)

// golden is what should stand: sets with their members as ipset prints them.
type golden map[string]struct {
	typ     ipset.Type
	family  ipset.Family
	members map[ipset.Member]bool
}

func (g golden) lines() []string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(g)) {
		s := g[name]
		out = append(out, fmt.Sprintf("create %s %s family %s", name, s.typ, map[ipset.Family]string{ipset.IPv4: "inet", ipset.IPv6: "inet6"}[s.family]))
		lines := map[string]bool{}
		for m := range s.members {
			if m.Prefix.Bits() > 0 || s.typ == ipset.HashNetIface {
				lines["add "+name+" "+ipsettest.Text(m)] = true
				continue
			}
			for _, p := range map[ipset.Family][]string{ipset.IPv4: {"0.0.0.0/1", "128.0.0.0/1"}, ipset.IPv6: {"::/1", "8000::/1"}}[s.family] {
				m.Prefix = netip.MustParsePrefix(p)
				lines["add "+name+" "+ipsettest.Text(m)] = true
			}
		}
		out = append(out, slices.Sorted(maps.Keys(lines))...)
	}
	return out
}

func randomMember(rng *rand.Rand, t ipset.Type, f ipset.Family) ipset.Member {
	a, bits := netip.AddrFrom4([4]byte{10, 0, 0, byte(1 + rng.IntN(30))}), 32
	if f == ipset.IPv6 {
		a, bits = netip.AddrFrom16([16]byte{0xfd, 15: byte(1 + rng.IntN(30))}), 128
	}
	if t != ipset.HashIP && t != ipset.HashIPPort {
		bits = []int{0, 1, 8, bits - 3, bits}[rng.IntN(5)]
	}
	m := ipset.Member{Prefix: netip.PrefixFrom(a, bits).Masked()}
	if t == ipset.HashIPPort || t == ipset.HashNetPort {
		m.Protocol, m.Port = []uint8{6, 17, 132}[rng.IntN(3)], uint16(rng.IntN(3))
	}
	if t == ipset.HashNetIface {
		m.Interface = []string{"eth0", "eth1", "cali0123456789a"}[rng.IntN(3)]
	}
	return m
}

// TestWalk wanders through states while somebody damages ours and changes theirs, rules come
// and go, agents are replaced and the way to the kernel breaks; after each step the sets
// converge to exactly the wanted ones, and theirs are theirs.
func TestWalk(t *testing.T) {
	rigs(t, func(t *testing.T, r *rig) {
		steps := 600
		if r.fake == nil {
			steps = 60
		}
		seed := uint64(time.Now().UnixNano())
		t.Logf("seed %d", seed)
		rng := rand.New(rand.NewPCG(seed, 0))
		r.must(t, "create theirs hash:ip", "add theirs 10.0.0.1")
		small := func(c *ipset.Config) { c.MaxElem, c.Glance = 4, 3*time.Millisecond }
		rec, stop := r.start(t, small)
		rec.InSync("test")
		g := golden{}
		types := []ipset.Type{ipset.HashIP, ipset.HashNet, ipset.HashIPPort, ipset.HashNetPort, ipset.HashNetIface}
		for step := range steps {
			name := fmt.Sprintf("cali%d0%d", []int{4, 6}[rng.IntN(2)], rng.IntN(4))
			s, there := g[name]
			some := func() (out []ipset.Member) {
				for range rng.IntN(9) {
					out = append(out, randomMember(rng, s.typ, s.family))
				}
				return out
			}
			what := ""
			switch n := rng.IntN(10); {
			case n == 0 || !there:
				s.typ, s.family = types[rng.IntN(len(types))], []ipset.Family{ipset.IPv4, ipset.IPv6}[rng.IntN(2)]
				members := some()
				s.members = map[ipset.Member]bool{}
				for _, m := range members {
					s.members[m] = true
				}
				g[name] = s
				rec.Replace(ipset.Set{Name: name, Type: s.typ, Family: s.family, Members: members})
				what = "replace"
			case n < 4:
				add, remove := some(), some()
				for _, m := range remove {
					delete(s.members, m)
				}
				for _, m := range add {
					s.members[m] = true
				}
				rec.Update(name, add, remove)
				what = "update"
			case n == 4:
				rec.Delete(name)
				delete(g, name)
				what = "delete"
			case n == 5:
				_ = r.foreign("flush " + name)
				what = "flush"
			case n == 6:
				_ = r.foreign("destroy " + name)
				what = "destroy"
			case n == 7:
				_ = r.foreign("add " + name + " " + ipsettest.Text(randomMember(rng, s.typ, s.family)))
				rec.PokeResync()
				what = "foreign member"
			case n == 8 && r.fake != nil:
				r.fake.Fail(slices.Repeat([]error{nil}, rng.IntN(4))...)
				r.fake.Fail(fmt.Errorf("no way"))
				rec.Update(name, nil, nil)
				what = "break"
			case n == 9:
				stop()
				rec, stop = r.start(t, small)
				if r.fake != nil && rng.IntN(2) == 0 {
					r.fake.Fail(slices.Repeat([]error{nil}, rng.IntN(4))...)
					r.fake.Fail(fmt.Errorf("no way"))
				}
				for n, s := range g {
					// Some are declared, and the others adopted; of an adopted half nobody knows
					// whose half it is.
					set := ipset.Set{Name: n, Type: s.typ, Family: s.family}
					adopted := map[ipset.Member]bool{}
					for m := range s.members {
						if m.Prefix.Bits() < 2 || rng.IntN(2) == 0 {
							set.Members = append(set.Members, m)
						} else {
							adopted[m] = true
						}
					}
					if len(adopted) > 0 {
						set.Adopt = func(m ipset.Member) bool { return adopted[m] }
					}
					rec.Replace(set)
				}
				rec.InSync("test")
				what = "new agent"
				eventually(t, func() string { // what is destroyed before it is adopted is lost
					if err := waitErr(t, rec); err != nil {
						return err.Error()
					}
					return ""
				})
			}
			want := strings.Join(append(g.lines(), "create theirs hash:ip family inet", "add theirs 10.0.0.1"), "\n") + "\n"
			eventually(t, func() string {
				if got := r.dump(); got != want {
					return fmt.Sprintf("step %d, %s %s: the kernel holds\n%swant\n%s", step, what, name, got, want)
				}
				return ""
			})
		}
		eventually(t, func() string {
			if err := rec.Status().Err; err != nil {
				return err.Error()
			}
			return ""
		})
	})
}
