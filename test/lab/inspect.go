package lab

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// NodeView is what `causeway-lab inspect` shows of a node.
type NodeView struct {
	Name      string         `json:"name"`
	Kind      string         `json:"kind"`
	Role      Role           `json:"role"`
	Image     string         `json:"image,omitempty"`
	Group     string         `json:"group,omitempty"`
	PID       int            `json:"pid"` // of its init, on this machine; 0 when it is gone
	NetNS     string         `json:"netns"`
	Daemons   []DaemonStatus `json:"daemons,omitempty"`
	Addresses []string       `json:"addresses,omitempty"` // "eth1 10.0.0.1/31"
	Ports     []string       `json:"ports,omitempty"`
	Pods      []PodView      `json:"pods,omitempty"`
}

// PodView is what `causeway-lab inspect` shows of a pod.
type PodView struct {
	Name      string         `json:"name"`
	Namespace string         `json:"namespace"`
	Addresses []netip.Prefix `json:"addresses,omitempty"`
}

// Inspect looks at every node.
func (l *Lab) Inspect(ctx context.Context) ([]NodeView, error) {
	views := make([]NodeView, len(l.nodes))
	ctx, cancel := context.WithTimeout(ctx, Slow(10*time.Second))
	defer cancel()
	err := l.eachNode(func(n *Node) error {
		v := NodeView{Name: n.Spec.Name, Kind: n.Spec.Kind, Role: n.Spec.Role, Image: n.Spec.Image, Group: n.Spec.Group,
			NetNS: netnsName(l.Name, n.Spec.Name), Ports: n.Spec.Ports}
		defer func() { views[slices.Index(l.nodes, n)] = v }()
		if !n.init.alive() {
			return nil
		}
		v.PID = n.init.PID
		for _, d := range n.Daemons() {
			st, err := d.Status(ctx)
			if err != nil {
				return err
			}
			v.Daemons = append(v.Daemons, st)
		}
		addrs, err := n.Addresses()
		if err != nil {
			return err
		}
		for ifname, ps := range addrs {
			for _, p := range ps {
				v.Addresses = append(v.Addresses, ifname+" "+p.String())
			}
		}
		slices.Sort(v.Addresses)
		for _, p := range n.Pods() {
			v.Pods = append(v.Pods, PodView{Name: p.Name, Namespace: p.Namespace, Addresses: p.Addresses})
		}
		return nil
	})
	return views, err
}

// Table shows views for people, one row for each node and one for each pod below it.
func Table(views []NodeView) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "NODE\tKIND\tPID\tDAEMONS\tADDRESSES")
	for _, v := range views {
		pid := fmt.Sprint(v.PID)
		if v.PID == 0 {
			pid = "gone"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", v.Name, v.Role, pid, strings.Join(states(v.Daemons), ", "), strings.Join(v.Addresses, ", "))
		for _, p := range v.Pods {
			var as []string
			for _, a := range p.Addresses {
				as = append(as, a.Addr().String())
			}
			fmt.Fprintf(w, "  %s/%s\tpod\t\t\t%s\n", p.Namespace, p.Name, strings.Join(as, ", "))
		}
	}
	w.Flush()
	return b.String()
}

func states(ds []DaemonStatus) []string {
	var out []string
	for _, d := range ds {
		switch {
		case d.Running:
			out = append(out, fmt.Sprintf("%s (%d)", d.Name, d.PID))
		case d.Starts == 0:
			out = append(out, d.Name+" not started")
		default:
			out = append(out, fmt.Sprintf("%s ended: %s", d.Name, d.Exit))
		}
	}
	return out
}
