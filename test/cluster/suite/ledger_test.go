package suite

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/internal/status"
	"github.com/causeway-net/causeway/ipam"
	"github.com/causeway-net/causeway/test/cluster"
)

// agentOf asks the agent of a node what it sees and does.
func agentOf(ctx context.Context, n *cluster.Node) (status.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	st, err := status.Fetch(ctx, n.Path("/run/causeway/agent.sock"))
	if err != nil {
		err = fmt.Errorf("%s: %w", n, err)
	}
	return st, err
}

// blocksOf returns all IPAMBlocks.
func blocksOf(ctx context.Context) ([]v3.IPAMBlock, error) {
	out, err := c.Kubectl(ctx, "get", "ipamblocks.projectcalico.org", "-o", "json")
	if err != nil {
		return nil, err
	}
	var list v3.IPAMBlockList
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return nil, fmt.Errorf("IPAMBlocks: %w", err)
	}
	return list.Items, nil
}

// ledger compares who says what about addresses, at a moment when nothing changes: every
// address that a block gives to a pod is one that the agent of its node has promised to an
// attachment, and the other way round; no address stands twice; every Pod of the API has the
// addresses that its node's agent promised it; and in each node's kernel there are exactly
// the links and the routes of its agent's endpoints. So no address leaks and none has two
// holders (I1).
func ledger(ctx context.Context) error {
	holders := map[netip.Addr]string{} // "node: container" of each address that an agent promised
	podAddrs := map[string][]netip.Addr{}
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for _, n := range c.Nodes() {
		st, err := agentOf(ctx, n)
		if err != nil {
			return err
		}
		links, routes := map[string]bool{}, map[netip.Addr]bool{}
		for _, ep := range st.Endpoints {
			links[ep.HostInterface] = true
			for _, a := range ep.Addresses {
				routes[a] = true
				if other, twice := holders[a]; twice {
					bad("%s is promised to %s and to %s: %s", a, other, n, ep.Key)
				}
				holders[a] = n.Name() + ": " + ep.Key.ContainerID
			}
			if ep.Pod != "" {
				podAddrs[n.Name()+"/"+ep.Namespace+"/"+ep.Pod] = ep.Addresses
			}
		}
		if err := kernel(ctx, n, links, routes); err != nil {
			errs = append(errs, err)
		}
	}
	blocks, err := blocksOf(ctx)
	if err != nil {
		return err
	}
	for i := range blocks {
		b := &blocks[i].Spec
		cidr, err := netip.ParsePrefix(b.CIDR)
		if err != nil {
			return err
		}
		a := cidr.Addr()
		for _, at := range b.Allocations {
			if at != nil {
				attr := b.Attributes[*at]
				holder, promised := holders[a]
				switch handle := value(attr.HandleID); {
				case handle == "" || strings.HasPrefix(handle, ipam.StashPrefix):
					// It rests, or is put by; while an agent has it in hand its record follows.
				case !promised:
					bad("block %s gives %s to %s (%v), and no agent has promised it to anybody: it leaked", b.CIDR, a, handle, attr.ActiveOwnerAttrs)
				default:
					node, id, _ := strings.Cut(holder, ": ")
					if !strings.HasSuffix(handle, "."+id) || attr.ActiveOwnerAttrs[ipam.AttrNode] != node {
						bad("block %s gives %s to %s (%v), and %s holds it", b.CIDR, a, handle, attr.ActiveOwnerAttrs, holder)
					}
				}
				if handle := value(attr.HandleID); handle != "" && !strings.HasPrefix(handle, ipam.StashPrefix) {
					delete(holders, a)
				}
			}
			a = a.Next()
		}
	}
	for a, who := range holders {
		bad("%s holds %s, and its block does not say so", who, a)
	}
	return errors.Join(append(errs, podsHave(ctx, podAddrs))...)
}

