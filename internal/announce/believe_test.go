package announce

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/causeway-net/causeway/internal/model"
)

var (
	addr    = netip.MustParseAddr
	testKey = bytes.Repeat([]byte{7}, MinKey)
)

// cluster is a snapshot of nodes n1, n2 ... at the addresses given, with the pool 10.9.0.0/16 and
// fd09::/64.
func cluster(at ...string) *model.Snapshot {
	s := &model.Snapshot{Pools: []model.Pool{
		{Name: "v4", CIDR: netip.MustParsePrefix("10.9.0.0/16"), AllowedUses: []model.Use{model.UseWorkload, model.UseTunnel}},
		{Name: "v6", CIDR: netip.MustParsePrefix("fd09::/64"), AllowedUses: []model.Use{model.UseWorkload}},
		{Name: "x", CIDR: netip.MustParsePrefix("10.10.0.0/16"), AllowedUses: []model.Use{model.UseLoadBalancer}},
	}}
	for i, text := range at {
		n := model.Node{Name: fmt.Sprintf("n%d", i+1)}
		for _, one := range strings.Fields(text) {
			if a := addr(one); a.Is4() {
				n.IPv4 = netip.PrefixFrom(a, 24)
			} else {
				n.IPv6 = netip.PrefixFrom(a, 64)
			}
		}
		s.Nodes = append(s.Nodes, n)
	}
	return s
}

func testPod(name string, in ...string) Pod {
	p := Pod{Namespace: "prod", Name: name, UID: "uid-" + name}
	for _, s := range in {
		p.Addresses = append(p.Addresses, addr(s))
	}
	return p
}

// listener is an Announcer that writes down what it delivers: "n1 prod/a uid-a [10.9.0.1]".
type listener struct {
	*Announcer
	got []string
}

