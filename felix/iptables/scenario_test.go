package iptables_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/causeway-net/causeway/felix/iptables"
)

func rule(args string) iptables.Rule {
	f := strings.Fields(args)
	i := slices.IndexFunc(f, func(s string) bool { return s == "-j" || s == "-g" })
	if i < 0 {
		return iptables.Rule{Match: f}
	}
	return iptables.Rule{Match: f[:i], Action: f[i:]}
}

func chain(name string, rules ...string) iptables.Chain {
	c := iptables.Chain{Name: name}
	for _, r := range rules {
		c.Rules = append(c.Rules, rule(r))
	}
	return c
}

func hook(chain, args string) iptables.Hook { return iptables.Hook{Chain: chain, Rule: rule(args)} }

// sample has calls, matches that iptables prints in another form, and both kinds of hooks.
func sample() iptables.TableState {
	return iptables.TableState{
		Chains: []iptables.Chain{
			chain("cali-OUTPUT", "-o lo -j cali-a", "-m mark --mark 0x10/0x10 -j RETURN", "-j cali-b"),
			chain("cali-a", "-p tcp --dport 80 -j ACCEPT", "-j MARK --set-mark 16"),
			chain("cali-b", "-p udp -m udp --dport 53 -j ACCEPT", "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", ""),
		},
		Hooks: []iptables.Hook{
			hook("OUTPUT", "-j cali-OUTPUT"),
			{Chain: "OUTPUT", Rule: rule("-m mark --mark 0x10/0x10 -j ACCEPT"), Append: true},
		},
	}
}

const foreignFilter = `*filter
:KUBE-FORWARD - [0:0]
:MINE - [0:0]
-A KUBE-FORWARD -m comment --comment "kubernetes \"forward\" cali rule" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A OUTPUT -j MINE
-A FORWARD -j KUBE-FORWARD
-A MINE -p tcp -m tcp --dport 99 -m comment --comment "cali: not a mark" -j RETURN
COMMIT
`

func TestInstallAdoptAndRemove(t *testing.T) {
	for _, family := range []iptables.Family{iptables.IPv4, iptables.IPv6} {
		t.Run(family.String(), func(t *testing.T) {
			rigs(t, family, func(t *testing.T, r *rig) {
				r.must(t, foreignFilter)
				r.must(t, "*raw\n-A PREROUTING -i eth7 -j ACCEPT\nCOMMIT\n")
				before := map[iptables.Table]string{}
				for _, table := range []iptables.Table{iptables.Raw, iptables.Filter} {
					before[table] = counters.ReplaceAllString(r.dump(table), "")
				}
				rec, stop := r.start(t)
				set := func(rec *iptables.Reconciler) {
					rec.Set(iptables.Raw, iptables.ReversePath("cali"))
					rec.Set(iptables.Filter, sample())
					wait(t, rec)
				}
				set(rec)
				if got := r.rules(iptables.Raw); got != ":PREROUTING ACCEPT\n:OUTPUT ACCEPT\n:cali-encap-guard -\n:cali-rpf-fail -\n"+
					"-A PREROUTING -i cali+ -m rpfilter --invert -j cali-rpf-fail\n-A PREROUTING ! -p tcp -j cali-encap-guard\n"+
					"-A PREROUTING -i eth7 -j ACCEPT\n-A cali-rpf-fail -m comment --comment \"not its address\" -j DROP\n" {
					t.Errorf("raw:\n%s", got)
				}
				// Matches are asked in their order: the mark is the last.
				if got := r.dump(iptables.Raw); !strings.Contains(got, "--invert -m comment --comment") || !strings.Contains(got, "-p tcp -m comment --comment") {
					t.Errorf("raw:\n%s", got)
				}
				if got := r.chain(iptables.Filter, "OUTPUT"); !slices.Equal(got, []string{"-j cali-OUTPUT", "-j MINE", "-m mark --mark 0x10/0x10 -j ACCEPT"}) {
					t.Errorf("OUTPUT: %q", got)
				}
				if got := r.chain(iptables.Filter, "cali-b"); len(got) != 3 || got[2] != "" {
					t.Errorf("cali-b: %q", got)
				}
				for table, text := range before {
					if got := r.others(table); got != text {
						t.Errorf("others' rules in %s changed from\n%s\nto\n%s", table, text, got)
					}
				}
				if n := len(r.kernel.took()); n != 2 {
					t.Errorf("%d transactions; one per table would do", n)
				}
				// Set again: nothing. Restarted: nothing, and the counters live.
				r.traffic()
				counted, generation := r.dump(iptables.Filter), r.generation()
				set(rec)
				stop()
				rec, stop = r.start(t)
				set(rec)
				rec.PokeResync()
				set(rec)
				if s := r.kernel.took(); len(s) != 0 {
					t.Errorf("a restart changed\n%s", s)
				}
				if got := r.dump(iptables.Filter); got != counted || !strings.Contains(counted, "[1:") && !strings.Contains(counted, "[2:") {
					t.Errorf("counters before\n%s\nafter\n%s", counted, got)
				}
				if g := r.generation(); g != generation {
					t.Errorf("ruleset before\n%s\nafter\n%s", generation, g)
				}
				stop()
				if err := iptables.Remove(context.Background(), iptables.Config{Family: r.family, Kernel: r.kernel}); err != nil {
					t.Fatal(err)
				}
				for table, text := range before {
					if got := counters.ReplaceAllString(r.dump(table), ""); got != text {
						t.Errorf("%s before\n%s\nafter Remove\n%s", table, text, got)
					}
				}
			})
		})
	}
}

