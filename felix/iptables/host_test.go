package iptables_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/causeway-net/causeway/felix/iptables"
	"github.com/causeway-net/causeway/felix/iptables/iptablestest"
)

// TestDetect: our rules go where the host's are.
func TestDetect(t *testing.T) {
	for _, tt := range []struct {
		name        string
		nft, legacy string // rules in table filter, or table and rules
		want        iptables.Backend
	}{
		{"nothing", "", "", iptables.NFT},
		{"legacy rules", "", "*filter\n-A INPUT -j ACCEPT\n", iptables.Legacy},
		{"more nft rules", "*filter\n-A INPUT -j ACCEPT\n-A INPUT -j DROP\n", "*filter\n-A INPUT -j ACCEPT\n", iptables.NFT},
		{"more legacy rules", "*filter\n-A INPUT -j ACCEPT\n", "*nat\n-A OUTPUT -j ACCEPT\n-A OUTPUT -j RETURN\n", iptables.Legacy},
		{"kubelet says nft", "*mangle\n:KUBE-IPTABLES-HINT - [0:0]\n", "*filter\n-A INPUT -j ACCEPT\n", iptables.NFT},
		{"kubelet says legacy", "*filter\n-A INPUT -j ACCEPT\n", "*mangle\n:KUBE-KUBELET-CANARY - [0:0]\n", iptables.Legacy},
		{"ours are legacy", "", "*raw\n:cali-PREROUTING - [0:0]\n-A cali-PREROUTING -j DROP\n", iptables.Legacy},
		{"ours do not count", "*filter\n-A INPUT -j ACCEPT\n", "*raw\n:cali-P - [0:0]\n-A cali-P -j DROP\n-A cali-P -j DROP\n", iptables.NFT},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			nft := realRig(t, iptables.IPv4, iptables.NFT)
			legacy := *nft
			legacy.foreign = func(script string) error {
				return iptables.NewHost(iptables.IPv4, iptables.Legacy, 0).Within(entering(nft.netns)).Restore(context.Background(), []byte(script))
			}
			if tt.nft != "" {
				nft.must(t, tt.nft+"COMMIT\n")
			}
			if tt.legacy != "" {
				legacy.must(t, tt.legacy+"COMMIT\n")
			}
			for _, family := range []iptables.Family{iptables.IPv4, iptables.IPv6} { // both answer alike
				h := iptables.NewHost(family, iptables.Auto, 0).Within(entering(nft.netns))
				if b, err := h.Backend(context.Background()); err != nil || b != tt.want {
					t.Errorf("%s: %q, %v; want %q", family, b, err, tt.want)
				}
			}
		})
	}
}

