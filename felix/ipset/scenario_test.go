package ipset_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/causeway-net/causeway/felix/ipset"
)

// TestTypes: every type in both families stands as declared, /0 as its halves, and what was
// there before and is not ours stays.
func TestTypes(t *testing.T) {
	rigs(t, func(t *testing.T, r *rig) {
		r.must(t, "create theirs hash:ip", "add theirs 10.9.9.9", "create cali5 hash:net")
		rec, _ := r.start(t, nil)
		port := func(prefix string, proto uint8, port uint16) ipset.Member {
			m := ips(prefix)[0]
			m.Protocol, m.Port = proto, port
			return m
		}
		rec.Replace(
			ipset.Set{Name: "cali40a", Type: ipset.HashIP, Family: ipset.IPv4, Members: ips("10.0.0.1", "10.0.0.2")},
			ipset.Set{Name: "cali40n", Type: ipset.HashNet, Family: ipset.IPv4, Members: ips("0.0.0.0/0", "10.1.2.3/8", "10.0.0.1")},
			ipset.Set{Name: "cali40p", Type: ipset.HashIPPort, Family: ipset.IPv4, Members: []ipset.Member{
				port("10.0.0.1", 6, 80), port("10.0.0.1", 17, 53), port("10.0.0.1", 132, 7)}},
			ipset.Set{Name: "cali40q", Type: ipset.HashNetPort, Family: ipset.IPv4, Members: []ipset.Member{port("0.0.0.0/0", 6, 443)}},
			ipset.Set{Name: "cali60a", Type: ipset.HashIP, Family: ipset.IPv6, Members: ips("fd00::1")},
			ipset.Set{Name: "cali60n", Type: ipset.HashNet, Family: ipset.IPv6, Members: ips("::/0", "fd00::/8")},
			ipset.Set{Name: "cali60p", Type: ipset.HashIPPort, Family: ipset.IPv6, Members: []ipset.Member{port("fd00::1", 17, 65535)}},
			ipset.Set{Name: "cali60empty", Type: ipset.HashNetPort, Family: ipset.IPv6},
			ipset.Set{Name: "cali40i", Type: ipset.HashNetIface, Family: ipset.IPv4, Members: []ipset.Member{
				on("0.0.0.0/0", "eth0"), on("10.0.0.1", "cali0123456789a"), on("10.0.0.1", "eth0"), on("10.1.2.3/8", "a-b_c.d%1")}},
			ipset.Set{Name: "cali60i", Type: ipset.HashNetIface, Family: ipset.IPv6, Members: []ipset.Member{
				on("::/0", "eth0"), on("fe80::/64", "eth0"), on("fd00::1", "cali0123456789a")}},
		)
		wait(t, rec, "cali40a", "cali60empty")
		rec.InSync("test")
		wait(t, rec)
		all := []string{
			"create cali40a hash:ip family inet", "add cali40a 10.0.0.1", "add cali40a 10.0.0.2",
			"create cali40i hash:net,iface family inet", "add cali40i 0.0.0.0/0,eth0", "add cali40i 10.0.0.0/8,a-b_c.d%1",
			"add cali40i 10.0.0.1,cali0123456789a", "add cali40i 10.0.0.1,eth0",
			"create cali40n hash:net family inet", "add cali40n 0.0.0.0/1", "add cali40n 10.0.0.0/8", "add cali40n 10.0.0.1", "add cali40n 128.0.0.0/1",
			"create cali40p hash:ip,port family inet", "add cali40p 10.0.0.1,sctp:7", "add cali40p 10.0.0.1,tcp:80", "add cali40p 10.0.0.1,udp:53",
			"create cali40q hash:net,port family inet", "add cali40q 0.0.0.0/1,tcp:443", "add cali40q 128.0.0.0/1,tcp:443",
			"create cali5 hash:net family inet",
			"create cali60a hash:ip family inet6", "add cali60a fd00::1",
			"create cali60empty hash:net,port family inet6",
			"create cali60i hash:net,iface family inet6", "add cali60i ::/0,eth0", "add cali60i fd00::1,cali0123456789a", "add cali60i fe80::/64,eth0",
			"create cali60n hash:net family inet6", "add cali60n 8000::/1", "add cali60n ::/1", "add cali60n fd00::/8",
			"create cali60p hash:ip,port family inet6", "add cali60p fd00::1,udp:65535",
			"create theirs hash:ip family inet", "add theirs 10.9.9.9",
		}
		r.is(t, all...)
		if s := rec.Status(); s.Sets != 10 || s.Members != 23 || s.Err != nil || s.Healed != 0 || s.Leaving != 0 {
			t.Errorf("status %+v", s)
		}
		// A half that is declared itself stays when the whole goes.
		rec.Update("cali40n", ips("128.0.0.0/1"), nil)
		rec.Update("cali40n", nil, ips("0.0.0.0/0"))
		wait(t, rec)
		r.is(t, slices.DeleteFunc(slices.Clone(all), func(s string) bool { return s == "add cali40n 0.0.0.0/1" })...)
	})
}