// TestHeal has somebody damage what is ours in many ways; everything comes back, and
// nothing else changes.
func TestHeal(t *testing.T) {
	rigs(t, iptables.IPv4, func(t *testing.T, r *rig) {
		r.must(t, foreignFilter)
		rec, _ := r.start(t)
		rec.Set(iptables.Filter, sample())
		wait(t, rec)
		good, others := r.rules(iptables.Filter), r.others(iptables.Filter)
		markOf := func(chain string, n int) string {
			i := 0
			for l := range strings.Lines(counters.ReplaceAllString(r.dump(iptables.Filter), "")) {
				if strings.HasPrefix(l, "-A "+chain+" ") {
					if i++; i == n {
						return anyMark.FindString(l)
					}
				}
			}
			t.Fatalf("no rule %d in %s", n, chain)
			return ""
		}
		ownHook := func() string {
			for l := range strings.Lines(counters.ReplaceAllString(r.dump(iptables.Filter), "")) {
				if strings.HasPrefix(l, "-A OUTPUT") && strings.Contains(l, "-j cali-OUTPUT") {
					return strings.TrimPrefix(strings.TrimSpace(l), "-A OUTPUT ")
				}
			}
			t.Fatal("no hook")
			return ""
		}
		for _, damage := range []struct {
			name, script string
		}{
			{"flush one chain", "-F cali-a"},
			{"delete a rule", "-D cali-b 2"},
			{"append to ours", "-A cali-a -j DROP"},
			{"swap", "-D cali-b 1\n-A cali-b -p udp -m udp --dport 53 -j ACCEPT"},
			{"delete the hook", "-D OUTPUT " + ownHook()},
			{"second hook", "-A OUTPUT " + ownHook()},
			{"hook behind others", "-D OUTPUT " + ownHook() + "\n-A OUTPUT " + ownHook()},
			{"tampered, mark kept", "-R cali-b 1 -m comment --comment " + markOf("cali-b", 1) + " -p udp -m udp --dport 54 -j ACCEPT"},
			{"tampered hook, mark kept", "-R OUTPUT 1 -m comment --comment " + anyMark.FindString(ownHook()) + " -p tcp -j cali-OUTPUT"},
			{"chain deleted", "-F cali-OUTPUT\n-F cali-a\n-X cali-a"},
			{"foreign chain with our prefix", ":cali-zz - [0:0]\n-A cali-zz -j DROP\n-I cali-a 1 -j cali-zz"},
			{"everything flushed", "-D OUTPUT " + ownHook() + "\n-F cali-OUTPUT\n-F cali-a\n-F cali-b\n-X cali-OUTPUT\n-X cali-a\n-X cali-b"},
		} {
			r.must(t, "*filter\n"+damage.script+"\nCOMMIT\n")
			eventually(t, func() string {
				if got := r.rules(iptables.Filter); got != good {
					return fmt.Sprintf("%s: not healed:\n%s\nwant\n%s", damage.name, got, good)
				}
				return ""
			})
			if got := r.others(iptables.Filter); got != others {
				t.Fatalf("%s: others' rules changed to\n%s", damage.name, got)
			}
		}
		// Somebody inserts before us: we return to the head, and they keep their rule.
		r.must(t, "*filter\n-I OUTPUT 1 -p udp -j MINE\n-A OUTPUT -p tcp -j MINE\nCOMMIT\n")
		eventually(t, func() string {
			got := r.chain(iptables.Filter, "OUTPUT")
			if want := []string{"-j cali-OUTPUT", "-p udp -j MINE", "-j MINE", "-p tcp -j MINE", "-m mark --mark 0x10/0x10 -j ACCEPT"}; !slices.Equal(got, want) {
				return fmt.Sprintf("OUTPUT: %q, want %q", got, want)
			}
			return ""
		})
		wait(t, rec)
	})
}