// TestSweep: what an agent left in the other backend goes once this one is right.
func TestSweep(t *testing.T) {
	nft := realRig(t, iptables.IPv4, iptables.NFT)
	legacy := *nft
	legacy.backend = iptables.Legacy
	host := iptables.NewHost(iptables.IPv4, iptables.Legacy, 0).Within(entering(nft.netns))
	legacy.kernel = &spy{Kernel: host}
	old, stop := legacy.start(t)
	old.Set(iptables.Filter, sample())
	wait(t, old)
	stop()
	if err := host.Restore(context.Background(), []byte("*filter\n-A FORWARD -j ACCEPT\nCOMMIT\n")); err != nil {
		t.Fatal(err)
	}
	rec, err := iptables.New(iptables.Config{Family: iptables.IPv4, Log: discard(), Kernel: nft.kernel.Kernel})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- rec.Run(ctx) }()
	rec.Set(iptables.Filter, sample())
	wait(t, rec)
	eventually(t, func() string {
		text, err := host.Save(context.Background(), iptables.Filter)
		if err != nil || strings.Contains(string(text), "cali") || !strings.Contains(string(text), "-A FORWARD -j ACCEPT") {
			return fmt.Sprintf("legacy: %v\n%s", err, text)
		}
		return ""
	})
	if s := rec.Status(); s.Backend != iptables.NFT || !s.Watched || s.Tables[iptables.Filter].Chains != 3 {
		t.Errorf("status: %+v", s)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestLock: somebody holds the lock for a while; we wait for them.
func TestLock(t *testing.T) {
	r := realRig(t, iptables.IPv4, iptables.Legacy)
	f, err := os.OpenFile("/run/xtables.lock", os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(300*time.Millisecond, func() { f.Close() })
	rec, _ := r.start(t)
	rec.Set(iptables.Filter, sample())
	wait(t, rec)
}

// TestQuoting carries every printable byte through iptables and back: the rules are
// recognised as ours and right, and no argument becomes two.
func TestQuoting(t *testing.T) {
	rigs(t, iptables.IPv4, func(t *testing.T, r *rig) {
		rng := rand.New(rand.NewPCG(1, 2))
		c := iptables.Chain{Name: "cali-quoting"}
		for range 60 {
			var b []byte
			for range 1 + rng.IntN(40) {
				b = append(b, byte(' '+rng.IntN(95)))
			}
			c.Rules = append(c.Rules, iptables.Rule{Comment: string(b), Action: iptables.Accept()})
		}
		for _, s := range []string{`\`, `"`, `""`, `a\"b`, `'`, `$(x)`, "-j DROP", "é→ü", strings.Repeat("é", 200), "two\nlines", " lead", "tail ", "cali:0123456789abcdef", "!", "#"} {
			c.Rules = append(c.Rules, iptables.Rule{Comment: s, Match: []string{"-p", "tcp"}, Action: iptables.Drop()})
		}
		rec, stop := r.start(t)
		rec.Set(iptables.Filter, iptables.TableState{Chains: []iptables.Chain{c}})
		wait(t, rec)
		if n := len(r.chain(iptables.Filter, "cali-quoting")); n != len(c.Rules) {
			t.Errorf("%d rules, want %d", n, len(c.Rules))
		}
		stop()
		r.kernel.took()
		rec, _ = r.start(t)
		rec.Set(iptables.Filter, iptables.TableState{Chains: []iptables.Chain{c}})
		wait(t, rec)
		if s := r.kernel.took(); len(s) != 0 {
			t.Errorf("not recognised:\n%s", s)
		}
	})
}

// TestWatchIsQuiet: neither our own transactions nor what others do with chains of their
// own costs a reading of the table.
func TestWatchIsQuiet(t *testing.T) {
	r := realRig(t, iptables.IPv4, iptables.NFT)
	saves := &saveCounter{Kernel: r.kernel.Kernel}
	r.kernel.Kernel = saves
	rec, _ := r.start(t)
	rec.Set(iptables.Filter, sample())
	wait(t, rec)
	for i := range 10 {
		r.must(t, fmt.Sprintf("*filter\n:KUBE-%d - [0:0]\n-A KUBE-%d -j ACCEPT\nCOMMIT\n", i, i))
		r.must(t, "*nat\n-A OUTPUT -j ACCEPT\nCOMMIT\n")
		rec.Update(iptables.Filter, []iptables.Chain{chain(fmt.Sprintf("cali-q%d", i), "-j RETURN")}, nil)
		wait(t, rec)
	}
	r.must(t, "*filter\n-F cali-q3\nCOMMIT\n") // and the watch works
	eventually(t, func() string {
		if got := r.chain(iptables.Filter, "cali-q3"); !slices.Equal(got, []string{"-j RETURN"}) {
			return fmt.Sprintf("cali-q3: %q", got)
		}
		return ""
	})
	if n := saves.n.Load(); n != 2 {
		t.Errorf("read %d times, want 2: at the start and for the damage", n)
	}
}

// TestFakeIsLikeReal gives the fake and the real programs the same random commands: they
// take and refuse the same ones, and print the same table. Where the fake is stricter by
// design the real ones are not asked.
func TestFakeIsLikeReal(t *testing.T) {
	for _, b := range []iptables.Backend{iptables.NFT, iptables.Legacy} {
		t.Run(string(b), func(t *testing.T) {
			t.Parallel()
			seed := uint64(time.Now().UnixNano())
			t.Logf("seed %d", seed)
			rng := rand.New(rand.NewPCG(seed, 0))
			real := realRig(t, iptables.IPv4, b)
			fake := iptablestest.New(iptables.IPv4, b)
			name := func() string { return []string{"cali-a", "cali-b", "c", "FORWARD"}[rng.IntN(4)] }
			spec := func() string {
				return []string{
					"-j ACCEPT", "-j cali-a", "-g cali-b", "-j c", "-p tcp -m tcp --dport 80 -j DROP", "-s 10.0.0.1 -j RETURN",
					"-p tcp --nosuch 1", "-m nosuch", "-j NOSUCH", "-j MASQUERADE", "-m comment --comment \"a b\" -j DROP",
					"-j MARK --set-mark 3", "-i averyveryverylongname -j ACCEPT", "-s x -j DROP", "! -s 10.0.0.0/8 -j DROP", "-m mark --mark 0x1 -i cali+ -j DROP",
				}[rng.IntN(16)]
			}
			for step := range 80 {
				script := "*filter\n"
				for range 1 + rng.IntN(3) {
					switch rng.IntN(8) {
					case 0, 1:
						script += ":" + []string{"cali-a", "cali-b", "c"}[rng.IntN(3)] + " - [0:0]\n"
					case 2, 3:
						script += "-A " + name() + " " + spec() + "\n"
					case 4:
						script += fmt.Sprintf("-I %s %d %s\n", name(), 1+rng.IntN(3), spec())
					case 5:
						script += fmt.Sprintf("-R %s %d %s\n", name(), 1+rng.IntN(3), spec())
					case 6:
						script += fmt.Sprintf("-D %s %d\n", name(), 1+rng.IntN(3))
					case 7:
						script += []string{"-X ", "-F "}[rng.IntN(2)] + []string{"cali-a", "cali-b", "c"}[rng.IntN(3)] + "\n"
					}
				}
				script += "COMMIT\n"
				fakeErr := fake.Restore(context.Background(), []byte(script))
				if fakeErr != nil && stricter.MatchString(fakeErr.Error()) {
					continue
				}
				realErr := real.kernel.Restore(context.Background(), []byte(script))
				if (realErr == nil) != (fakeErr == nil) {
					t.Fatalf("step %d:\n%s\nreal: %v\nfake: %v\n%s", step, script, realErr, fakeErr, real.dump(iptables.Filter))
				}
				text, err := fake.Save(context.Background(), iptables.Filter)
				if err != nil {
					t.Fatal(err)
				}
				_, got, _ := strings.Cut(string(text), "*filter\n")
				got, _, _ = strings.Cut(got, "COMMIT")
				if want := counters.ReplaceAllString(real.dump(iptables.Filter), ""); counters.ReplaceAllString(got, "") != want {
					t.Fatalf("step %d:\n%s\nreal:\n%s\nfake:\n%s", step, script, want, got)
				}
			}
		})
	}
}

var stricter = regexp.MustCompile(`RULE_APPEND failed|Index of|replaces a rule of this|line \d+ failed$`)

func TestConfig(t *testing.T) {
	for _, cfg := range []iptables.Config{
		{Log: discard()}, {Family: iptables.IPv4}, {Family: iptables.IPv4, Log: discard(), Backend: "ebpf"},
		{Family: iptables.IPv4, Log: discard(), LockTimeout: time.Millisecond}, {Family: iptables.IPv4, Log: discard(), Resync: -1},
	} {
		if _, err := iptables.New(cfg); err == nil {
			t.Errorf("New(%+v) has no error", cfg)
		}
	}
}

// TestNoPrograms: without iptables Wait says what is missing.
func TestNoPrograms(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	rec, err := iptables.New(iptables.Config{Family: iptables.IPv4, Log: discard()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- rec.Run(ctx) }()
	rec.Set(iptables.Raw, iptables.ReversePath("cali"))
	for _, err := range []error{waitErr(t, rec), rec.WaitChains(ctx, iptables.Raw, iptables.ReversePathChain)} {
		if err == nil || !strings.Contains(err.Error(), "iptables-nft-save") {
			t.Errorf("Wait: %v", err)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestCrashingProgram: a chain at which iptables-restore itself crashes is refused like
// any other, alone.
func TestCrashingProgram(t *testing.T) {
	bin := t.TempDir()
	for name, body := range map[string]string{
		"iptables-legacy":         "echo 'iptables v1.8.9 (legacy)'",
		"iptables-legacy-save":    "printf '*filter\\n:INPUT ACCEPT [0:0]\\nCOMMIT\\n'",
		"iptables-legacy-restore": "while read -r l; do case \"$l\" in *crash*) kill -SEGV $$;; esac; done",
	} {
		if err := os.WriteFile(bin+"/"+name, []byte("#!/bin/sh\n"+body+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", bin)
	rec, err := iptables.New(iptables.Config{Family: iptables.IPv4, Log: discard(), Backend: iptables.Legacy})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- rec.Run(ctx) }()
	s := sample()
	s.Chains = append(s.Chains, iptables.Chain{Name: "cali-bad", Rules: []iptables.Rule{{Comment: "crash"}}})
	s.Hooks = nil
	rec.Set(iptables.Filter, s)
	if err := waitErr(t, rec); err == nil || !strings.Contains(err.Error(), "cali-bad") || !strings.Contains(err.Error(), "segmentation") {
		t.Errorf("Wait: %v", err)
	}
	if n := len(rec.Status().Tables[iptables.Filter].Refused); n != 1 {
		t.Errorf("%d refused", n)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
