package ipset_test

import (
	"testing"
	"time"

	"github.com/causeway-net/causeway/felix/ipset"
)

func adoptSet(typ ipset.Type, adopt func(ipset.Member) bool, members ...ipset.Member) ipset.Set {
	return ipset.Set{Name: "cali40a", Type: typ, Family: ipset.IPv4, Members: members, Adopt: adopt}
}

// TestAdopt: what stood there and is asked for stays until it is given up, in whatever
// condition the set is found.
func TestAdopt(t *testing.T) {
	all := func(ipset.Member) bool { return true }
	eth0 := func(m ipset.Member) bool { return m.Interface == "eth0" }
	head := "create cali40a hash:net,iface family inet"
	for name, tt := range map[string]struct {
		before []string
		do     func(t *testing.T, rec *ipset.Reconciler)
		want   []string
	}{
		"some, until they are removed": {
			[]string{"create cali40a hash:net,iface", "add cali40a 10.0.0.1,eth0", "add cali40a 10.0.0.2,eth0", "add cali40a 10.0.0.3,eth1"},
			func(t *testing.T, rec *ipset.Reconciler) {
				rec.Replace(adoptSet(ipset.HashNetIface, eth0, on("10.0.0.9", "eth9")))
				wait(t, rec, "cali40a")
				if s := rec.Status(); s.Members != 3 || s.Written != 2 || s.Healed != 0 {
					t.Errorf("status %+v", s)
				}
				rec.Update("cali40a", nil, []ipset.Member{on("10.0.0.1", "eth0")})
			},
			[]string{head, "add cali40a 10.0.0.2,eth0", "add cali40a 10.0.0.9,eth9"},
		},
		"removed at once": {
			[]string{"create cali40a hash:net,iface", "add cali40a 10.0.0.1,eth0", "add cali40a 10.0.0.2,eth0"},
			func(_ *testing.T, rec *ipset.Reconciler) {
				rec.Replace(adoptSet(ipset.HashNetIface, all))
				rec.Update("cali40a", nil, []ipset.Member{on("10.0.0.1", "eth0")})
			},
			[]string{head, "add cali40a 10.0.0.2,eth0"},
		},
		"replaced with and without Adopt": {
			[]string{"create cali40a hash:net,iface", "add cali40a 10.0.0.1,eth0", "add cali40a 10.0.0.2,eth1"},
			func(t *testing.T, rec *ipset.Reconciler) {
				rec.Replace(adoptSet(ipset.HashNetIface, all))
				wait(t, rec, "cali40a")
				rec.Replace(adoptSet(ipset.HashNetIface, eth0, on("10.0.0.3", "eth3")))
				wait(t, rec, "cali40a")
				if s := rec.Status(); s.Members != 2 {
					t.Errorf("status %+v", s)
				}
				rec.Replace(adoptSet(ipset.HashNetIface, nil, on("10.0.0.4", "eth4")))
			},
			[]string{head, "add cali40a 10.0.0.4,eth4"},
		},
		"the call was taken back": {
			[]string{"create cali40a hash:net,iface", "add cali40a 10.0.0.1,eth0"},
			func(_ *testing.T, rec *ipset.Reconciler) {
				rec.Replace(adoptSet(ipset.HashNetIface, all))
				rec.Delete("cali40a")
				rec.Replace(adoptSet(ipset.HashNetIface, nil))
			},
			[]string{head},
		},
		"another limit": {
			[]string{"create cali40a hash:net,iface maxelem 2", "add cali40a 10.0.0.1,eth0", "add cali40a 10.0.0.2,eth0"},
			func(_ *testing.T, rec *ipset.Reconciler) {
				rec.Replace(adoptSet(ipset.HashNetIface, eth0, on("10.0.0.3", "eth3"), on("10.0.0.4", "eth4")))
			},
			[]string{head, "add cali40a 10.0.0.1,eth0", "add cali40a 10.0.0.2,eth0", "add cali40a 10.0.0.3,eth3", "add cali40a 10.0.0.4,eth4"},
		},
		"timeouts": {
			[]string{"create cali40a hash:net,iface timeout 600", "add cali40a 10.0.0.1,eth0", "add cali40a 10.0.0.2,eth1"},
			func(_ *testing.T, rec *ipset.Reconciler) { rec.Replace(adoptSet(ipset.HashNetIface, eth0)) },
			[]string{head, "add cali40a 10.0.0.1,eth0"},
		},
		"a flag that ours have not": {
			[]string{"create cali40a hash:net,iface", "add cali40a 10.0.0.1,eth0", "add cali40a 10.0.0.2,eth0 nomatch"},
			func(_ *testing.T, rec *ipset.Reconciler) { rec.Replace(adoptSet(ipset.HashNetIface, all)) },
			[]string{head, "add cali40a 10.0.0.1,eth0"},
		},
		"another type": {
			[]string{"create cali40a hash:ip", "add cali40a 10.0.0.1", "add cali40a 10.0.0.2"},
			func(_ *testing.T, rec *ipset.Reconciler) {
				rec.Replace(adoptSet(ipset.HashNet, func(m ipset.Member) bool { return m.String() == "10.0.0.2" }, ips("10.0.0.0/8")...))
			},
			[]string{"create cali40a hash:net family inet", "add cali40a 10.0.0.0/8", "add cali40a 10.0.0.2"},
		},
		"another type whose members cannot be": {
			[]string{"create cali40a hash:ip", "add cali40a 10.0.0.1"},
			func(_ *testing.T, rec *ipset.Reconciler) { rec.Replace(adoptSet(ipset.HashNetIface, all)) },
			[]string{head},
		},
		"no set": {
			[]string{"create theirs hash:ip"},
			func(t *testing.T, rec *ipset.Reconciler) {
				rec.Replace(adoptSet(ipset.HashNetIface, all))
				wait(t, rec, "cali40a")
			},
			[]string{head, "create theirs hash:ip family inet"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			rigs(t, func(t *testing.T, r *rig) {
				r.must(t, tt.before...)
				rec, _ := r.start(t, func(c *ipset.Config) { c.Glance = time.Hour; c.MaxElem = 64 })
				tt.do(t, rec)
				wait(t, rec, "cali40a")
				r.is(t, tt.want...)
			})
		})
	}
}

