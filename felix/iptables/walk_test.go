package iptables_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/causeway-net/causeway/felix/iptables"
)

// holding is what a table should hold: rules in the words of iptables-save.
type holding struct {
	chains map[string][]string
	hooks  []iptables.Hook
}

var pool = []string{
	"-j ACCEPT", "-p tcp -j DROP", "-s 10.0.0.0/8 -j RETURN", "-i cali+ -p udp -m udp --dport 53 -j ACCEPT",
	"-m mark --mark 0x1/0x1 -j DROP", "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", "", "-p udp -j ACCEPT",
	"-d 10.1.2.3/32 -j ACCEPT", "! -s 10.9.0.0/16 -j MARK --set-xmark 0x2/0x2", "-o eth0 -j ACCEPT",
}

// randomRules takes some of the pool in any order, with repetitions; it may go to chains
// of higher number.
func randomRules(rng *rand.Rand, number int, m *holding) []string {
	var out []string
	for range rng.IntN(12) {
		if rng.IntN(5) == 0 {
			to := fmt.Sprintf("cali-%d", number+1+rng.IntN(4))
			if m.chains[to] != nil {
				out = append(out, "-j "+to)
				continue
			}
		}
		out = append(out, pool[rng.IntN(len(pool))])
	}
	if out == nil {
		out = []string{}
	}
	return out
}

func (m *holding) check(r *rig, others string) string {
	have := map[string][]string{}
	text := r.rules(iptables.Filter)
	for l := range strings.Lines(text) {
		if name, ok := strings.CutPrefix(l, ":cali"); ok {
			name, _, _ = strings.Cut("cali"+name, " ")
			have[name] = r.chainIn(text, name)
		}
	}
	if !maps.EqualFunc(have, m.chains, func(a, b []string) bool { return slices.Equal(a, b) }) {
		return fmt.Sprintf("chains are %q\nwant %q", have, m.chains)
	}
	var head, tail []string
	for _, h := range m.hooks {
		if h.Append {
			tail = append(tail, strings.Join(slices.Concat(h.Rule.Match, h.Rule.Action), " "))
		} else {
			head = append(head, strings.Join(slices.Concat(h.Rule.Match, h.Rule.Action), " "))
		}
	}
	got := r.chainIn(text, "FORWARD")
	if len(got) < len(head)+len(tail) || !slices.Equal(got[:len(head)], head) || !slices.Equal(got[len(got)-len(tail):], tail) {
		return fmt.Sprintf("FORWARD is %q\nwant head %q and tail %q", got, head, tail)
	}
	if o := r.others(iptables.Filter); o != others {
		return fmt.Sprintf("others' are\n%s\nwant\n%s", o, others)
	}
	return ""
}

func (r *rig) chainIn(text, name string) []string {
	out := []string{}
	for l := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(strings.TrimSuffix(l, "\n"), "-A "+name); ok && (rest == "" || rest[0] == ' ') {
			out = append(out, strings.TrimPrefix(rest, " "))
		}
	}
	return out
}