// TestUpdate changes single chains and looks at the transactions and at the counters.
func TestUpdate(t *testing.T) {
	rigs(t, iptables.IPv4, func(t *testing.T, r *rig) {
		rec, _ := r.start(t)
		rec.Set(iptables.Filter, sample())
		wait(t, rec)
		r.traffic()
		r.kernel.took()
		// cali-OUTPUT counts: its first rule stays, the second goes, one comes.
		rec.Update(iptables.Filter, []iptables.Chain{
			chain("cali-OUTPUT", "-o lo -j cali-a", "-j cali-b", "-j cali-c"),
			chain("cali-c", "-j RETURN"),
		}, nil)
		wait(t, rec)
		s := r.kernel.took()
		if len(s) != 1 || strings.Contains(s[0], "cali-a ") || strings.Contains(s[0], "A cali-b") || strings.Contains(s[0], ":cali-OUTPUT") {
			t.Errorf("transactions: %q", s)
		}
		for l := range strings.Lines(r.dump(iptables.Filter)) {
			if strings.Contains(l, "-A cali-OUTPUT -o lo") && strings.HasPrefix(l, "[0:") {
				t.Errorf("lost its counter: %s", l)
			}
		}
		if got := r.chain(iptables.Filter, "cali-OUTPUT"); !slices.Equal(got, []string{"-o lo -j cali-a", "-j cali-b", "-j cali-c"}) {
			t.Errorf("cali-OUTPUT: %q", got)
		}
		rec.Update(iptables.Filter, []iptables.Chain{chain("cali-OUTPUT", "-j cali-b")}, []string{"cali-c", "cali-a"})
		wait(t, rec)
		if got := r.rules(iptables.Filter); strings.Contains(got, "cali-c") || strings.Contains(got, "cali-a") {
			t.Errorf("not deleted:\n%s", got)
		}
		if st := rec.Status().Tables[iptables.Filter]; st.Chains != 2 || st.Rules != 4 {
			t.Errorf("status: %+v", st)
		}
	})
}