func newListener(t testing.TB, node string) *listener {
	l := &listener{}
	var err error
	l.Announcer, err = New(Config{Node: node, Log: slog.New(slog.DiscardHandler), Deliver: func(node string, p Pod) {
		l.got = append(l.got, fmt.Sprintf("%s %s/%s %s %v", node, p.Namespace, p.Name, p.UID, p.Addresses))
	}})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// told returns what was delivered since it was last called.
func (l *listener) told() string {
	defer func() { l.got = nil }()
	return strings.Join(l.got, ", ")
}

// TestBelieved plays datagrams to a node: each that is not right disturbs nothing, and what is
// right is believed in between.
func TestBelieved(t *testing.T) {
	now := time.UnixMilli(1_800_000_000_000)
	snap := cluster("192.0.2.1", "192.0.2.2", "192.0.2.3")
	snap.Blocks = []model.Block{
		{CIDR: netip.MustParsePrefix("10.9.1.0/26"), Node: "n1", Lent: []model.Loan{{Addr: addr("10.9.1.5"), Node: "n3"}}},
		{CIDR: netip.MustParsePrefix("10.9.1.64/26"), Node: "n2"},
	}
	l := newListener(t, "n2")
	l.Set(snap)
	l.SetKey(testKey)

	h := header{boot: 1, made: now.UnixMilli(), node: "n1"}
	sealWith := func(h header, key []byte, pods ...Pod) []byte {
		b := begin(nil, h)
		for i := range pods {
			b = appendPod(b, &pods[i])
		}
		return seal(b, key)
	}
	good := func(t *testing.T) {
		t.Helper()
		h.sequence++
		name := fmt.Sprint(h.sequence)
		l.take(sealWith(h, testKey, testPod(name, "10.9.1.7", "fd09::7")), addr("192.0.2.1"), now)
		if got, want := l.told(), fmt.Sprintf("n1 prod/%s uid-%s [10.9.1.7 fd09::7]", name, name); got != want {
			t.Fatalf("a good datagram gives %q, want %q", got, want)
		}
	}
	good(t)
	refused := func(name, why string, b []byte, from string) {
		t.Helper()
		t.Run(name, func(t *testing.T) {
			before := l.Status().Refused[why]
			l.take(b, addr(from), now)
			if got := l.told(); got != "" {
				t.Errorf("it is believed: %s", got)
			}
			if n := l.Status().Refused[why] - before; n != 1 {
				t.Errorf("%d refused as %s, want 1: %v", n, why, l.Status().Refused)
			}
			good(t)
		})
	}
	next := func(change func(*header)) header {
		out := h
		out.sequence += 2
		if change != nil {
			change(&out)
		}
		return out
	}
	pod := testPod("x", "10.9.1.8")
	whole := sealWith(next(nil), testKey, pod)
	refused("no node's address", reasonStranger, whole, "192.0.2.77")
	refused("another node's address", reasonNode, whole, "192.0.2.3")
	refused("this node's own address", reasonStranger, whole, "192.0.2.2")
	refused("another key", reasonForged, sealWith(next(nil), bytes.Repeat([]byte{8}, 32), pod), "192.0.2.1")
	refused("no key", reasonForged, sealWith(next(nil), nil, pod), "192.0.2.1")
	refused("empty", reasonMalformed, nil, "192.0.2.1")
	refused("too long", reasonMalformed, sealWith(next(nil), testKey, make([]Pod, 300)...), "192.0.2.1")
	refused("another form", reasonMalformed, append([]byte("CWA2"), whole[4:]...), "192.0.2.1")
	for i := range whole {
		why := reasonForged
		if i < headerLen+1+macLen {
			why = reasonMalformed
		}
		refused(fmt.Sprintf("cut after %d bytes", i), why, whole[:i], "192.0.2.1")
	}
	for i := len(magic); i < len(whole); i++ {
		changed := bytes.Clone(whole)
		changed[i] ^= 1 << (i % 8)
		refused(fmt.Sprintf("byte %d changed", i), reasonForged, changed, "192.0.2.1")
	}
	refused("sealed, and cut before", reasonMalformed, seal(begin(nil, next(nil))[:headerLen+1], testKey), "192.0.2.1")
	refused("no sequence", reasonMalformed, sealWith(header{boot: 1, made: now.UnixMilli(), node: "n1"}, testKey, pod), "192.0.2.1")
	for name, p := range map[string]Pod{
		"no name": {Namespace: "a", UID: "u", Addresses: pod.Addresses}, "no UID": {Namespace: "a", Name: "b", Addresses: pod.Addresses},
		"no namespace": {Name: "b", UID: "u", Addresses: pod.Addresses}, "no address": testPod("y"),
		"two of a family": testPod("y", "10.9.1.7", "10.9.1.8"), "loopback": testPod("y", "127.0.0.1"), "mapped": testPod("y", "::ffff:10.9.1.7"),
	} {
		refused(name, reasonMalformed, sealWith(next(nil), testKey, pod, p), "192.0.2.1")
	}
	refused("old", reasonClock, sealWith(next(func(h *header) { h.made -= 121_000 }), testKey, pod), "192.0.2.1")
	refused("of the future", reasonClock, sealWith(next(func(h *header) { h.made += 121_000 }), testKey, pod), "192.0.2.1")
	refused("of no time", reasonClock, sealWith(next(func(h *header) { h.made = -1 << 63 }), testKey, pod), "192.0.2.1")
	refused("seen before", reasonReplayed, sealWith(header{boot: 1, sequence: 1, made: h.made, node: "n1"}, testKey, pod), "192.0.2.1")
	refused("of the boot before", reasonReplayed, sealWith(header{boot: 2, sequence: 1 << 60, made: h.made - 1, node: "n1"}, testKey, pod), "192.0.2.1")
	for name, p := range map[string]Pod{
		"of this node's block": testPod("y", "10.9.1.70"), "lent to another": testPod("y", "10.9.1.5"), "of no pool": testPod("y", "192.0.2.9"),
		"of a pool for other things": testPod("y", "10.10.0.1"), "one of two": testPod("y", "10.9.1.7", "fd08::1"),
	} {
		h.sequence++ // the datagram itself is right
		refused("address "+name, reasonAddress, sealWith(h, testKey, p), "192.0.2.1")
	}

	// What one pod says wrongly does not harm the next one; a borrower's and an unknown block's
	// addresses are believed.
	l.take(sealWith(header{boot: 5, sequence: 9, made: now.UnixMilli() - 90_000, node: "n3"}, testKey, testPod("a", "10.9.1.6"), testPod("b", "10.9.1.5"), testPod("c", "10.9.200.1")), addr("192.0.2.3"), now)
	if got := l.told(); got != "n3 prod/b uid-b [10.9.1.5], n3 prod/c uid-c [10.9.200.1]" {
		t.Errorf("%q is believed of a borrower", got)
	}
	// An agent that starts anew, after the wall clock was put back a little.
	l.take(sealWith(header{boot: 6, sequence: 1, made: now.UnixMilli() - 89_000, node: "n3"}, testKey, testPod("d", "10.9.200.2")), addr("192.0.2.3"), now)
	if got := l.told(); got != "n3 prod/d uid-d [10.9.200.2]" {
		t.Errorf("%q is believed of the next agent", got)
	}
	if err := l.Trouble(); err == nil {
		t.Error("refusals are no trouble")
	}
	l.Set(cluster("192.0.2.1", "192.0.2.2"))
	if len(l.senders) != 1 || len(l.refusals) != 1 {
		t.Errorf("%v and %v are kept of nodes that are gone", l.senders, l.refusals)
	}
	// Without a key nothing is believed.
	l.SetKey(nil)
	refusedNow := l.Status().Refused[reasonForged]
	l.take(sealWith(next(nil), nil, pod), addr("192.0.2.1"), now)
	if l.told() != "" || l.Status().Refused[reasonForged] != refusedNow+1 {
		t.Error("without a key something is believed")
	}
	if err := l.Trouble(); err == nil || !strings.Contains(err.Error(), "no key yet") {
		t.Errorf("without a key: %v", err)
	}
	l.SetKey(make([]byte, 5))
	if err := l.Trouble(); err == nil || !strings.Contains(err.Error(), "has 5 bytes; it must have 32") {
		t.Errorf("with a short key: %v", err)
	}
}

// TestDatagrams: pods are packed into as few datagrams as there is need of, none too long.
func TestDatagrams(t *testing.T) {
	a := newListener(t, "n1")
	long := strings.Repeat("x", 253)
	for _, tc := range []struct {
		node      string
		pods      int
		name      string
		datagrams int
	}{{"n1", 0, "web", 0}, {"n1", 1, "web", 1}, {"n1", 110, "web-5d8f7c9b6d-abcde", 10}, {long, 3, long, 2}} {
		a.cfg.Node = tc.node
		var pods []Pod
		for i := range tc.pods {
			pods = append(pods, Pod{Namespace: "team-1", Name: tc.name, UID: fmt.Sprintf("%036d", i), Addresses: []netip.Addr{addr("10.9.0.1"), addr("fd09::1")}})
		}
		out := a.datagrams(pods, testKey, time.Now())
		if len(out) != tc.datagrams {
			t.Errorf("%d pods: %d datagrams, want %d", tc.pods, len(out), tc.datagrams)
		}
		var got []Pod
		for _, b := range out {
			h, some, err := open(b, [][]byte{make([]byte, 32), testKey})
			if err != nil || h.node != tc.node || len(b) > maxDatagram {
				t.Fatalf("%d bytes of %q: %v", len(b), h.node, err)
			}
			got = append(got, some...)
		}
		if fmt.Sprint(got) != fmt.Sprint(pods) {
			t.Errorf("%v arrive, want %v", got, pods)
		}
	}
}

// FuzzParse: whatever stands in a datagram, reading it neither fails otherwise than by an error
// nor makes something up: what was read is written the same.
func FuzzParse(f *testing.F) {
	p := testPod("a", "10.9.0.1", "fd09::1")
	f.Add(appendPod(begin(nil, header{1, 2, 3, "n1"}), &p))
	f.Add(begin(nil, header{1, 2, 3, "n1"}))
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, pods, err := parse(b)
		if err != nil {
			return
		}
		again := begin(nil, h)
		for i := range pods {
			again = appendPod(again, &pods[i])
		}
		if !bytes.Equal(again, b) {
			t.Errorf("%q was read, and is written as %q", b, again)
		}
	})
}

