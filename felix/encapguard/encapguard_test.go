package encapguard_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/causeway-net/causeway/felix/encapguard"
	"github.com/causeway-net/causeway/felix/ipset"
	"github.com/causeway-net/causeway/felix/ipset/ipsettest"
	"github.com/causeway-net/causeway/felix/iptables"
	"github.com/causeway-net/causeway/felix/iptables/iptablestest"
	"github.com/causeway-net/causeway/internal/model"
)

// host is a kernel with sets and rules that know of each other.
type host struct {
	sets   *ipsettest.Kernel
	rules  [2]*iptablestest.Kernel
	bad    error        // of everything that sets are asked
	forgot atomic.Int32 // calls of Forget
	t      *testing.T
}

func newHost(t *testing.T) *host {
	return &host{sets: ipsettest.New(), t: t, rules: [2]*iptablestest.Kernel{
		iptablestest.New(iptables.IPv4, iptables.NFT), iptablestest.New(iptables.IPv6, iptables.NFT)}}
}

// rulesKernel refuses rules that name a set that is not there.
type rulesKernel struct {
	*iptablestest.Kernel
	h *host
}

var matched = regexp.MustCompile(`--match-set (\S+) src`)

func (k rulesKernel) Restore(ctx context.Context, script []byte) error {
	for i, l := range strings.Split(string(script), "\n") {
		if m := matched.FindStringSubmatch(l); m != nil && !strings.HasPrefix(l, "-D") && !strings.Contains(k.h.sets.Dump(), "create "+m[1]+" hash:net") {
			return &iptables.RestoreError{Lines: []int{i + 1}, Message: "Set " + m[1] + " doesn't exist."}
		}
	}
	return k.Kernel.Restore(ctx, script)
}

// setsKernel keeps sets that a rule names.
type setsKernel struct {
	*ipsettest.Kernel
	h *host
}

func (k setsKernel) Headers(ctx context.Context) ([]ipset.Header, error) {
	if k.h.bad != nil {
		return nil, k.h.bad
	}
	return k.Kernel.Headers(ctx)
}

func (k setsKernel) Apply(ctx context.Context, commands []ipset.Command) ([]error, error) {
	if k.h.bad != nil {
		return nil, k.h.bad
	}
	out := make([]error, len(commands))
	for i := range commands {
		c := commands[i : i+1]
		if c[0].Verb == ipset.Destroy && strings.Contains(k.h.rules[0].Dump()+k.h.rules[1].Dump(), "--match-set "+c[0].Name+" ") {
			out[i] = ipset.ErrBusy
			continue
		}
		res, err := k.Kernel.Apply(ctx, c)
		if err != nil {
			return nil, err
		}
		out[i] = res[0]
	}
	return out, nil
}

// agent is one life of what the guard needs.
func (h *host) agent() (guard *encapguard.Guard, sets *ipset.Reconciler, stop func()) {
	h.t.Helper()
	log := slog.New(slog.DiscardHandler)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	run := func(f func(context.Context) error) {
		wg.Go(func() {
			if err := f(ctx); err != nil {
				h.t.Error(err)
			}
		})
	}
	var rules [2]*iptables.Reconciler
	for i, family := range []iptables.Family{iptables.IPv4, iptables.IPv6} {
		r, err := iptables.New(iptables.Config{Family: family, Log: log, Kernel: rulesKernel{h.rules[i], h}, Resync: time.Hour})
		if err != nil {
			h.t.Fatal(err)
		}
		r.Set(iptables.Raw, iptables.ReversePath(iptables.Prefix))
		rules[i] = r
		run(r.Run)
	}
	sets, err := ipset.New(ipset.Config{Log: log, Owners: []string{encapguard.Owner}, Kernel: setsKernel{h.sets, h}, Resync: time.Hour, Glance: 5 * time.Millisecond})
	if err != nil {
		h.t.Fatal(err)
	}
	run(sets.Run)
	guard, err = encapguard.New(encapguard.Config{Log: log, Rules4: rules[0], Rules6: rules[1], Sets: sets,
		Forget: func() error {
			if h.chain(0) == "" {
				h.t.Error("connections are forgotten before the rules are in force")
			}
			if h.forgot.Add(1) == 2 {
				return errors.New("no conntrack") // tried again, and no reason to keep tunnels down
			}
			return nil
		}})
	if err != nil {
		h.t.Fatal(err)
	}
	run(guard.Run)
	for _, r := range rules {
		wait, done := context.WithTimeout(ctx, 10*time.Second)
		if err := r.WaitChains(wait, iptables.Raw, iptables.ReversePathChain); err != nil {
			h.t.Fatal(err)
		}
		done()
	}
	stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	h.t.Cleanup(stop)
	return guard, sets, stop
}

