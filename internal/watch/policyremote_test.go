package watch

import (
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/causeway-net/causeway/internal/model"
)

func addressed(p *Pod, node string, in ...string) *Pod {
	out := *p
	out.Node = node
	for _, s := range in {
		out.Addresses = append(out.Addresses, netip.MustParseAddr(s))
	}
	return &out
}

func ips(in ...string) []netip.Addr { return addressed(&Pod{}, "", in...).Addresses }

// TestAnnounced follows a pod of another node from its binding to its status.
func TestAnnounced(t *testing.T) {
	j := join(t, policyOptions)
	a := podObject("a", "u1")
	j.sync()
	j.SetRemote(addressed(a, "n2"))
	if u := j.Take(); u != nil {
		t.Errorf("%d changes for a pod without an address", u.Len())
	}
	for name, said := range map[string][2]string{"another node": {"n3", "u1"}, "another pod": {"n2", "u0"}, "no pod": {"n2", ""}} {
		j.Announced(said[0], "prod", "a", said[1], ips("10.9.0.9"))
		if u := j.Take(); u != nil {
			t.Errorf("%s is believed", name)
		}
	}
	j.SetRemote(addressed(a, "n2")) // what was said in vain is not believed later
	j.want()

	for range 3 {
		j.Announced("n2", "prod", "a", "u1", ips("10.9.0.1", "fd00::1"))
	}
	j.want("Pod prod/a  [10.9.0.1 fd00::1] map[app:a]")
	j.Announced("n2", "prod", "a", "u1", ips("10.9.0.1", "fd00::1"))
	if u := j.Take(); u != nil {
		t.Error("what is known already changes something")
	}
	relabelled := addressed(a, "n2")
	relabelled.Labels = map[string]string{"app": "b"}
	j.SetRemote(relabelled)
	j.want("Pod prod/a  [10.9.0.1 fd00::1] map[app:b]")
	j.Announced("n2", "prod", "a", "u1", ips("10.9.0.2")) // its sandbox was made anew
	j.want("Pod prod/a  [10.9.0.2] map[app:b]")

	// The status says the same: nothing changes. It says something else: that holds, and no
	// announcement goes before it.
	relabelled = addressed(relabelled, "n2", "10.9.0.2")
	j.SetRemote(relabelled)
	if u := j.Take(); u != nil {
		t.Errorf("%d changes by a status that says what is known", u.Len())
	}
	j.SetRemote(addressed(a, "n2", "10.9.0.3"))
	j.Announced("n2", "prod", "a", "u1", ips("10.9.0.1"))
	j.want("Pod prod/a  [10.9.0.3] map[app:a]")
	j.RemoveRemote("prod", "a")
	j.want()

	// A name that is used again, with and without its removal in between.
	j.SetRemote(addressed(podObject("a", "u2"), "n2"))
	j.want()
	j.Announced("n2", "prod", "a", "u2", ips("10.9.0.4"))
	j.want("Pod prod/a  [10.9.0.4] map[app:a]")
	j.SetRemote(addressed(podObject("a", "u3"), "n3"))
	j.want()
	j.Announced("n3", "prod", "a", "u3", ips("10.9.0.5"))
	j.want("Pod prod/a  [10.9.0.5] map[app:a]")
	j.RemoveRemote("prod", "a")
	j.want()
	j.SetRemote(addressed(a, "n2"))
	j.RemoveRemote("prod", "a")
	if u := j.Take(); u != nil {
		t.Errorf("%d changes for a pod that came and went unseen", u.Len())
	}
	if len(j.expected) > 0 {
		t.Errorf("%v are left", j.expected)
	}
}

// TestAnnouncedFirst: what is announced of a pod that the watch has not told of yet is
// remembered for a while.
func TestAnnouncedFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := join(t, policyOptions)
		a := addressed(podObject("a", "u1"), "n2")
		j.Announced("n2", "prod", "a", "u1", ips("10.9.0.1"))
		j.want()
		time.Sleep(announcedLasts)
		j.SetRemote(a)
		j.want("Pod prod/a  [10.9.0.1] map[app:a]")
		j.RemoveRemote("prod", "a")
		j.SetRemote(a) // it was used up
		j.want()
		j.RemoveRemote("prod", "a")

		j.Announced("n2", "prod", "a", "u1", ips("10.9.0.1"))
		time.Sleep(2 * announcedLasts)
		j.SetRemote(a)
		j.want()

		for i := range 3 * maxAnnounced {
			j.Announced("n2", "prod", fmt.Sprint(i), "u", ips("10.9.0.1"))
		}
		if n := len(j.announced.young) + len(j.announced.old); n > maxAnnounced {
			t.Errorf("%d announcements are kept; at most %d are right", n, maxAnnounced)
		}
	})
}

// TestAnnouncedAndHere: a pod that moves between this node and another.
func TestAnnouncedAndHere(t *testing.T) {
	j := join(t, policyOptions)
	j.SetRemote(addressed(podObject("a", "u1"), "n2"))
	j.Announced("n2", "prod", "a", "u1", ips("10.9.0.1"))
	j.want("Pod prod/a  [10.9.0.1] map[app:a]")
	j.SetPod(podObject("a", "u2"))
	j.RemoveRemote("prod", "a")
	j.want()
	key := model.AttachmentKey{ContainerID: "c", IfName: "eth0"}
	j.Attach(attachment("c", "a", "u2", "cali1", "10.0.0.1"))
	j.SetRemote(addressed(podObject("a", "u3"), "n2"))
	j.Announced("n2", "prod", "a", "u3", ips("10.9.0.3"))
	j.want("Pod prod/a cali1 [10.0.0.1] map[app:a]")
	j.Detach(key)
	j.RemovePod("prod", "a")
	j.want("Pod prod/a  [10.9.0.3] map[app:a]")
	j.RemoveRemote("prod", "a")
	j.want()
	if len(j.pods)+len(j.expected) > 0 {
		t.Errorf("%v and %v are left", j.pods, j.expected)
	}
}