// TestDelta: only what differs is written, in place, additions first.
func TestDelta(t *testing.T) {
	r := fakeRig()
	rec, _ := r.start(t, nil)
	rec.Replace(ipset.Set{Name: "cali40a", Type: ipset.HashIP, Family: ipset.IPv4, Members: ips("10.0.0.1", "10.0.0.2", "10.0.0.3")})
	wait(t, rec)
	r.fake.Log()
	for _, tt := range []struct {
		name   string
		change func()
		want   string
	}{
		{"the same", func() {
			rec.Replace(ipset.Set{Name: "cali40a", Type: ipset.HashIP, Family: ipset.IPv4, Members: ips("10.0.0.3", "10.0.0.2", "10.0.0.1")})
		}, ""},
		{"one more", func() { rec.Update("cali40a", ips("10.0.0.4"), nil) }, "add cali40a 1"},
		{"there already", func() { rec.Update("cali40a", ips("10.0.0.4"), ips("10.7.7.7")) }, ""},
		{"both lists", func() { rec.Update("cali40a", ips("10.0.0.5"), ips("10.0.0.4", "10.0.0.5")) }, "add cali40a 1, del cali40a 1"},
		{"there and back", func() { rec.Update("cali40a", ips("10.0.0.9"), nil); rec.Update("cali40a", nil, ips("10.0.0.9")) }, ""},
		{"others", func() {
			rec.Replace(ipset.Set{Name: "cali40a", Type: ipset.HashIP, Family: ipset.IPv4, Members: ips("10.0.0.1", "10.0.0.8")})
		}, "add cali40a 1, del cali40a 3"},
		{"deleted", func() { rec.Delete("cali40a") }, "destroy cali40a"},
	} {
		tt.change()
		wait(t, rec)
		// What comes and goes between two rounds may be written, if a round lies between.
		got := strings.Join(r.fake.Log(), ", ")
		if got != tt.want && !(tt.name == "there and back" && got == "add cali40a 1, del cali40a 1") {
			t.Errorf("%s: written %q, want %q", tt.name, got, tt.want)
		}
	}
}