// TestRefused: whatever the kernel refuses costs nobody else anything (I6).
func TestRefused(t *testing.T) {
	rigs(t, iptables.IPv4, func(t *testing.T, r *rig) {
		rec, _ := r.start(t)
		state := sample()
		many := make([]string, 20)
		for i := range many {
			many[i] = fmt.Sprintf("-p tcp -m tcp --dport %d -j ACCEPT", i+1)
			state.Chains = append(state.Chains, chain(fmt.Sprintf("cali-x%d", i), many[:i]...))
		}
		bad := map[string]iptables.Chain{
			"parse":  chain("cali-bad-parse", "-j ACCEPT", "-m nosuch --x -j ACCEPT"),
			"kernel": chain("cali-bad-kernel", "-j ACCEPT", "-p tcp -j MASQUERADE"),
			"callee": chain("cali-bad-callee", "-j cali-nowhere"),
			"loop":   chain("cali-bad-loop", "-j cali-bad-loop2"),
			"loop2":  chain("cali-bad-loop2", "-j cali-bad-loop"),
			"text":   chain("cali-bad-text", "-j RETURN"),
			"name":   chain("calico-with-a-name-of-29-byte"),
			"alien":  chain("OTHER", "-j DROP"),
		}
		c := bad["text"]
		c.Rules[0].Match = []string{"-m", "comment", "--comment", "two\nlines"}
		c = bad["kernel"]
		c.Fallback = []iptables.Rule{rule("-j DROP")}
		bad["kernel"] = c
		for _, c := range bad {
			state.Chains = append(state.Chains, c)
		}
		calls := []string{"-j cali-bad-parse", "-j cali-bad-kernel", "-j cali-bad-callee", "-j cali-bad-loop", "-j cali-bad-text"}
		state.Chains = append(state.Chains, chain("cali-calls", calls...))
		state.Hooks = append(state.Hooks, hook("INPUT", "-j cali-calls"), hook("NOWHERE", "-j cali-unreached"))
		state.Chains = append(state.Chains, chain("cali-unreached", "-j RETURN"))
		rec.Set(iptables.Filter, state)
		err := waitErr(t, rec)
		if err == nil {
			t.Fatal("no error")
		}
		for _, c := range bad {
			if !strings.Contains(err.Error(), "chain "+c.Name+":") {
				t.Errorf("the error does not name %s: %v", c.Name, err)
			}
			if rec.WaitChains(context.Background(), iptables.Filter, c.Name) == nil {
				t.Errorf("WaitChains(%s) has no error", c.Name)
			}
		}
		if n := len(rec.Status().Tables[iptables.Filter].Refused); n != len(bad)+1 {
			t.Errorf("%d refused, want %d: %v", n, len(bad)+1, rec.Status().Tables[iptables.Filter].Refused)
		}
		if err := rec.WaitChains(context.Background(), iptables.Filter, "cali-a", "cali-calls", "cali-x19"); err != nil {
			t.Errorf("WaitChains of good ones: %v", err)
		}
		if err := rec.WaitChains(context.Background(), iptables.Filter, "cali-unreached"); err == nil || !strings.Contains(err.Error(), "hooks that go to chain cali-unreached") {
			t.Errorf("WaitChains of one whose hook is refused: %v", err)
		}
		for name, want := range map[string][]string{
			"cali-calls": calls, "cali-x19": many[:19], "INPUT": {"-j cali-calls"},
			"cali-bad-parse": nil, "cali-bad-kernel": {"-j DROP"}, "cali-bad-callee": nil,
		} {
			if got := r.chain(iptables.Filter, name); !slices.Equal(got, want) {
				t.Errorf("%s: %q, want %q", name, got, want)
			}
		}
		if strings.Contains(r.rules(iptables.Filter), "OTHER") {
			t.Error("wrote a chain that is not ours")
		}
		// Mended, they come in; and a good chain that turns bad keeps what it was, with
		// the chains it goes to.
		var mended []iptables.Chain
		for _, c := range bad {
			if c.Name != "OTHER" && len(c.Name) < 29 {
				mended = append(mended, chain(c.Name, "-j RETURN"))
			}
		}
		rec.Update(iptables.Filter, mended, []string{"OTHER", "calico-with-a-name-of-29-byte"})
		state.Hooks = nil
		if err := waitErr(t, rec); err == nil || strings.Contains(err.Error(), "chain cali") || !strings.Contains(err.Error(), "NOWHERE") {
			t.Errorf("mended: %v", err)
		}
		rec.Update(iptables.Filter, []iptables.Chain{
			chain("cali-OUTPUT", "-p tcp -j MASQUERADE"), chain("cali-x1", "-j DROP"),
		}, []string{"cali-a"})
		if err := waitErr(t, rec); err == nil || !strings.Contains(err.Error(), "chain cali-OUTPUT") {
			t.Errorf("turned bad: %v", err)
		}
		if got := r.chain(iptables.Filter, "cali-OUTPUT"); len(got) != 3 {
			t.Errorf("cali-OUTPUT: %q", got)
		}
		if got := r.chain(iptables.Filter, "cali-a"); len(got) != 2 {
			t.Errorf("cali-a, still in use: %q", got)
		}
		if got := r.chain(iptables.Filter, "cali-x1"); !slices.Equal(got, []string{"-j DROP"}) {
			t.Errorf("cali-x1: %q", got)
		}
		// What was kept is healed as well.
		r.must(t, "*filter\n-F cali-OUTPUT\nCOMMIT\n")
		eventually(t, func() string {
			if got := r.chain(iptables.Filter, "cali-OUTPUT"); len(got) != 3 {
				return fmt.Sprintf("the kept version was not healed: %q", got)
			}
			return ""
		})
		rec.Update(iptables.Filter, []iptables.Chain{chain("cali-OUTPUT", "-j cali-b")}, nil)
		_ = waitErr(t, rec)
		if strings.Contains(r.rules(iptables.Filter), "cali-a") {
			t.Error("cali-a was not deleted once nothing went to it")
		}
	})
}