func wait(t *testing.T, g *encapguard.Guard) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err := g.Wait(ctx)
	if ctx.Err() != nil {
		t.Fatal("Wait took longer than 10 s")
	}
	return err
}

var marks = regexp.MustCompile(`-m comment --comment "?(cali:[A-Za-z0-9_-]{16}|[^"]*)"? `)

// chain lists the guard's rules without comments.
func (h *host) chain(i int) string {
	var out []string
	for l := range strings.Lines(h.rules[i].Dump()) {
		if _, spec, ok := strings.Cut(strings.TrimSpace(l), "-A cali-encap-guard "); ok {
			out = append(out, marks.ReplaceAllString(spec, ""))
		}
	}
	return strings.Join(out, "\n")
}

func (h *host) check(t *testing.T, v4, v6, sets string) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for {
		a, b, s := h.chain(0), h.chain(1), h.sets.Dump()
		if a == v4 && b == v6 && s == sets {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("IPv4:\n%s\nIPv6:\n%s\nsets:\n%s\nwant\n%s\n\n%s\n\n%s", a, b, s, v4, v6, sets)
		}
		time.Sleep(time.Millisecond)
	}
}

func prefixes(ss ...string) (out []netip.Prefix) {
	for _, s := range ss {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

const (
	ipip4  = "-i cali+ -p ipencap -j DROP\n-p ipencap -m set ! --match-set cali40all-hosts-net src -m addrtype --dst-type LOCAL -j DROP"
	vxlan4 = "-i cali+ -p udp -m udp --dport 4789 -j DROP\n-p udp -m udp --dport 4789 -m set ! --match-set cali40all-hosts-net src -m addrtype --dst-type LOCAL -j DROP"
	vxlan6 = "-i cali+ -p udp -m udp --dport 4790 -j DROP\n-p udp -m udp --dport 4790 -m set ! --match-set cali60all-hosts-net src -m addrtype --dst-type LOCAL -j DROP"
	set4   = "create cali40all-hosts-net hash:net family inet\nadd cali40all-hosts-net 192.0.2.1\nadd cali40all-hosts-net 192.0.2.2\n"
	set6   = "create cali60all-hosts-net hash:net family inet6\nadd cali60all-hosts-net 2001:db8::/64\n"
)

var (
	guard4 = model.EncapGuard{IPIP: true, VXLANPort: 4789, Sources: prefixes("192.0.2.1/32", "192.0.2.2/32")}
	guard6 = model.EncapGuard{VXLANPort: 4790, Sources: prefixes("2001:db8::/64")}
)

// TestLife goes through the states of a node, and through the lives of agents in each.
func TestLife(t *testing.T) {
	h := newHost(t)
	g, _, stop := h.agent()
	set := func(v4, v6 model.EncapGuard) {
		t.Helper()
		g.Set(v4, v6)
		if err := wait(t, g); err != nil {
			t.Fatal(err)
		}
	}
	h.check(t, "", "", "")
	set(guard4, guard6)
	h.check(t, ipip4+"\n"+vxlan4, vxlan6, set4+set6)

	// The pods of a node may be trusted.
	trusted := guard4
	trusted.PodsIPIP = true
	set(trusted, guard6)
	h.check(t, strings.TrimPrefix(ipip4, "-i cali+ -p ipencap -j DROP\n")+"\n"+vxlan4, vxlan6, set4+set6)
	trusted.PodsIPIP, trusted.PodsVXLAN = false, true
	set(trusted, guard6)
	h.check(t, ipip4+"\n"+strings.TrimPrefix(vxlan4, "-i cali+ -p udp -m udp --dport 4789 -j DROP\n"), vxlan6, set4+set6)

	// A node that comes or goes is one member.
	set(guard4, guard6)
	if n := h.forgot.Load(); n != 3 {
		t.Errorf("connections were to be forgotten %d times; it failed once, and twice IPIP of pods became forbidden", n)
	}
	h.sets.Log()
	h.rules[0].Scripts()
	more := guard4
	more.Sources = prefixes("192.0.2.1/32", "192.0.2.2/32", "192.0.2.3/32")
	set(more, guard6)
	set(guard4, guard6)
	if log := strings.Join(h.sets.Log(), ", "); log != "add cali40all-hosts-net 1, del cali40all-hosts-net 1" || len(h.rules[0].Scripts()) > 0 {
		t.Errorf("a node's coming and going wrote %q, and rules", log)
	}

	// The next agent changes nothing until it is told, and then nothing that is right.
	stop()
	h.sets.Log()
	for i := range h.rules {
		h.rules[i].Scripts()
	}
	next, sets, stop := h.agent()
	g = next
	h.check(t, ipip4+"\n"+vxlan4, vxlan6, set4+set6)
	set(guard4, guard6)
	h.check(t, ipip4+"\n"+vxlan4, vxlan6, set4+set6)
	for i := range h.rules {
		for _, s := range h.rules[i].Scripts() {
			if !strings.Contains(s, "\n-C ") {
				t.Errorf("a new agent wrote\n%s", s)
			}
		}
	}
	if log := h.sets.Log(); len(log) > 0 {
		t.Errorf("a new agent wrote %q", log)
	}

	// Another agent finds other tunnels, and a set of an older version.
	stop()
	if err := h.sets.Foreign("create cali40all-vxlan-net hash:net"); err != nil {
		t.Fatal(err)
	}
	g, sets, stop = h.agent()
	h.check(t, ipip4+"\n"+vxlan4, vxlan6, set4+"create cali40all-vxlan-net hash:net family inet\n"+set6)
	only := model.EncapGuard{IPIP: true, Sources: guard4.Sources}
	set(only, model.EncapGuard{})
	h.check(t, ipip4, "", set4)

	// And one finds none.
	stop()
	g, sets, _ = h.agent()
	set(model.EncapGuard{}, model.EncapGuard{})
	h.check(t, "", "", "")
	// It is said at the end of the round that took them away.
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		s := sets.Status()
		if s.Err == nil && s.Sets == 0 && s.Leaving == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%+v", s)
		}
	}
}