// TestHeal: what others do to our sets is noticed at the next look and undone; what does
// not show in a header is put right at the resync.
func TestHeal(t *testing.T) {
	all := []string{
		"create cali40a hash:ip family inet", "add cali40a 10.0.0.1", "add cali40a 10.0.0.2",
		"create cali40i hash:net,iface family inet", "add cali40i 10.0.0.1,eth0",
		"create cali40n hash:net family inet", "add cali40n 10.0.0.0/8", "add cali40n 11.0.0.0/8",
	}
	declare := func(t *testing.T, rec *ipset.Reconciler) {
		t.Helper()
		rec.Replace(
			ipset.Set{Name: "cali40a", Type: ipset.HashIP, Family: ipset.IPv4, Members: ips("10.0.0.1", "10.0.0.2")},
			ipset.Set{Name: "cali40n", Type: ipset.HashNet, Family: ipset.IPv4, Members: ips("10.0.0.0/8", "11.0.0.0/8")},
			ipset.Set{Name: "cali40i", Type: ipset.HashNetIface, Family: ipset.IPv4, Members: []ipset.Member{on("10.0.0.1", "eth0")}},
		)
		rec.InSync("test")
		wait(t, rec)
	}
	counted := func(t *testing.T, rec *ipset.Reconciler, damage []string, before uint64) {
		t.Helper()
		eventually(t, func() string {
			s := rec.Status()
			if s.Healed == before && !strings.Contains(damage[0], "left") && !strings.Contains(damage[0], "~new") {
				return fmt.Sprintf("%v: not counted as healed", damage)
			}
			if s.Err != nil {
				return s.Err.Error()
			}
			return ""
		})
	}
	rigs(t, func(t *testing.T, r *rig) {
		rec, stop := r.start(t, nil)
		declare(t, rec)
		for _, damage := range [][]string{
			{"flush cali40a"}, {"destroy cali40a"}, {"add cali40a 10.0.0.77"}, {"del cali40n 10.0.0.0/8"},
			{"add cali40i 10.0.0.2,eth0"}, {"flush cali40i"}, {"create cali40left hash:net"}, {"create cali40~new hash:net"},
		} {
			before := rec.Status().Healed
			r.must(t, damage...)
			r.becomes(t, all...)
			counted(t, rec, damage, before)
		}
		stop()
		// These take several commands, between which nobody is to look.
		rec, _ = r.start(t, func(c *ipset.Config) { c.Glance = time.Hour })
		declare(t, rec)
		for _, damage := range [][]string{
			{"destroy cali40n", "create cali40n hash:ip", "add cali40n 10.0.0.1"},
			{"destroy cali40a", "create cali40a hash:ip timeout 600", "add cali40a 10.0.0.1", "add cali40a 10.0.0.2"},
			{"destroy cali40a", "create cali40a hash:ip family inet6"},
			{"destroy cali40n", "create cali40n hash:net maxelem 1"},
			{"del cali40a 10.0.0.1", "add cali40a 10.0.0.7"},
			{"del cali40n 10.0.0.0/8", "add cali40n 10.0.0.0/8 nomatch"},
			{"del cali40n 10.0.0.0/8", "add cali40n 12.0.0.0/8 nomatch"},
			{"del cali40i 10.0.0.1,eth0", "add cali40i 10.0.0.1,eth1"},
			{"del cali40i 10.0.0.1,eth0", "add cali40i 10.0.0.1,eth0 nomatch"},
		} {
			before := rec.Status().Healed
			r.must(t, damage...)
			rec.PokeResync()
			r.becomes(t, all...)
			counted(t, rec, damage, before)
		}
	})
}

