package watch

import (
	"context"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-net/causeway/felix/policy"
	"github.com/causeway-net/causeway/internal/model"
)

// expecting is policyOptions with interfaces that are known ahead.
func expecting() Options {
	opt := policyOptions
	opt.Interface = func(namespace, pod string) string { return "cali-" + pod }
	return opt
}

// TestExpectedPods: a pod that waits to be attached has an endpoint, without addresses.
func TestExpectedPods(t *testing.T) {
	j := join(t, expecting())
	at := []netip.Addr{netip.MustParseAddr("10.0.0.1")}
	key := model.AttachmentKey{ContainerID: "c1", IfName: "eth0"}
	j.SetPod(podObject("a", "u1"))
	j.want("Pod prod/a cali-a [] map[app:a]")
	if uid := j.w.endpoints[workload("prod", "a")].UID; uid != "u1" {
		t.Errorf("UID %q", uid)
	}
	j.RemovePod("prod", "a")
	j.want()

	// Attached and detached, its addresses in its status or not: another sandbox comes.
	object := podObject("a", "u1")
	j.SetPod(object)
	j.Attach(attachment("c1", "a", "u1", "cali-a", "10.0.0.1"))
	j.want("Pod prod/a cali-a [10.0.0.1] map[app:a]")
	running := *object
	running.Addresses = at
	j.SetPod(&running)
	j.Detach(key)
	j.want("Pod prod/a cali-a [] map[app:a]")
	relabelled := running
	relabelled.Labels = map[string]string{"app": "b"}
	j.SetPod(&relabelled)
	j.want("Pod prod/a cali-a [] map[app:b]")
	j.Attach(attachment("c2", "a", "u1", "cali-a", "10.0.0.2"))
	j.want("Pod prod/a cali-a [10.0.0.2] map[app:b]")

	// The object of the next pod of that name comes while the one before is attached, and waits.
	j.SetPod(podObject("a", "u2"))
	j.want("Pod prod/a cali-a [10.0.0.2] unknown")
	j.Detach(model.AttachmentKey{ContainerID: "c2", IfName: "eth0"})
	j.want("Pod prod/a cali-a [] map[app:a]")

	// An attachment of another pod than the object is of.
	j.Attach(attachment("c3", "a", "u3", "cali-a", "10.0.0.3"))
	j.want("Pod prod/a cali-a [10.0.0.3] unknown")
	j.Detach(model.AttachmentKey{ContainerID: "c3", IfName: "eth0"})

	// One that ends: while it is attached it stays, and then nothing is expected any more.
	ending := *podObject("a", "u2")
	ending.Terminating = true
	j.Attach(attachment("c4", "a", "u2", "cali-a", "10.0.0.4"))
	j.SetPod(&ending)
	j.want("Pod prod/a cali-a [10.0.0.4] map[app:a]")
	j.Detach(model.AttachmentKey{ContainerID: "c4", IfName: "eth0"})
	j.want()
	j.RemovePod("prod", "a")
	if len(j.pods) > 0 || len(j.attached) > 0 {
		t.Errorf("%v and %v are left", j.pods, j.attached)
	}

	// Addresses in the status of a pod that this agent never saw attached: as its object has it.
	elsewhere := podObject("b", "u1")
	elsewhere.Addresses = at
	j.SetPod(elsewhere)
	j.want("Pod prod/b  [10.0.0.1] map[app:b]")

	// A static pod's runtime knows it by another UID than the object has.
	static := podObject("c", "mirror")
	static.StaticUID = "hash"
	j.SetPod(static)
	if uid := j.sync().endpoints[workload("prod", "c")].UID; uid != "hash" {
		t.Errorf("UID %q of a static pod", uid)
	}
}

// TestTerminatingPod reads it, from what is kept of an object too.
func TestTerminatingPod(t *testing.T) {
	o := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "prod", Name: "a"}}
	if p, _ := ReadPod(StripPod(o)); p.Terminating {
		t.Error("ends of itself")
	}
	o.DeletionTimestamp = &metav1.Time{Time: time.Unix(1e9, 0)}
	alive := podObject("a", "")
	p, ok := ReadPod(StripPod(o))
	if !ok || !p.Terminating || p.Equal(alive) {
		t.Errorf("%+v", p)
	}
}