// TestNoSets: on a kernel without ipset nobody's tunnels are open, and once it has it, ours
// are.
func TestNoSets(t *testing.T) {
	h := newHost(t)
	h.bad = ipset.ErrUnsupported
	g, _, stop := h.agent()
	g.Set(guard4, model.EncapGuard{})
	if err := wait(t, g); !errors.Is(err, ipset.ErrUnsupported) || g.Err() == nil {
		t.Errorf("%v", err)
	}
	none := regexp.MustCompile(`-m set ! --match-set \S+ src `)
	h.check(t, none.ReplaceAllString(ipip4+"\n"+vxlan4, ""), "", "")
	stop()
	h.bad = nil
	g, _, _ = h.agent()
	g.Set(guard4, model.EncapGuard{})
	if err := wait(t, g); err != nil {
		t.Fatal(err)
	}
	h.check(t, ipip4+"\n"+vxlan4, "", set4)
}

// TestBadSource: an address that cannot be a member costs itself only, and is named.
func TestBadSource(t *testing.T) {
	h := newHost(t)
	g, _, _ := h.agent()
	bad := guard4
	bad.Sources = append(prefixes("2001:db8::1/128"), guard4.Sources...)
	g.Set(bad, model.EncapGuard{})
	if err := wait(t, g); err == nil || !strings.Contains(err.Error(), "cali40all-hosts-net: member 2001:db8::1") {
		t.Errorf("%v", err)
	}
	h.check(t, ipip4+"\n"+vxlan4, "", set4)
}

func TestConfig(t *testing.T) {
	if _, err := encapguard.New(encapguard.Config{}); err == nil || !strings.Contains(fmt.Sprint(err), "Config") {
		t.Errorf("%v", err)
	}
}