func value(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// kernel compares a node's links and routes of pods with what its agent says.
func kernel(ctx context.Context, n *cluster.Node, links map[string]bool, routes map[netip.Addr]bool) error {
	var errs []error
	out, err := n.Exec(ctx, "ip", "-o", "link", "show", "type", "veth")
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		name, _, _ := strings.Cut(strings.TrimSuffix(f[1], ":"), "@")
		if !strings.HasPrefix(name, "cali") {
			continue
		}
		seen[name] = true
		if !links[name] {
			errs = append(errs, fmt.Errorf("%s: link %s is of no endpoint", n, name))
		}
	}
	for name := range links {
		if !seen[name] {
			errs = append(errs, fmt.Errorf("%s: the endpoint's link %s is missing", n, name))
		}
	}
	have := map[netip.Addr]bool{}
	for _, family := range []string{"-4", "-6"} {
		out, err := n.Exec(ctx, "ip", family, "route", "show", "proto", "82")
		if err != nil {
			return err
		}
		for line := range strings.Lines(out) {
			f := strings.Fields(line)
			if len(f) < 3 || f[1] != "dev" || !strings.HasPrefix(f[2], "cali") {
				continue
			}
			a, err := netip.ParseAddr(f[0])
			if err != nil {
				continue
			}
			have[a] = true
			if !routes[a] {
				errs = append(errs, fmt.Errorf("%s: route to %s, which no endpoint has: %s", n, a, strings.TrimSpace(line)))
			}
		}
	}
	for a := range routes {
		if !have[a] {
			errs = append(errs, fmt.Errorf("%s: no route to %s of an endpoint", n, a))
		}
	}
	return errors.Join(errs...)
}

// podsHave compares the API's Pods with the agents' promises, by "node/namespace/name".
func podsHave(ctx context.Context, promised map[string][]netip.Addr) error {
	list, err := client.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range list.Items {
		if p.Spec.HostNetwork || p.Status.Phase != corev1.PodRunning || p.DeletionTimestamp != nil {
			continue
		}
		want := promised[p.Spec.NodeName+"/"+p.Namespace+"/"+p.Name]
		for _, ip := range p.Status.PodIPs {
			found := false
			for _, a := range want {
				found = found || a.String() == ip.IP
			}
			if !found {
				errs = append(errs, fmt.Errorf("pod %s/%s on %s says that it has %s; its agent says %v", p.Namespace, p.Name, p.Spec.NodeName, ip.IP, want))
			}
		}
	}
	return errors.Join(errs...)
}

// balanced waits until the ledger is in balance.
func balanced(t *testing.T, within time.Duration) {
	t.Helper()
	eventually(t, within, func() error { return ledger(t.Context()) })
}

// nodesStay remembers the nodes' conditions, and returns a function that fails the test when
// one of them has changed since, if only for a moment.
func nodesStay(t *testing.T) (check func()) {
	t.Helper()
	read := func() map[string]string {
		t.Helper()
		list, err := client.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]string{}
		for _, n := range list.Items {
			for _, x := range n.Status.Conditions {
				if x.Type == corev1.NodeReady || x.Type == corev1.NodeNetworkUnavailable {
					out[n.Name+" "+string(x.Type)] = fmt.Sprintf("%s since %s (%s)", x.Status, x.LastTransitionTime.UTC().Format(time.RFC3339), x.Reason)
				}
			}
		}
		return out
	}
	before := read()
	return func() {
		t.Helper()
		for what, now := range read() {
			if now != before[what] {
				t.Errorf("condition %s was %s and is %s", what, before[what], now)
			}
		}
	}
}

// noFailedSandboxes fails the test when a kubelet could not give a pod of the namespace its
// network.
func noFailedSandboxes(t *testing.T, ns string) {
	t.Helper()
	list, err := client.CoreV1().Events(ns).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list.Items {
		if e.Reason == "FailedCreatePodSandBox" || e.Reason == "FailedKillPod" {
			t.Errorf("%s %s: %s: %s", e.InvolvedObject.Kind, e.InvolvedObject.Name, e.Reason, e.Message)
		}
	}
}