// TestAttachOfAnExpectedPod: with the rules made ahead, the engine adds addresses alone.
func TestAttachOfAnExpectedPod(t *testing.T) {
	e := policy.New(policy.Config{})
	j := join(t, expecting())
	flush := func() *policy.Delta {
		t.Helper()
		if u := j.Take(); u != nil {
			if err := u.Apply(e); err != nil {
				t.Fatal(err)
			}
		}
		return e.Flush()
	}
	j.SetNamespace(model.Namespace{Name: "prod"})
	j.Set(Check(policyObject(t, "np", "prod/a", `{selector: "app == 'a'", ingress: [{action: Allow, source: {selector: has(app)}}]}`), expecting()))
	j.SetPod(podObject("other", "o"))
	j.Attach(attachment("c0", "other", "o", "cali-other", "10.0.0.9")) // IPv4 is in use
	j.SetPod(podObject("a", "u1"))
	d := flush()
	ahead := -1
	for i := range d.Endpoints {
		if d.Endpoints[i].Interface == "cali-a" {
			ahead = i
		}
	}
	if ahead < 0 || !d.Endpoints[ahead].Expected() || len(d.Endpoints[ahead].Ingress.Tiers) != 1 || len(d.Chains) != 1 {
		t.Fatalf("made ahead: %+v", d)
	}
	want := d.Endpoints[ahead]
	if n := e.Size().Endpoints; n != 1 || len(e.Endpoints()) != 1 {
		t.Errorf("%d endpoints, listed %v", n, e.Endpoints())
	}
	id := model.PolicyID{Kind: model.PolicyNamespaced, Namespace: "prod", Name: "a"}
	if n := e.Applies(id); n != 0 {
		t.Errorf("the policy is in force for %d endpoints, want none: the pod is only expected", n)
	}

	j.Attach(attachment("c1", "a", "u1", "cali-a", "10.0.0.1"))
	d = flush()
	at := netip.MustParseAddr("10.0.0.1")
	want.Addresses, want.Sources = []netip.Addr{at}, []netip.Prefix{netip.PrefixFrom(at, 32)}
	if len(d.Endpoints) != 1 || !d.Endpoints[0].Equal(&want) || len(d.ChangedSets) != 1 {
		t.Errorf("attached: %+v, want the endpoint %+v", d, want)
	}
	if d.Host != nil || len(d.Chains)+len(d.NewSets)+len(d.GoneEndpoints)+len(d.GoneChains)+len(d.GoneSets) > 0 {
		t.Errorf("attaching changes more than addresses: %+v", d)
	}
	if n := e.Applies(id); n != 1 || e.Size().Endpoints != 2 {
		t.Errorf("attached: in force for %d endpoints, size %+v", n, e.Size())
	}

	j.Detach(model.AttachmentKey{ContainerID: "c1", IfName: "eth0"})
	d = flush()
	want.Addresses, want.Sources = nil, nil
	if len(d.Endpoints) != 1 || !d.Endpoints[0].Equal(&want) || len(d.Chains)+len(d.GoneEndpoints)+len(d.GoneChains)+len(d.GoneSets) > 0 {
		t.Errorf("detached: %+v", d)
	}
	j.RemovePod("prod", "a")
	if d = flush(); len(d.GoneEndpoints) != 1 || len(d.GoneChains) != 1 {
		t.Errorf("its object went: %+v", d)
	}
}

// TestAttachIsPublishedAtOnce, with what was gathered; what nobody waits for is gathered.
func TestAttachIsPublishedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var seen []string
		began := time.Now()
		p := NewPolicies(expecting(), func(u *PolicyUpdate) {
			w := newWorld()
			u.Apply(w)
			mu.Lock()
			defer mu.Unlock()
			seen = append(seen, time.Since(began).String()+" "+strings.Join(w.pods(), ", "))
		}, func() {})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- p.Run(ctx) }()
		want := func(what string, lines ...string) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if got := strings.Join(seen, "; "); got != strings.Join(lines, "; ") {
				t.Errorf("%s: published %s\nwant %s", what, got, strings.Join(lines, "; "))
			}
			seen = nil
		}
		p.SetPending(nil)
		want("first")
		time.Sleep(policyGather)
		want("first, gathered", "2ms ")
		p.SetPod(podObject("a", "u1"))
		time.Sleep(policyGather / 2)
		want("object")
		p.Attach(attachment("c1", "b", "u2", "cali-b", "10.0.0.2"))
		want("attached", "3ms Pod prod/a cali-a [] map[app:a], Pod prod/b cali-b [10.0.0.2] unknown")
		time.Sleep(2 * policyGather)
		want("later")
		p.Attach(attachment("c2", "a", "u1", "cali-a", "10.0.0.1"))
		want("attached alone", "7ms Pod prod/a cali-a [10.0.0.1] map[app:a]")
		p.Detach(model.AttachmentKey{ContainerID: "c2", IfName: "eth0"})
		time.Sleep(policyGather)
		time.Sleep(policyGather)
		want("detached", "9ms Pod prod/a cali-a [] map[app:a]")
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
