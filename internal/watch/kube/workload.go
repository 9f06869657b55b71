package kube

import (
	"context"
	"fmt"
	"maps"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Workload is what the API says of a pod of this node. Its maps are the caller's.
type Workload struct {
	// Known: the pod and its namespace were found. When not, all else is empty.
	Known bool
	// UID of the pod's object. That of a static pod is its mirror's.
	UID string
	// Annotations and NamespaceAnnotations are those of cni.projectcalico.org.
	Annotations, NamespaceAnnotations map[string]string
	// NamespaceLabels is never nil when Known.
	NamespaceLabels map[string]string
}

// Workload returns what is known of a pod. uid is what the runtime calls it; empty means
// any. A pod of the same name with another UID is another pod, as when a StatefulSet
// replaces one.
//
// It waits until the pod and its namespace have arrived, for PodWait at most, and then asks
// the API server once. While the watch of pods or of namespaces does not stand nobody can
// tell: what is known is returned, and what is not, at once as not Known. The error is that
// of ctx, or of a server that answered and refused.
func (s *Source) Workload(ctx context.Context, namespace, name, uid string) (Workload, error) {
	timeout := time.NewTimer(s.cfg.PodWait)
	defer timeout.Stop()
	for {
		s.mu.Lock()
		w := s.lookup(namespace, name, uid)
		away := s.podFeed.failing != nil || s.nsFeed.failing != nil
		arrived := s.arrived
		s.mu.Unlock()
		if w.Known || away {
			return w, nil
		}
		select {
		case <-arrived:
		case <-timeout.C:
			return s.ask(ctx, namespace, name, uid)
		case <-ctx.Done():
			return Workload{}, ctx.Err()
		}
	}
}

// wakeWaiting lets Workload look again; the mutex is held.
func (s *Source) wakeWaiting() {
	close(s.arrived)
	s.arrived = make(chan struct{})
}

func (s *Source) lookup(ns, name, uid string) Workload {
	p, ok := s.pods.rows[rowKey(ns, name)]
	n, known := s.namespaces.rows[ns]
	if !ok || !known || !p.is(uid) {
		return Workload{}
	}
	return workload(p, n)
}

func workload(p pod, n namespace) Workload {
	return Workload{
		Known: true, UID: p.uid, Annotations: maps.Clone(p.annotations),
		NamespaceAnnotations: maps.Clone(n.annotations), NamespaceLabels: maps.Clone(n.labels),
	}
}

// ask reads the pod and its namespace from the API server, by lists narrowed to their
// names: an agent needs no right but list and watch.
func (s *Source) ask(ctx context.Context, ns, name, uid string) (Workload, error) {
	caller := ctx
	ctx, cancel := context.WithTimeout(ctx, s.cfg.PodWait)
	defer cancel()
	core := s.cfg.Clients.Core.CoreV1()
	failed := func(what string, err error) (Workload, error) {
		if caller.Err() != nil {
			return Workload{}, caller.Err()
		}
		if !refused(err) {
			s.log.Warn("pod cannot be asked for", "pod", ns+"/"+name, "error", err)
			return Workload{}, nil
		}
		return Workload{}, fmt.Errorf("pod %s/%s: the API server does not tell of %s: %w", ns, name, what, err)
	}
	opts := metav1.ListOptions{}
	ownPods(s.cfg.Node)(&opts)
	opts.FieldSelector += ",metadata.name=" + name
	pods, err := core.Pods(ns).List(ctx, opts)
	if err != nil {
		return failed("it", err)
	}
	var found pod
	if len(pods.Items) == 1 {
		found, _ = readPod(pod{}, &pods.Items[0])
	}
	if len(pods.Items) != 1 || !found.is(uid) {
		return Workload{}, nil
	}
	opts = metav1.ListOptions{}
	byField("metadata.name", ns)(&opts)
	namespaces, err := core.Namespaces().List(ctx, opts)
	if err != nil {
		return failed("its namespace", err)
	}
	if len(namespaces.Items) != 1 {
		return Workload{}, nil
	}
	n, _ := readNamespace(namespace{}, &namespaces.Items[0])
	return workload(found, n), nil
}