// TestStart: a new agent adopts what stands and prunes nothing before all owners have
// spoken; what a rule still refers to goes when the rule has gone, without an error.
func TestStart(t *testing.T) {
	rigs(t, func(t *testing.T, r *rig) {
		r.must(t, "create cali40a hash:ip", "add cali40a 10.0.0.1", "add cali40a 10.0.0.2",
			"create cali40old hash:net", "add cali40old 10.0.0.0/8", "create cali60older hash:net family inet6", "create theirs hash:net")
		r.refer("cali40old")
		rec, _ := r.start(t, func(c *ipset.Config) { c.Owners = []string{"one", "other"} })
		rec.Replace(ipset.Set{Name: "cali40a", Type: ipset.HashIP, Family: ipset.IPv4, Members: ips("10.0.0.2", "10.0.0.3")})
		rec.InSync("one")
		wait(t, rec)
		adopted := []string{"create cali40a hash:ip family inet", "add cali40a 10.0.0.2", "add cali40a 10.0.0.3"}
		old := []string{"create cali40old hash:net family inet", "add cali40old 10.0.0.0/8"}
		older := []string{"create cali60older hash:net family inet6"}
		theirs := []string{"create theirs hash:net family inet"}
		r.is(t, slices.Concat(adopted, old, older, theirs)...)
		if s := rec.Status(); s.Healed != 0 || s.Leaving != 2 {
			t.Errorf("status %+v", s)
		}
		if r.fake != nil {
			if log := strings.Join(r.fake.Log(), ", "); log != "add cali40a 1, del cali40a 1" {
				t.Errorf("adopted with %s", log)
			}
		}
		rec.InSync("other")
		r.becomes(t, slices.Concat(adopted, old, theirs)...)
		if err := rec.Status().Err; err != nil {
			t.Errorf("a set that a rule refers to is an error: %v", err)
		}
		r.release("cali40old")
		r.becomes(t, slices.Concat(adopted, theirs)...)
	})
}

// TestDeleteBeforeTheRule: a deleted set keeps its members as long as a rule refers to it,
// and is taken up again where it stands.
func TestDeleteBeforeTheRule(t *testing.T) {
	rigs(t, func(t *testing.T, r *rig) {
		rec, _ := r.start(t, nil)
		set := ipset.Set{Name: "cali40a", Type: ipset.HashIP, Family: ipset.IPv4, Members: ips("10.0.0.1")}
		rec.Replace(set)
		wait(t, rec)
		r.refer("cali40a")
		rec.Delete("cali40a")
		wait(t, rec)
		stands := []string{"create cali40a hash:ip family inet", "add cali40a 10.0.0.1"}
		r.is(t, stands...)
		if err := waitErr(t, rec, "cali40a"); err == nil {
			t.Error("Wait knows a deleted set")
		}
		rec.Replace(set)
		wait(t, rec, "cali40a")
		r.is(t, stands...)
		rec.Delete("cali40a")
		wait(t, rec)
		r.release("cali40a")
		r.becomes(t)
		rec.Replace(set)
		rec.Delete("cali40a")
		rec.Replace(set)
		wait(t, rec, "cali40a")
		r.becomes(t, stands...)
	})
}

// TestGrow: a set that outgrows its limit is built anew and swapped in under the rule that
// refers to it, full at every moment.
func TestGrow(t *testing.T) {
	rigs(t, func(t *testing.T, r *rig) {
		rec, _ := r.start(t, func(c *ipset.Config) { c.MaxElem = 4 })
		rec.Replace(ipset.Set{Name: "cali40a", Type: ipset.HashIP, Family: ipset.IPv4, Members: ips("10.0.0.1", "10.0.0.2")})
		wait(t, rec)
		r.refer("cali40a")
		rec.Update("cali40a", ips("10.0.0.3", "10.0.0.4"), ips("10.0.0.1"))
		wait(t, rec)
		if r.fake != nil {
			if log := strings.Join(r.fake.Log(), ", "); strings.Contains(log, "swap") {
				t.Errorf("a change that fits was not made in place: %s", log)
			}
		}
		want := []string{"create cali40a hash:ip family inet"}
		var more []ipset.Member
		for i := range 50 {
			more = append(more, ips(fmt.Sprintf("10.0.1.%d", i))...)
			want = append(want, fmt.Sprintf("add cali40a 10.0.1.%d", i))
		}
		want = append(want, "add cali40a 10.0.0.2", "add cali40a 10.0.0.3", "add cali40a 10.0.0.4")
		slices.Sort(want[1:])
		rec.Update("cali40a", more, nil)
		wait(t, rec)
		r.is(t, want...)
		if r.fake != nil {
			if log := strings.Join(r.fake.Log(), ", "); log != "create cali40~new hash:ip IPv4 128, add cali40~new 53, swap cali40~new cali40a, destroy cali40~new" {
				t.Errorf("grown by %s", log)
			}
		}
		rec.Delete("cali40a")
		r.release("cali40a")
		r.becomes(t)
	})
}