// TestWalk wanders through states while somebody damages ours and changes theirs; after
// each step the table converges to exactly the wanted state, and theirs is theirs.
func TestWalk(t *testing.T) {
	rigs(t, iptables.IPv4, func(t *testing.T, r *rig) {
		steps := 60
		if r.netns == "" {
			steps = 250
		}
		if r.backend == iptables.Legacy {
			steps /= 4 // each damage waits for a resync
		}
		seed := uint64(time.Now().UnixNano())
		t.Logf("seed %d", seed)
		rng := rand.New(rand.NewPCG(seed, 0))
		r.must(t, foreignFilter)
		rec, stop := r.start(t)
		m := &holding{chains: map[string][]string{}}
		theirs := 0
		rec.Set(iptables.Filter, iptables.TableState{})
		for step := range steps {
			switch rng.IntN(8) {
			case 0: // a whole new state
				m.chains = map[string][]string{}
				for n := 9; n >= 0; n-- {
					if rng.IntN(3) > 0 {
						m.chains[fmt.Sprintf("cali-%d", n)] = randomRules(rng, n, m)
					}
				}
				m.hooks = nil
				for name := range m.chains {
					switch rng.IntN(6) {
					case 0:
						m.hooks = append(m.hooks, hook("FORWARD", "-j "+name))
					case 1:
						m.hooks = append(m.hooks, iptables.Hook{Chain: "FORWARD", Append: true, Rule: rule("-p udp -j " + name)})
					}
				}
				s := iptables.TableState{Hooks: m.hooks}
				for name, rules := range m.chains {
					s.Chains = append(s.Chains, chain(name, rules...))
				}
				rec.Set(iptables.Filter, s)
			case 1, 2, 3: // one chain
				n := rng.IntN(10)
				name := fmt.Sprintf("cali-%d", n)
				m.chains[name] = randomRules(rng, n, m)
				rec.Update(iptables.Filter, []iptables.Chain{chain(name, m.chains[name]...)}, nil)
			case 4: // damage
				var names []string
				for l := range strings.Lines(r.rules(iptables.Filter)) {
					if name, ok := strings.CutPrefix(l, ":cali"); ok {
						name, _, _ = strings.Cut("cali"+name, " ")
						names = append(names, name)
					}
				}
				slices.Sort(names)
				for range 3 {
					if len(names) > 0 {
						name := names[rng.IntN(len(names))]
						_ = r.foreign("*filter\n" + []string{"-F ", "-D ", "-X ", "-I "}[rng.IntN(4)] + name + []string{"", " 1", " -j DROP"}[rng.IntN(3)] + "\nCOMMIT\n")
					}
				}
			case 5: // their own business
				theirs++
				_ = r.foreign(fmt.Sprintf("*filter\n-%s FORWARD -p tcp -m tcp --dport %d -j DROP\nCOMMIT\n", []string{"A", "I"}[rng.IntN(2)], theirs))
			case 6:
				if theirs > 0 {
					_ = r.foreign(fmt.Sprintf("*filter\n-D FORWARD -p tcp -m tcp --dport %d -j DROP\nCOMMIT\n", 1+rng.IntN(theirs)))
				}
			case 7: // restart
				if rng.IntN(4) == 0 {
					stop()
					rec, stop = r.start(t)
					s := iptables.TableState{Hooks: m.hooks}
					for name, rules := range m.chains {
						s.Chains = append(s.Chains, chain(name, rules...))
					}
					rec.Set(iptables.Filter, s)
				}
			}
			others := r.others(iptables.Filter)
			eventually(t, func() string {
				if s := m.check(r, others); s != "" {
					return fmt.Sprintf("seed %d step %d: %s", seed, step, s)
				}
				return ""
			})
		}
		wait(t, rec)
	})
}

// TestForeignRace changes others' rules all the time while ours change: none of theirs is
// lost or doubled, and ours get there.
func TestForeignRace(t *testing.T) {
	rigs(t, iptables.IPv4, func(t *testing.T, r *rig) {
		rec, _ := r.start(t)
		done := make(chan struct{})
		var wg sync.WaitGroup
		last := 0
		wg.Go(func() {
			for ; ; last++ {
				select {
				case <-done:
					return
				default:
				}
				verb := []string{"A", "I"}[last%2]
				if err := r.foreign(fmt.Sprintf("*filter\n-%s OUTPUT -p tcp -m tcp --dport %d -j ACCEPT\nCOMMIT\n", verb, last+1)); err != nil {
					t.Error(err)
				}
				if last%3 == 2 {
					if err := r.foreign(fmt.Sprintf("*filter\n-D OUTPUT -p tcp -m tcp --dport %d -j ACCEPT\nCOMMIT\n", last)); err != nil {
						t.Error(err)
					}
				}
			}
		})
		for i := range 20 {
			s := sample()
			if i%2 == 0 {
				s.Hooks = append(s.Hooks, hook("OUTPUT", "-p tcp -j cali-a"))
			}
			rec.Set(iptables.Filter, s)
			eventually(t, func() string {
				if err := waitErr(t, rec); err != nil {
					return err.Error()
				}
				return ""
			})
		}
		close(done)
		wg.Wait()
		rec.PokeResync()
		got := 0
		for _, l := range r.chain(iptables.Filter, "OUTPUT") {
			if strings.Contains(l, "--dport") {
				got++
			}
		}
		deleted := last / 3
		if got != last-deleted {
			t.Errorf("%d of others' rules, want %d", got, last-deleted)
		}
		eventually(t, func() string {
			o := r.chain(iptables.Filter, "OUTPUT")
			if len(o) < 2 || o[0] != "-j cali-OUTPUT" || o[len(o)-1] != "-m mark --mark 0x10/0x10 -j ACCEPT" {
				return fmt.Sprintf("OUTPUT: %q", o)
			}
			return ""
		})
	})
}
