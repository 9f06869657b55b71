package status

import (
	"context"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
)

// collector makes metrics of a Status at every scrape, and of what policies count.
type collector struct {
	read   func() Status
	policy func(context.Context) PolicyDetail // nil: none
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("causeway_"+name, help, labels, nil)
}

var (
	descReady      = desc("ready", "1 when the agent can attach pods.")
	descWarnings   = desc("warnings", "Things that need somebody while the node is ready: no free address, contested rules.")
	descProblems   = desc("problems", "Objects or fields of the datastore that are not in force.", "kind", "namespace", "name", "field", "effect")
	descEndpoints  = desc("endpoints", "Pod interfaces attached on this node.")
	descBlocks     = desc("ipam_blocks", "Address blocks this node owns.")
	descAddresses  = desc("ipam_addresses_in_use", "Addresses promised to pods of this node.")
	descRoutes     = desc("routes", "Routes of ours in the kernel.", "owner")
	descUnresolved = desc("route_nexthops_unresolved", "Next hops that the kernel's table does not lead to.")
	descConflicts  = desc("route_conflicts", "Routes of others that stand where ours would.")
	descLeftOut    = desc("routes_left_out", "Learned routes that would lead a node's or a peer's address off its subnet.")
	descRouteErrs  = desc("route_errors", "Routes that the kernel refused.")
	descRestarts   = desc("speaker_restarts_total", "Deaths of the BGP speaker since the agent started.")
	descPeerUp     = desc("bgp_peer_established", "1 when the session is Established.", "peer", "asn")
	descPeerHeld   = desc("bgp_peer_held_back", "1 while the peer is held back because its messages ended the speaker.", "peer")
	descSourceUp   = desc("datastore_up", "1 while the datastore answers; what is in force stays without it.")
	descNetwork    = desc("node_network_available", "1 while the node can carry traffic; what the condition NetworkUnavailable says, without its grace time.")
	descMoved      = desc("node_address_changes_total", "Changes of the node's address since the agent started.")
	descDropped    = desc("events_dropped_total", "Kubernetes events that were not sent, to spare the API server.")
	descTunnelUp   = desc("tunnel_up", "1 when the encapsulation device that the node needs is up.", "device")
	descTunnelGone = desc("tunnel_peers_missing", "Nodes that the encapsulation device should reach and has no entries for.", "device")
	descTunnelErrs = desc("tunnel_errors", "What keeps the encapsulation device from being as it should.", "device")
	descPeerRoutes = desc("bgp_peer_routes", "Routes of the session.", "peer", "direction")
)

func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descReady, descWarnings, descProblems, descEndpoints, descBlocks, descAddresses, descRoutes,
		descUnresolved, descConflicts, descLeftOut, descRouteErrs, descRestarts, descSourceUp, descNetwork, descMoved, descDropped, descPeerUp, descPeerHeld, descTunnelUp, descTunnelGone, descTunnelErrs, descPeerRoutes} {
		ch <- d
	}
	for _, d := range policyDescs {
		ch <- d
	}
}

func (c collector) Collect(ch chan<- prometheus.Metric) {
	st := c.read()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	gauge(descReady, truth(st.Ready))
	gauge(descWarnings, float64(len(st.Warnings)))
	gauge(descSourceUp, truth(st.Source.Error == ""))
	moved := st.AddressChanges
	if n := st.Network; n != nil {
		moved = n.AddressChanges // those of a declared address, too
		gauge(descNetwork, truth(n.Unavailable == ""))
		ch <- prometheus.MustNewConstMetric(descDropped, prometheus.CounterValue, float64(n.EventsDropped))
	}
	ch <- prometheus.MustNewConstMetric(descMoved, prometheus.CounterValue, float64(moved))
	type key struct{ kind, namespace, name, field, effect string }
	problems := map[key]float64{}
	for _, p := range st.Problems {
		effect := "disabled"
		if p.Ignored {
			effect = "ignored"
		}
		problems[key{p.Object.Kind, p.Object.Namespace, p.Object.Name, p.Field, effect}]++
	}
	for k, n := range problems {
		gauge(descProblems, n, k.kind, k.namespace, k.name, k.field, k.effect)
	}
	addresses := 0
	for _, ep := range st.Endpoints {
		addresses += len(ep.Addresses)
	}
	gauge(descEndpoints, float64(len(st.Endpoints)))
	gauge(descBlocks, float64(len(st.Blocks)))
	gauge(descAddresses, float64(addresses))
	for owner, n := range st.Routes.ByOwner {
		gauge(descRoutes, float64(n), owner)
	}
	gauge(descUnresolved, float64(len(st.Routes.Unresolved)))
	gauge(descConflicts, float64(st.Routes.ConflictCount))
	gauge(descLeftOut, float64(st.Routes.LeftOutCount))
	gauge(descRouteErrs, float64(st.Routes.ErrorCount))
	for _, t := range st.Encapsulation.Tunnels {
		if t.Wanted {
			gauge(descTunnelUp, truth(t.Up), t.Device)
			gauge(descTunnelGone, float64(t.PeersWanted-t.Peers), t.Device)
			gauge(descTunnelErrs, float64(t.ErrorCount), t.Device)
		}
	}
	ch <- prometheus.MustNewConstMetric(descRestarts, prometheus.CounterValue, float64(st.Speaker.Restarts))
	for _, p := range st.Peers {
		addr := p.Address.String()
		gauge(descPeerUp, truth(p.State == "Established"), addr, asplain(p.ASN))
		gauge(descPeerHeld, truth(p.HeldBack != nil), addr)
		gauge(descPeerRoutes, float64(p.Received), addr, "received")
		gauge(descPeerRoutes, float64(p.Accepted), addr, "accepted")
		gauge(descPeerRoutes, float64(p.Advertised), addr, "advertised")
	}
	collectPolicy(ch, st.Policy)
	if c.policy != nil {
		ctx, cancel := context.WithTimeout(context.Background(), counting)
		defer cancel()
		collectPackets(ch, c.policy(ctx))
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// asplain writes an AS number as RFC 5396 section 2 has it.
func asplain(asn uint32) string { return strconv.FormatUint(uint64(asn), 10) }
