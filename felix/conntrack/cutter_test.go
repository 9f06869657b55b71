package conntrack_test

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/causeway-net/causeway/felix/conntrack"
)

// table is a Kernel in memory.
type table struct {
	mu      sync.Mutex
	flows   map[string]*conntrack.Flow
	masters map[string]string // of expected flows, by String
	asked   [][]netip.Addr    // each read, sorted; nil: all
	broken  error
	// onMark, once, runs before marks are changed.
	onMark func(*table)
	own    map[netip.Addr]struct{}
}

func (k *table) add(f conntrack.Flow) {
	if !f.First.IsValid() {
		f.First = f.Destination
	}
	f.ReplyTo = f.Source
	k.flows[f.Source.String()] = &f
}

func (k *table) Flows(_ context.Context, addrs []netip.Addr, each func(*conntrack.Flow)) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	slices.SortFunc(addrs, netip.Addr.Compare)
	k.asked = append(k.asked, addrs)
	if k.broken != nil {
		return k.broken
	}
	for _, f := range k.flows {
		if addrs == nil || slices.Contains(addrs, f.Source.Addr()) || slices.Contains(addrs, f.Destination.Addr()) {
			c := *f
			each(&c)
		}
	}
	return nil
}

func (k *table) Mark(_ context.Context, mask uint32, set, clear []conntrack.Flow) (others []conntrack.Flow, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if f := k.onMark; f != nil {
		k.onMark = nil
		f(k)
	}
	for i, f := range slices.Concat(set, clear) {
		is, ok := k.flows[f.Source.String()]
		if !ok {
			continue
		}
		is.Mark &^= mask
		if i < len(set) {
			is.Mark |= mask
		}
		if is.Destination != f.Destination {
			others = append(others, *is)
		}
	}
	return others, nil
}

func (k *table) Master(_ context.Context, f *conntrack.Flow) (conntrack.Flow, bool, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	m, ok := k.flows[k.masters[f.Source.String()]]
	if !ok {
		return conntrack.Flow{}, false, nil
	}
	return *m, true, nil
}

func (k *table) Own(context.Context) (map[netip.Addr]struct{}, error) { return k.own, nil }

// marked are the sources of the flows that bear the bit.
func (k *table) marked() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []string
	for s, f := range k.flows {
		if f.Mark&bit != 0 {
			out = append(out, s)
		}
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func (k *table) reads() [][]netip.Addr {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.asked)
}

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func newTable(flows ...conntrack.Flow) *table {
	k := &table{flows: map[string]*conntrack.Flow{}, masters: map[string]string{}, own: map[netip.Addr]struct{}{}}
	for _, f := range flows {
		k.add(f)
	}
	return k
}