// TestAdoptHeals: what was adopted is healed as what was declared, and nothing is adopted that
// comes later.
func TestAdoptHeals(t *testing.T) {
	rigs(t, func(t *testing.T, r *rig) {
		r.must(t, "create cali40a hash:ip", "add cali40a 10.0.0.1", "add cali40a 10.0.0.2")
		r.refer("cali40a")
		rec, _ := r.start(t, nil)
		rec.Replace(adoptSet(ipset.HashIP, func(ipset.Member) bool { return true }, ips("10.0.0.3")...))
		rec.InSync("test")
		wait(t, rec, "cali40a")
		stands := []string{"create cali40a hash:ip family inet", "add cali40a 10.0.0.1", "add cali40a 10.0.0.2", "add cali40a 10.0.0.3"}
		r.is(t, stands...)
		for _, damage := range []string{"flush cali40a", "add cali40a 10.0.0.7", "del cali40a 10.0.0.1"} {
			r.must(t, damage)
			r.becomes(t, stands...)
		}
		r.release("cali40a")
	})
}

// TestAdoptAgain: a set that was deleted is found by its next declaration as one of an earlier
// agent is.
func TestAdoptAgain(t *testing.T) {
	rigs(t, func(t *testing.T, r *rig) {
		rec, _ := r.start(t, nil)
		rec.Replace(adoptSet(ipset.HashIP, nil, ips("10.0.0.1", "10.0.0.2")...))
		wait(t, rec, "cali40a")
		r.refer("cali40a")
		rec.Delete("cali40a")
		wait(t, rec)
		rec.Replace(adoptSet(ipset.HashIP, func(m ipset.Member) bool { return m.String() == "10.0.0.2" }, ips("10.0.0.3")...))
		wait(t, rec, "cali40a")
		r.is(t, "create cali40a hash:ip family inet", "add cali40a 10.0.0.2", "add cali40a 10.0.0.3")
		r.release("cali40a")
	})
}
