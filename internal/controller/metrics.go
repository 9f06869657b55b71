package controller

import (
	"github.com/prometheus/client_golang/prometheus"
)

// counters count what all terms of this process did.
type counters struct {
	addressesFreed, blocksDeleted prometheus.Counter
}

func newCounters() *counters {
	return &counters{
		addressesFreed: prometheus.NewCounter(prometheus.CounterOpts{Name: "causeway_controller_addresses_freed_total", Help: "Addresses freed that nodes left behind."}),
		blocksDeleted:  prometheus.NewCounter(prometheus.CounterOpts{Name: "causeway_controller_blocks_deleted_total", Help: "Empty blocks deleted that no node owned."}),
	}
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("causeway_"+name, help, labels, nil)
}

var (
	descLeader     = desc("controller_leader", "1 while this replica leads.")
	descReady      = desc("controller_ready", "1 when this replica does its work or stands by.")
	descAddresses  = desc("pool_addresses", "Addresses of the claimed blocks of a pool.", "pool", "state")
	descCapacity   = desc("pool_capacity_addresses", "Addresses of a pool.", "pool")
	descBlocks     = desc("pool_blocks", "Claimed blocks of a pool.", "pool")
	descExhausted  = desc("pool_exhausted", "1 when a pool has no free block and no free address.", "pool")
	descNodeBlocks = desc("node_blocks", "Blocks that a node owns.", "node")
	descLacking    = desc("loadbalancer_services_lacking", "Services of type LoadBalancer that lack an address.")
	descDeparted   = desc("controller_departed_nodes", "Nodes that are gone and that blocks still name.")
	descPolicies   = desc("policy_objects_with_problems", "Policies and tiers that are not in force (disabled), or not in all that they say (ignored).", "kind", "effect")
)

// Collector makes the metrics; a replica that stands by has no numbers of pools.
func (c *Controller) Collector() prometheus.Collector { return collector{c} }

type collector struct{ c *Controller }

func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descLeader, descReady, descAddresses, descCapacity, descBlocks, descExhausted, descNodeBlocks, descLacking, descDeparted, descPolicies} {
		ch <- d
	}
	c.c.counts.addressesFreed.Describe(ch)
	c.c.counts.blocksDeleted.Describe(ch)
}

func (c collector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	t := c.c.current()
	gauge(descLeader, truth(t != nil))
	gauge(descReady, truth(c.c.Ready() == nil))
	c.c.counts.addressesFreed.Collect(ch)
	c.c.counts.blocksDeleted.Collect(ch)
	if t == nil {
		return
	}
	for name, u := range t.reporter.all() {
		gauge(descAddresses, float64(u.inUse), name, "in_use")
		gauge(descAddresses, float64(u.stash), name, "stash")
		gauge(descAddresses, float64(u.free), name, "free")
		gauge(descAddresses, float64(u.resting), name, "resting")
		gauge(descCapacity, u.capacity(), name)
		gauge(descBlocks, float64(u.blocks), name)
		gauge(descExhausted, truth(u.exhausted()), name)
	}
	owned := map[string]int{}
	for _, e := range t.ledger.all() {
		if e.block != nil && e.block.Node() != "" {
			owned[e.block.Node()]++
		}
	}
	for node, n := range owned {
		gauge(descNodeBlocks, float64(n), node)
	}
	gauge(descLacking, float64(t.assigner.lackingCount()))
	gauge(descDeparted, float64(t.sweeper.departed()))
	for kind, n := range t.examiner.troubles() {
		gauge(descPolicies, float64(n.disabled), kind, "disabled")
		gauge(descPolicies, float64(n.ignored), kind, "ignored")
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
