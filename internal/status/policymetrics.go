package status

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/causeway-net/causeway/internal/model"
)

// counting bounds how long a scrape waits for the kernel's counters.
const counting = 5 * time.Second

var (
	descPolicyBackend   = desc("policy_backend", "Always 1, with the packet filter that enforces policy.", "backend")
	descPolicySynced    = desc("policy_synced", "1 when all that was there at the agent's start is in force.")
	descPolicyWaiting   = desc("policy_waiting", "1 while changes are held back for what the datastore has not told.")
	descPolicyFailing   = desc("policy_failing", "1 while the kernel does not have the rules that it should have.")
	descPolicyEndpoints = desc("policy_endpoints", "Pods and host interfaces of this node that have rules.")
	descPolicyPolicies  = desc("policy_policies", "Policies in force for an endpoint of this node.")
	descPolicyChains    = desc("policy_chains", "Chains of policies, one for each direction.")
	descPolicySets      = desc("policy_sets", "Sets of addresses that rules name, each of one family.")
	descPolicyMembers   = desc("policy_set_members", "Members of all sets of addresses.")
	descPolicyChanges   = desc("policy_change_seconds", "How long changes take from the datastore's word until they stand in the kernel.")
	descPolicyLast      = desc("policy_last_change_seconds", "How long the last change took.")
	descPolicyPackets   = desc("policy_packets_total", "First packets of connections that met rules of a policy, by what the rules do or, in a staged policy, would do. Counts anew where a rule changes.", "kind", "namespace", "name", "direction", "action")
	descPolicyCounted   = desc("policy_counters_up", "1 when the kernel's counters of rules could be read.")
	descCutRounds       = desc("policy_connection_rounds_total", "How often connections were judged anew.")
	descCutFailures     = desc("policy_connection_round_failures_total", "How often that failed.")
	descCut             = desc("policy_connections_cut_total", "Connections that a change of policy forbade.")
	descCutRestored     = desc("policy_connections_restored_total", "Connections that a change of policy allowed again.")
	descCutHeld         = desc("policy_connections_held", "Connections that are cut and still known to the kernel.")
	descCutDelay        = desc("policy_connections_delay_seconds", "Time from the last change to the end of the round about it.")
	descAnnouncePeers   = desc("announce_peers", "Nodes that are told of new pods.")
	descAnnounceListens = desc("announce_listening", "1 when announcements of other nodes can arrive.")
	descAnnounceTrouble = desc("announce_trouble", "1 while addresses of new pods come late to or from other nodes.")
	descAnnouncePods    = desc("announce_pods_total", "Pods that were announced (sent), and those of other nodes that were heard of (received).", "direction")
	descAnnounceGrams   = desc("announce_datagrams_total", "Datagrams of announcements, by what became of them: sent, failed, received.", "outcome")
	descAnnounceRefused = desc("announce_refused_total", "Datagrams and pods in them that were not believed.", "reason")

	policyDescs = []*prometheus.Desc{
		descPolicyBackend, descPolicySynced, descPolicyWaiting, descPolicyFailing, descPolicyEndpoints, descPolicyPolicies, descPolicyChains, descPolicySets,
		descPolicyMembers, descPolicyChanges, descPolicyLast, descPolicyPackets, descPolicyCounted, descCutRounds, descCutFailures, descCut, descCutRestored,
		descCutHeld, descCutDelay, descAnnouncePeers, descAnnounceListens, descAnnounceTrouble, descAnnouncePods, descAnnounceGrams, descAnnounceRefused,
	}
)

func collectPolicy(ch chan<- prometheus.Metric, p Policy) {
	put := func(kind prometheus.ValueType) func(*prometheus.Desc, float64, ...string) {
		return func(d *prometheus.Desc, v float64, labels ...string) {
			ch <- prometheus.MustNewConstMetric(d, kind, v, labels...)
		}
	}
	gauge, counter := put(prometheus.GaugeValue), put(prometheus.CounterValue)
	if p.Backend != "" {
		gauge(descPolicyBackend, 1, p.Backend)
	}
	gauge(descPolicySynced, truth(p.Synced))
	gauge(descPolicyWaiting, truth(p.Waiting))
	gauge(descPolicyFailing, truth(p.Error != ""))
	gauge(descPolicyEndpoints, float64(p.Endpoints))
	gauge(descPolicyPolicies, float64(p.Policies))
	gauge(descPolicyChains, float64(p.Chains))
	gauge(descPolicySets, float64(p.Sets))
	gauge(descPolicyMembers, float64(p.Members))
	ch <- prometheus.MustNewConstSummary(descPolicyChanges, p.Changes, p.ChangeSeconds, nil)
	gauge(descPolicyLast, p.LastChange)
	counter(descCutRounds, float64(p.Connections.Rounds))
	counter(descCutFailures, float64(p.Connections.Failures))
	counter(descCut, float64(p.Connections.Cut))
	counter(descCutRestored, float64(p.Connections.Restored))
	gauge(descCutHeld, float64(p.Connections.Held))
	gauge(descCutDelay, p.Connections.Delay)
	a := p.Announcements
	if a == nil {
		return
	}
	gauge(descAnnouncePeers, float64(a.Peers))
	gauge(descAnnounceListens, truth(len(a.Listening) > 0))
	gauge(descAnnounceTrouble, truth(a.Trouble != ""))
	counter(descAnnouncePods, float64(a.Announced), "sent")
	counter(descAnnouncePods, float64(a.Delivered), "received")
	counter(descAnnounceGrams, float64(a.Sent), "sent")
	counter(descAnnounceGrams, float64(a.Failed), "failed")
	counter(descAnnounceGrams, float64(a.Received), "received")
	for reason, n := range a.Refused {
		counter(descAnnounceRefused, float64(n), reason)
	}
}

// collectPackets sums what rules count by policy, direction and action: a policy may have hundreds of
// rules.
func collectPackets(ch chan<- prometheus.Metric, d PolicyDetail) {
	ch <- prometheus.MustNewConstMetric(descPolicyCounted, prometheus.GaugeValue, truth(d.CountersError == ""))
	if d.CountersError != "" {
		return
	}
	type key struct {
		id                model.PolicyID
		direction, action string
	}
	sums := map[key]uint64{}
	for i := range d.Policies {
		p := &d.Policies[i]
		if p.Endpoints == 0 {
			continue
		}
		for _, r := range p.Rules {
			sums[key{p.ID, r.Direction, r.Action}] += r.Packets
		}
	}
	for k, n := range sums {
		ch <- prometheus.MustNewConstMetric(descPolicyPackets, prometheus.CounterValue, float64(n), string(k.id.Kind), k.id.Namespace, k.id.Name, k.direction, k.action)
	}
}
