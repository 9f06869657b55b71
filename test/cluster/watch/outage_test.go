package watch_test

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/internal/watch/kube"
)

const podYAML = `
apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: %s, annotations: {cni.projectcalico.org/ipv4pools: '["p"]', other.example.org/a: b}}
spec: {nodeName: n1, containers: [{name: c, image: i}]}
---
`

func podObject(name, namespace string) string { return fmt.Sprintf(podYAML, name, namespace) }

// TestOutage stops the API server: nothing is removed, pods that are known stay known, and
// unknown ones are told at once. When it is back so is everything else.
func TestOutage(t *testing.T) {
	installed(t)
	apply(t, nodeObject("n1", "10.0.0.1")+poolObject("p", "10.244.0.0/16")+blockYAML(0, 0, "n1", "")+podObject("known", "default"))
	r := start(t, server.Config)
	before := r.await("all", func(s *model.Snapshot) bool { return len(s.Pools) == 1 && len(s.Blocks) == 1 && len(s.Nodes) == 1 })
	if w, err := r.Workload(t.Context(), "default", "known", ""); err != nil || !w.Known {
		t.Fatalf("%+v %v", w, err)
	}
	server.StopAPI()
	down := true
	defer func() {
		if down {
			server.StartAPI()
		}
	}()
	eventually(t, "the outage in the status", func() bool { w, _ := r.watching("pods of this node"); return w.Failing != "" && !r.Status().Answering }, r.logged)
	within(t, time.Second, "Workload of pods, with the server away,", func() {
		if w, err := r.Workload(t.Context(), "default", "known", ""); err != nil || !w.Known || w.Annotations["cni.projectcalico.org/ipv4pools"] != `["p"]` {
			t.Errorf("known: %+v %v", w, err)
		}
		if w, err := r.Workload(t.Context(), "default", "unknown", ""); err != nil || w.Known {
			t.Errorf("unknown: %+v %v", w, err)
		}
	})
	fresh := start(t, server.Config)
	eventually(t, "a failure of one that starts now", func() bool { return !fresh.Status().Answering }, fresh.logged)
	within(t, 5*time.Second, "the end of a source without a server", func() {
		if err := fresh.stop(); err != nil {
			t.Error(err)
		}
	})
	if fresh.snapshot() != nil {
		t.Errorf("a snapshot out of nothing: %+v", fresh.snapshot())
	}
	if err := server.StartAPI(); err != nil {
		t.Fatal(err)
	}
	down = false
	if s := r.snapshot(); !reflect.DeepEqual(s, before) {
		t.Errorf("the outage changed the snapshot: %+v", s)
	}
	apply(t, poolObject("q", "10.245.0.0/16"))
	begin := time.Now()
	r.await("what came afterwards", func(s *model.Snapshot) bool { return len(s.Pools) == 2 && len(s.Blocks) == 1 && len(s.Nodes) == 1 })
	eventually(t, "all watches", func() bool { return r.Status().Answering }, r.logged)
	t.Logf("up to date %v after the server was ready", time.Since(begin))
	if n := strings.Count(r.logged(), "level=WARN") + strings.Count(r.logged(), "level=ERROR"); n > 5 {
		t.Errorf("the outage fills the log with %d warnings", n)
	}
}

// TestMissedDeletion cuts the way to the server, not the server: what is gone when the way
// is back is gone.
func TestMissedDeletion(t *testing.T) {
	installed(t)
	apply(t, nodeObject("n1", "10.0.0.1")+poolObject("p", "10.244.0.0/16")+poolObject("q", "10.245.0.0/16")+podObject("a", "default"))
	p := newProxy(t)
	r := start(t, p.cfg)
	before := r.await("the pools", func(s *model.Snapshot) bool { return len(s.Pools) == 2 && len(s.Nodes) == 1 })
	eventually(t, "the pod", func() bool { w, _ := r.Workload(t.Context(), "default", "a", ""); return w.Known }, r.logged)
	p.setCut(true)
	eventually(t, "the outage", func() bool { w, _ := r.watching("ippools.projectcalico.org"); return w.Failing != "" }, r.logged)
	remove(t, "ippools", "", "p")
	remove(t, "v1/pods", "default", "a")
	apply(t, nodeObject("n2", "10.0.0.2"))
	if s := r.snapshot(); s != before {
		t.Errorf("%+v", s)
	}
	p.setCut(false)
	r.await("the deletion and the new node", func(s *model.Snapshot) bool { return len(s.Pools) == 1 && s.Pools[0].Name == "q" && len(s.Nodes) == 2 })
	eventually(t, "the pod's end", func() bool { w, _ := r.watching("pods of this node"); return w.Objects == 0 && w.Failing == "" }, r.logged)
}