func TestNew(t *testing.T) {
	log, verdict := slog.New(slog.DiscardHandler), func(*conntrack.Flow) conntrack.Verdict { return conntrack.Pass }
	for want, cfg := range map[string]conntrack.Config{
		"Log":                    {Bit: bit, Verdict: verdict},
		"Verdict":                {Log: log, Bit: bit},
		"Bit is 0x3; it must be": {Log: log, Bit: 3, Verdict: verdict},
		"Bit is 0x0; it must be": {Log: log, Verdict: verdict},
	} {
		if _, err := conntrack.New(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// TestScope: what a poke names is looked at, and once more a little later; what came
// together is one round; a failure is tried again with all that it was about.
func TestScope(t *testing.T) {
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	k := newTable(
		conntrack.Flow{Source: ap("10.0.0.1:1"), Destination: ap("10.0.0.9:80")},
		conntrack.Flow{Source: ap("10.0.0.2:1"), Destination: ap("10.0.0.9:80"), Mark: bit | 1},
		conntrack.Flow{Source: ap("10.0.0.3:1"), Destination: ap("10.0.0.9:80"), Mark: bit | 2},
		conntrack.Flow{Source: ap("192.0.2.1:1"), Destination: ap("192.0.2.2:80"), Mark: bit},
	)
	p := &oracle{}
	p.forbid(func(f *conntrack.Flow) bool { return f.Source.Addr() == a })
	c := run(t, conntrack.Config{Log: slog.New(slog.DiscardHandler), Bit: bit, Kernel: k, Verdict: func(f *conntrack.Flow) conntrack.Verdict {
		if f.Destination.Addr() == netip.MustParseAddr("192.0.2.2") {
			return conntrack.Leave
		}
		return p.verdict(f)
	}})
	c.InSync()
	until(t, "two rounds over all", func() bool { return len(k.reads()) == 2 })
	if got, want := k.marked(), "10.0.0.1:1 192.0.2.1:1"; got != want {
		t.Errorf("marked: %s, want %s", got, want)
	}
	k.mu.Lock()
	if m := k.flows["10.0.0.2:1"].Mark; m != 1 {
		t.Errorf("mark %#x: another's bit is gone", m)
	}
	k.asked, k.broken = nil, errors.New("broken")
	k.mu.Unlock()

	c.Poke(b)
	until(t, "failures", func() bool { return c.Stats().Failures > 1 })
	p.forbid(func(f *conntrack.Flow) bool { return f.Source.Addr() == b })
	c.Poke(a)
	k.mu.Lock()
	k.asked, k.broken = nil, nil
	k.mu.Unlock()
	until(t, "both again", func() bool { return k.marked() == "10.0.0.2:1 192.0.2.1:1" })
	until(t, "the second look", func() bool {
		r := k.reads()
		return len(r) > 1 && slices.Equal(r[len(r)-1], []netip.Addr{a, b})
	})
	if s := c.Stats(); s.Cut != 2 || s.Cleared != 3 {
		t.Errorf("%+v", s)
	}
}

// TestSecondLook: an entry of before the change that shows itself only after the table
// was read.
func TestSecondLook(t *testing.T) {
	k := newTable()
	p := &oracle{}
	p.forbid(func(*conntrack.Flow) bool { return true })
	c := run(t, conntrack.Config{Log: slog.New(slog.DiscardHandler), Bit: bit, Kernel: k, Verdict: p.verdict})
	c.InSync()
	until(t, "a round", func() bool { return c.Stats().Rounds == 1 })
	k.mu.Lock()
	k.add(conntrack.Flow{Source: ap("10.0.0.1:1"), Destination: ap("10.0.0.9:80")})
	k.mu.Unlock()
	since := time.Now()
	until(t, "the mark", func() bool { return k.marked() != "" })
	if d := time.Since(since); d > time.Second {
		t.Errorf("after %v", d)
	}
}

// TestHostsOwn: the verdict is told what begins and what ends on the host.
func TestHostsOwn(t *testing.T) {
	k := newTable(
		conntrack.Flow{Source: ap("10.0.0.1:1"), Destination: ap("10.0.0.9:80")},
		conntrack.Flow{Source: ap("192.0.2.1:1"), Destination: ap("10.0.0.9:80")},
		conntrack.Flow{Source: ap("10.0.0.1:2"), Destination: ap("192.0.2.1:80")})
	k.own[netip.MustParseAddr("192.0.2.1")] = struct{}{}
	c := run(t, conntrack.Config{Log: slog.New(slog.DiscardHandler), Bit: bit, Kernel: k, Verdict: func(f *conntrack.Flow) conntrack.Verdict {
		if f.FromHost || f.ToHost {
			return conntrack.Pass
		}
		return conntrack.Cut
	}})
	c.InSync()
	until(t, "marks", func() bool { return c.Stats().Rounds > 0 })
	if got := k.marked(); got != "10.0.0.1:1" {
		t.Errorf("marked: %s", got)
	}
}

// TestReplaced: between reading and marking a flow ended, and another one began between
// the same ends that a Service sent elsewhere.
func TestReplaced(t *testing.T) {
	forbidden := ap("10.0.0.9:80")
	k := newTable(conntrack.Flow{Source: ap("10.0.0.1:1"), First: ap("10.96.0.1:80"), Destination: forbidden})
	k.onMark = func(k *table) {
		k.add(conntrack.Flow{Source: ap("10.0.0.1:1"), First: ap("10.96.0.1:80"), Destination: ap("10.0.0.8:80")})
	}
	p := &oracle{}
	p.forbid(func(f *conntrack.Flow) bool { return f.Destination == forbidden })
	c := run(t, conntrack.Config{Log: slog.New(slog.DiscardHandler), Bit: bit, Kernel: k, Verdict: p.verdict})
	c.InSync()
	until(t, "a round", func() bool { return c.Stats().Rounds > 0 })
	if got := k.marked(); got != "" {
		t.Errorf("the other flow bears the mark: %s", got)
	}
}