// TestRefused: a bad set or member keeps nobody else out, is named, and comes in when it is
// mended.
func TestRefused(t *testing.T) {
	rigs(t, func(t *testing.T, r *rig) {
		rec, _ := r.start(t, nil)
		udp := ips("10.0.0.1")[0]
		udp.Protocol, udp.Port = 17, 53
		rec.Replace(
			ipset.Set{Name: "cali40a", Type: ipset.HashIP, Family: ipset.IPv4, Members: append(ips("10.0.0.1", "0.0.0.0", "10.0.0.2", "fd00::1", "10.0.0.0/8"), udp, ipset.Member{})},
			ipset.Set{Name: "cali40b", Type: ipset.HashIP, Family: ipset.IPv4, Members: ips("10.0.0.3")},
			ipset.Set{Name: "theirs", Type: ipset.HashIP, Family: ipset.IPv4},
			ipset.Set{Name: "cali40" + strings.Repeat("x", 26), Type: ipset.HashIP, Family: ipset.IPv4},
			ipset.Set{Name: "cali40t", Type: "list:set", Family: ipset.IPv4},
			ipset.Set{Name: "cali40f", Type: ipset.HashIP},
		)
		rec.Update("cali40never", ips("10.0.0.1"), nil)
		wait(t, rec, "cali40b")
		for name, want := range map[string]string{
			"cali40a": "and 4 more are left out", "theirs": "must begin with", "cali40" + strings.Repeat("x", 26): "32 bytes",
			"cali40t": "list:set", "cali40f": "family 0", "cali40never": "before it was declared", "cali40unheard": "never declared",
		} {
			if err := waitErr(t, rec, name); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), name) {
				t.Errorf("%s: %v, want %q", name, err, want)
			}
		}
		r.is(t, "create cali40a hash:ip family inet", "add cali40a 10.0.0.1", "add cali40a 10.0.0.2", "create cali40b hash:ip family inet", "add cali40b 10.0.0.3")
		rec.Update("cali40a", nil, append(ips("0.0.0.0", "fd00::1", "10.0.0.0/8"), udp, ipset.Member{}))
		wait(t, rec, "cali40a")
		rec.Delete("theirs", "cali40"+strings.Repeat("x", 26), "cali40t", "cali40f", "cali40never")
		wait(t, rec)
	})
}

// TestWrongType: a set of another type under our name that a rule refers to is named as
// what keeps ours out, and ours comes when the rule has gone.
func TestWrongType(t *testing.T) {
	rigs(t, func(t *testing.T, r *rig) {
		r.must(t, "create cali40a hash:net", "add cali40a 10.0.0.0/8")
		r.refer("cali40a")
		rec, _ := r.start(t, nil)
		rec.Replace(ipset.Set{Name: "cali40a", Type: ipset.HashIP, Family: ipset.IPv4, Members: ips("10.0.0.1")})
		if err := waitErr(t, rec, "cali40a"); err == nil || !errors.Is(err, ipset.ErrBusy) || !strings.Contains(err.Error(), "hash:net") {
			t.Errorf("%v", err)
		}
		r.is(t, "create cali40a hash:net family inet", "add cali40a 10.0.0.0/8")
		r.release("cali40a")
		r.becomes(t, "create cali40a hash:ip family inet", "add cali40a 10.0.0.1")
		eventually(t, func() string {
			if err := waitErr(t, rec, "cali40a"); err != nil {
				return err.Error()
			}
			return ""
		})
		// Declared with another type later on: unreferenced, it is made anew at once.
		rec.Replace(ipset.Set{Name: "cali40a", Type: ipset.HashNet, Family: ipset.IPv6, Members: ips("fd00::/8")})
		wait(t, rec, "cali40a")
		r.is(t, "create cali40a hash:net family inet6", "add cali40a fd00::/8")
	})
}

