// Package fabric is a lab whose hosts run Causeway: its agents, what they say of
// themselves, and pods on all of them. The topology tests, the demo and the benchmarks
// work with it.
package fabric

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"time"

	"github.com/causeway-net/causeway/internal/status"
	"github.com/causeway-net/causeway/test/lab"
	"github.com/causeway-net/causeway/test/lab/traffic"
)

// Fabric is a lab with pods.
type Fabric struct {
	*lab.Lab
	Pods []*lab.Pod // in the order they were added
}

// Poll calls done until it returns nil or ctx ends, and then returns its last error.
func Poll(ctx context.Context, what string, done func() error) error {
	for {
		err := done()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: gave up: %w", what, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Agents are the nodes that run Causeway.
func (f *Fabric) Agents() []*lab.Node {
	var out []*lab.Node
	for _, n := range f.Nodes() {
		if n.Spec.Role == lab.RoleCauseway {
			out = append(out, n)
		}
	}
	return out
}

// Status asks the agent of a node, as an operator would: causewayctl in the node.
func Status(ctx context.Context, n *lab.Node) (status.Status, error) {
	var st status.Status
	out, err := n.Exec(ctx, "causewayctl", "status", "--json")
	if err != nil {
		return st, err
	}
	return st, json.Unmarshal([]byte(out), &st)
}

// Established returns nil when every session of every agent is up and its routes are in
// the kernel.
func (f *Fabric) Established(ctx context.Context) error {
	for _, n := range f.Agents() {
		if err := Established(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

// Established returns nil when every session of n's agent is up and the routes are in.
func Established(ctx context.Context, n *lab.Node) error {
	st, err := Status(ctx, n)
	if err != nil {
		return err
	}
	if !st.Ready {
		return fmt.Errorf("%s is not ready: %s", n.Name(), st.NotReady)
	}
	if len(st.Peers) == 0 {
		return fmt.Errorf("%s has no peers", n.Name())
	}
	for _, p := range st.Peers {
		if p.State != "Established" {
			return fmt.Errorf("%s: session with %s is %s %s", n.Name(), p.Address, p.State, p.Error)
		}
	}
	if !st.Speaker.Synced {
		return fmt.Errorf("%s: not all routes have come", n.Name())
	}
	return nil
}

// AddPods attaches count pods to every agent, through the real plugin, as soon as the
// agent takes them.
func (f *Fabric) AddPods(ctx context.Context, count int) error {
	for _, n := range f.Agents() {
		if err := Poll(ctx, n.Name()+" takes pods", func() error { return n.CNIStatus(ctx) }); err != nil {
			return err
		}
		for i := range count {
			p, err := n.AddPod(ctx, fmt.Sprintf("%s-pod%d", n.Name(), i), lab.PodOptions{})
			if err != nil {
				return err
			}
			f.Pods = append(f.Pods, p)
		}
	}
	return nil
}

// Endpoints are the pods as a ping matrix takes them.
func (f *Fabric) Endpoints() []traffic.Endpoint {
	var out []traffic.Endpoint
	for _, p := range f.Pods {
		out = append(out, Endpoint(p))
	}
	return out
}

// Endpoint is a pod with all of its addresses.
func Endpoint(p *lab.Pod) traffic.Endpoint {
	e := traffic.Endpoint{Space: p}
	for _, a := range p.Addresses {
		e.Addrs = append(e.Addrs, a.Addr())
	}
	return e
}

// Addresses lists the pods' addresses by pod name.
func (f *Fabric) Addresses() map[string][]netip.Prefix {
	out := map[string][]netip.Prefix{}
	for _, p := range f.Pods {
		out[p.Name] = p.Addresses
	}
	return out
}
