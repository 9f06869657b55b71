package suite

import "time"

// List is what runs in the machine, one after the other. A new one is an entry here; its
// fields are explained at Entry. Timeouts leave room for a computer that others use too. What a topology needs is in bin/: make build plugins.
var List = []Entry{
	{Package: "felix/route"},
	{Package: "felix/link"},
	// Both backends; the modules are what iptables-legacy and what iptables-nft use.
	{Package: "felix/iptables", Timeout: 20 * time.Minute, Modules: []string{
		"ip_tables", "ip6_tables", "iptable_raw", "ip6table_raw", "iptable_nat", "ip6table_nat", "nf_tables", "nft_compat"}},
	{Package: "felix/tunnel", Modules: []string{"ipip", "vxlan"}, Shows: []string{"this kernel has ipip, and tunl0 works"}},
	{Package: "felix/overlay", Slow: 5, Timeout: 12 * time.Minute, Modules: []string{"ipip", "vxlan"}, Shows: []string{"this kernel has ipip; longest interruption"}},
	{Package: "cni-plugin/veth", Modules: []string{"veth"}},
	{Package: "test/topology/tworacks", Slow: 10, Memory: 4096, Timeout: 25 * time.Minute},
	// With IPIP there are three times as many changes of modes; all run here.
	{Package: "test/topology/threeracks", Slow: 5, Memory: 4096, Timeout: 25 * time.Minute, Modules: []string{"ipip", "vxlan"},
		Shows: []string{"this kernel has IPIP, and its scenarios run"}},
}