// TestTrouble: when the way to the kernel breaks, everything is read again and put right.
func TestTrouble(t *testing.T) {
	r := fakeRig()
	rec, _ := r.start(t, nil)
	broken := errors.New("no way")
	r.fake.Fail(broken)
	rec.Replace(ipset.Set{Name: "cali40a", Type: ipset.HashIP, Family: ipset.IPv4, Members: ips("10.0.0.1")})
	eventually(t, func() string {
		if err := waitErr(t, rec, "cali40a"); err != nil {
			return err.Error()
		}
		return ""
	})
	for n := range 4 {
		for range n {
			r.fake.Fail(nil)
		}
		r.fake.Fail(broken)
		rec.Update("cali40a", ips(fmt.Sprintf("10.0.1.%d", n)), nil)
		eventually(t, func() string {
			if err := waitErr(t, rec, "cali40a"); err != nil {
				return err.Error()
			}
			return ""
		})
	}
	r.becomes(t, "create cali40a hash:ip family inet", "add cali40a 10.0.0.1", "add cali40a 10.0.1.0", "add cali40a 10.0.1.1", "add cali40a 10.0.1.2", "add cali40a 10.0.1.3")
}

// TestMany: members in the number that needs several messages and many reads.
func TestMany(t *testing.T) {
	r := realRig(t)
	rec, stop := r.start(t, nil)
	var members []ipset.Member
	for i := range 20_000 {
		members = append(members, ipset.Member{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 32)})
	}
	rec.Replace(ipset.Set{Name: "cali40a", Type: ipset.HashIP, Family: ipset.IPv4, Members: members})
	// The one that the kernel refuses stands in the middle of a message.
	bad := slices.Insert(slices.Clone(members[1:]), 7777, ips("0.0.0.0")...)
	rec.Replace(ipset.Set{Name: "cali40b", Type: ipset.HashIP, Family: ipset.IPv4, Members: bad})
	wait(t, rec, "cali40a")
	if err := waitErr(t, rec, "cali40b"); err == nil || !strings.Contains(err.Error(), "member 0.0.0.0") {
		t.Errorf("%v", err)
	}
	if got := strings.Count(r.dump(), "add cali40a "); got != 19_999+1 {
		t.Errorf("cali40a has %d members", got)
	}
	if got := strings.Count(r.dump(), "add cali40b "); got != 19_999 {
		t.Errorf("cali40b has %d members", got)
	}
	stop()
	rec, _ = r.start(t, nil)
	rec.Replace(ipset.Set{Name: "cali40a", Type: ipset.HashIP, Family: ipset.IPv4, Members: members[:10_000]})
	wait(t, rec)
	rec.InSync("test")
	eventually(t, func() string {
		if got := strings.Count(r.dump(), "add "); got != 10_000 {
			return fmt.Sprintf("%d members", got)
		}
		return ""
	})
	if s := rec.Status(); s.Written != 10_000+1 && s.Written != 10_000 {
		t.Errorf("adoption wrote %d members and sets, want the difference", s.Written)
	}
}

func TestConfig(t *testing.T) {
	for name, change := range map[string]func(*ipset.Config){
		"Log": func(c *ipset.Config) { c.Log = nil }, "Owners": func(c *ipset.Config) { c.Owners = nil },
		"Resync": func(c *ipset.Config) { c.Resync = -time.Second }, "MaxElem": func(c *ipset.Config) { c.MaxElem = -1 },
		"Prefixes": func(c *ipset.Config) { c.Prefixes = []string{""} },
	} {
		cfg := ipset.Config{Log: discard(), Owners: []string{"a"}}
		change(&cfg)
		if _, err := ipset.New(cfg); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