// TestWorkload asks for pods of all sorts.
func TestWorkload(t *testing.T) {
	installed(t)
	r := start(t, server.Config, func(c *kube.Config) { c.PodWait = 500 * time.Millisecond })
	eventually(t, "the watches", func() bool {
		p, _ := r.watching("pods of this node")
		n, _ := r.watching("namespaces")
		return !p.Synced.IsZero() && !n.Synced.IsZero()
	}, r.logged)
	apply(t, "apiVersion: v1\nkind: Namespace\nmetadata: {name: team, labels: {team: a}, annotations: {cni.projectcalico.org/ipv4pools: '[\"q\"]', x/y: z}}")

	// One that does not exist is waited for, then asked for.
	begin := time.Now()
	if w, err := r.Workload(t.Context(), "team", "none", ""); err != nil || w.Known || time.Since(begin) < 500*time.Millisecond {
		t.Errorf("a pod that is not there: %+v %v after %v", w, err, time.Since(begin))
	}
	// One that arrives is returned when it does.
	got := make(chan kube.Workload, 1)
	late := start(t, server.Config, func(c *kube.Config) { c.PodWait = patience })
	go func() {
		w, err := late.Workload(t.Context(), "team", "late", "")
		if err != nil {
			t.Error(err)
		}
		got <- w
	}()
	apply(t, podObject("late", "team"))
	w := <-got
	if !w.Known || w.UID == "" || w.NamespaceLabels["team"] != "a" || len(w.NamespaceAnnotations) != 1 || len(w.Annotations) != 1 || w.Annotations["cni.projectcalico.org/ipv4pools"] != `["p"]` {
		t.Errorf("%+v", w)
	}
	// Another UID is another pod.
	if other, err := r.Workload(t.Context(), "team", "late", "another"); err != nil || other.Known {
		t.Errorf("a pod replaced: %+v %v", other, err)
	}
	if same, err := late.Workload(t.Context(), "team", "late", w.UID); err != nil || !same.Known {
		t.Errorf("its own UID: %+v %v", same, err)
	}
	// A static pod is known to the runtime by the hash of its configuration.
	apply(t, "apiVersion: v1\nkind: Pod\nmetadata: {name: static, namespace: team, annotations: {kubernetes.io/config.hash: abc, kubernetes.io/config.mirror: abc}}\nspec: {nodeName: n1, containers: [{name: c, image: i}]}")
	if st, err := late.Workload(t.Context(), "team", "static", "abc"); err != nil || !st.Known || st.UID == "abc" || st.Annotations != nil {
		t.Errorf("a static pod: %+v %v", st, err)
	}
	// One of another node is none of ours.
	apply(t, "apiVersion: v1\nkind: Pod\nmetadata: {name: foreign, namespace: team}\nspec: {nodeName: n2, containers: [{name: c, image: i}]}")
	if f, err := r.Workload(t.Context(), "team", "foreign", ""); err != nil || f.Known {
		t.Errorf("a pod of another node: %+v %v", f, err)
	}
	// Nothing runs yet: the server is asked.
	c := kube.Config{Clients: clients(t, server.Config), Node: "n1", Log: silent, Publish: func(*model.Snapshot) {}, PodWait: 2 * time.Second} // for the answer, too
	idle, err := kube.New(c)
	if err != nil {
		t.Fatal(err)
	}
	if w, err := idle.Workload(t.Context(), "team", "late", w.UID); err != nil || !w.Known || w.NamespaceLabels["team"] != "a" {
		t.Errorf("asked: %+v %v", w, err)
	}
	// Who may not know is told so.
	c.Clients = clients(t, impersonated(server.Config, "nobody"))
	if idle, err = kube.New(c); err != nil {
		t.Fatal(err)
	}
	if w, err := idle.Workload(t.Context(), "team", "late", ""); err == nil || w.Known || !strings.Contains(err.Error(), "pod team/late") {
		t.Errorf("forbidden: %+v %v", w, err)
	}
}