// TestPinned: a chain that somebody else's rule goes to cannot go; it is emptied.
func TestPinned(t *testing.T) {
	rigs(t, iptables.IPv4, func(t *testing.T, r *rig) {
		rec, stop := r.start(t)
		rec.Set(iptables.Filter, sample())
		wait(t, rec)
		r.must(t, "*filter\n-A FORWARD -j cali-b\nCOMMIT\n")
		rec.PokeResync()
		rec.Set(iptables.Filter, iptables.TableState{})
		eventually(t, func() string {
			if got := r.rules(iptables.Filter); !strings.HasSuffix(got, ":cali-b -\n-A FORWARD -j cali-b\n") {
				return got
			}
			return ""
		})
		eventually(t, func() string {
			if p := rec.Status().Tables[iptables.Filter].Pinned; p["cali-b"] != "FORWARD" {
				return fmt.Sprintf("pinned: %v", p)
			}
			return ""
		})
		stop()
		if err := iptables.Remove(context.Background(), iptables.Config{Family: r.family, Kernel: r.kernel}); err == nil || !strings.Contains(err.Error(), "FORWARD") {
			t.Errorf("Remove: %v", err)
		}
	})
}

// TestCrash starts on what an agent left that died: half a change of another version, and
// transactions of which nobody knows whether they happened.
func TestCrash(t *testing.T) {
	rigs(t, iptables.IPv4, func(t *testing.T, r *rig) {
		rec, stop := r.start(t)
		old := sample()
		old.Chains = append(old.Chains, chain("cali-old", "-j cali-older"), chain("cali-older", "-j DROP"))
		old.Hooks = append(old.Hooks, hook("FORWARD", "-j cali-old"))
		rec.Set(iptables.Filter, old)
		wait(t, rec)
		stop()
		r.must(t, "*filter\n-F cali-a\n-D cali-b 1\nCOMMIT\n")
		n := 0
		r.kernel.mu.Lock()
		r.kernel.breakIt = func(_ []byte, run func() error) error {
			n++
			switch n {
			case 1:
				return errors.New("killed before")
			case 2:
				_ = run()
				return errors.New("killed after")
			}
			return run()
		}
		r.kernel.mu.Unlock()
		rec, _ = r.start(t)
		rec.Set(iptables.Filter, sample())
		eventually(t, func() string {
			if err := rec.Wait(context.Background()); err != nil {
				return err.Error()
			}
			return ""
		})
		if got := r.rules(iptables.Filter); strings.Contains(got, "cali-old") || len(r.chain(iptables.Filter, "cali-a")) != 2 || len(r.chain(iptables.Filter, "cali-b")) != 3 {
			t.Errorf("after the crash:\n%s", got)
		}
	})
}

// TestTemporary: a held lock and a generation that moved are tried again.
func TestTemporary(t *testing.T) {
	for _, message := range []string{
		"Another app is currently holding the xtables lock; still 9s 0us time ahead to have a chance to grab the lock...",
		"line 4: RULE_APPEND failed (Resource temporarily unavailable): rule in chain cali-a",
	} {
		r := fakeRig(iptables.IPv4, iptables.NFT)
		n := 0
		r.kernel.breakIt = func(_ []byte, run func() error) error {
			if n++; n < 4 {
				return &iptables.RestoreError{Message: message}
			}
			return run()
		}
		rec, _ := r.start(t)
		rec.Set(iptables.Filter, sample())
		wait(t, rec)
		if n != 4 {
			t.Errorf("%d attempts", n)
		}
	}
}
