package main

import (
	"fmt"
	"slices"

	"github.com/causeway-net/causeway/bgp/gobgp"
	"github.com/causeway-net/causeway/felix/overlay"
	"github.com/causeway-net/causeway/felix/route"
	"github.com/causeway-net/causeway/felix/tunnel"
	"github.com/causeway-net/causeway/internal/status"
)

// status gathers what the parts say of themselves.
func (a *agent) status() status.Status {
	a.mu.Lock()
	snap, bgpProblems, adverts := a.snap, a.bgpProblems, a.adverts
	a.mu.Unlock()
	st := status.Status{
		Node: a.o.nodeName, Version: version, Started: a.started, MTU: a.podMTU(), Snapshot: snap.Revision,
		Problems: problems(snap.Problems, bgpProblems, a.ipam.Problems(), a.policy.Problems()), Endpoints: a.ipam.Endpoints(), Adverts: adverts,
		AddressChanges: a.links.AddressChanges(), Warnings: a.warnings(), Source: status.Source{Datastore: a.o.datastore},
	}
	if err := a.data.trouble(); err != nil {
		st.Source.Error = err.Error()
	}
	if a.node != nil {
		network := a.node.Status()
		st.Network = &network
	}
	if err := a.ready(); err != nil {
		st.NotReady = err.Error()
	} else {
		st.Ready = true
	}
	for _, p := range snap.Pools {
		st.Pools = append(st.Pools, status.Pool{Name: p.Name, CIDR: p.CIDR, Disabled: p.Disabled})
	}
	for _, b := range snap.Blocks {
		if b.Node == a.o.nodeName {
			st.Blocks = append(st.Blocks, b.CIDR)
		}
	}
	st.Speaker, st.Peers = speakerStatus(a.bgp.Status())
	st.Routes = routeStatus(a.routes.Status())
	st.Encapsulation = encapStatus(a.overlay.Status(), a.tunnels.Status())
	st.Policy = a.policyStatus()
	return st
}

func speakerStatus(s gobgp.Status) (status.Speaker, []status.Peer) {
	peers := make([]status.Peer, 0, len(s.Peers))
	for _, p := range s.Peers {
		out := status.Peer{
			Address: p.Addr, ASN: p.ASN, Resource: p.Resource, State: p.State, Since: p.Since,
			Received: p.Received, Accepted: p.Accepted, Advertised: p.Advertised, Error: p.LastError,
		}
		if p.Mesh {
			out.Resource = "mesh"
		}
		if !p.HeldBack.IsZero() {
			out.HeldBack = &status.HeldBack{Until: p.HeldBack, Reason: p.HeldReason}
		}
		peers = append(peers, out)
	}
	return status.Speaker{PID: s.PID, Restarts: s.Restarts, Synced: s.Synced, LastDeath: s.LastDeath, Error: s.Error}, peers
}

func routeStatus(s route.Status) status.Routes {
	out := status.Routes{ByOwner: map[string]int{}, Stale: s.Stale, Pending: s.Pending, LeftOutCount: s.LeftOutCount, ConflictCount: s.ConflictCount, ErrorCount: s.FailureCount}
	for _, o := range s.Owners {
		out.ByOwner[o.Name] = o.Installed
	}
	for _, u := range s.Unresolved {
		nexthop := u.Device
		if u.Addr.IsValid() {
			nexthop = u.Addr.String()
		}
		out.Unresolved = append(out.Unresolved, fmt.Sprintf("%s, wanted by %d routes", nexthop, u.Candidates))
	}
	for _, c := range s.Conflicts {
		out.Conflicts = append(out.Conflicts, fmt.Sprintf("%s metric %d: %s", c.Prefix, c.Metric, c.Foreign))
	}
	for _, l := range s.LeftOut {
		out.LeftOut = append(out.LeftOut, l.String())
	}
	for _, f := range s.Failures {
		out.Errors = append(out.Errors, fmt.Sprintf("%s: %s (%d tries)", f.Prefix, f.Error, f.Tries))
	}
	return out
}

// encapStatus joins what decides about tunnels with what stands in the kernel.
func encapStatus(o overlay.Status, devices []tunnel.Status) status.Encapsulation {
	out := status.Encapsulation{Routes: o.Routes, Waiting: o.Waiting, Error: o.Error}
	for _, t := range o.Tunnels {
		st := status.Tunnel{Device: t.Device, Wanted: t.Wanted, Up: t.There, Address: t.Addr, Held: t.Held}
		if i := slices.IndexFunc(devices, func(d tunnel.Status) bool { return d.Device == t.Device }); i >= 0 {
			d := devices[i]
			st.MTU, st.Peers, st.PeersWanted, st.Errors, st.ErrorCount = d.MTU, d.Peers, d.PeersWanted, d.Errors, d.ErrorCount
		}
		out.Tunnels = append(out.Tunnels, st)
	}
	return out
}