// TestKeyring: a change of key that reaches one node up to keySpread before the other loses
// nothing either way.
func TestKeyring(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys := [][]byte{bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32), bytes.Repeat([]byte{3}, 32)}
		var early, late keyring
		agree := func() {
			t.Helper()
			for _, x := range [][2]*keyring{{&early, &late}, {&late, &early}} {
				found := false
				for _, k := range x[1].accepted(time.Now()) {
					found = found || bytes.Equal(k, x[0].sealing(time.Now()))
				}
				if !found {
					t.Fatalf("after %s a key is used that is not accepted", time.Now())
				}
			}
		}
		early.set(keys[0], time.Now())
		late.set(keys[0], time.Now())
		for _, key := range keys[1:] {
			early.set(key, time.Now())
			agree()
			for range 29 {
				time.Sleep(time.Second)
				agree()
			}
			late.set(key, time.Now())
			for range 400 {
				late.set(key, time.Now()) // told again
				agree()
				time.Sleep(time.Second)
			}
			if early.state(time.Now()) != "known" || !bytes.Equal(late.sealing(time.Now()), key) {
				t.Fatal("the change does not end")
			}
		}
		early.set(keys[0], time.Now())
		early.set(keys[2], time.Now()) // and back
		if early.state(time.Now()) != "known" {
			t.Error("a change that was taken back goes on")
		}
		if early.set(nil, time.Now()); early.sealing(time.Now()) != nil || len(early.accepted(time.Now())) > 0 {
			t.Error("a key that was taken away is used")
		}
	})
}

// TestQueue: each pod is told three times, with others where that is near.
func TestQueue(t *testing.T) {
	start := time.UnixMilli(0)
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	var q queue
	var out []string
	run := func(until int) string {
		out = nil
		for {
			next, ok := q.next()
			if !ok || next.After(at(until)) {
				return strings.Join(out, " ")
			}
			var names []string
			for _, p := range q.take(next) {
				names = append(names, p.Name)
			}
			out = append(out, fmt.Sprintf("%d:%s", next.Sub(start).Milliseconds(), strings.Join(names, ",")))
		}
	}
	if q.take(at(0)) != nil {
		t.Error("an empty queue gives something")
	}
	q.add(Pod{Name: "a"}, at(0))
	q.add(Pod{Name: "b"}, at(1))
	if got := run(1000); got != "2:a,b 42:a,b 152:a,b" {
		t.Error(got)
	}
	q.add(Pod{Name: "a"}, at(1000))
	if got := run(1098); got != "1002:a 1042:a" {
		t.Error(got)
	}
	q.add(Pod{Name: "b"}, at(1099)) // a goes along, 51 ms early
	if got := run(1200); got != "1101:a,b 1141:b" {
		t.Error(got)
	}
	q.add(Pod{Name: "b"}, at(1230)) // it was made anew: what was to be told is not told any more
	if got := run(2000); got != "1232:b 1272:b 1382:b" {
		t.Error(got)
	}
}
