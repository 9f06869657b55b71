package main

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// suite is one list of upstream's specs and what is known about it.
type suite struct {
	name  string // for -suites, and the section of the record
	about string // a paragraph for the record
	focus string // -ginkgo.focus; empty for a suite that is no Ginkgo suite
	// left says which of the specs in focus cannot run here, and why.
	left []reason
	// short picks the specs of -short, a dozen or so that stand for all.
	short []string
	// atOnce is how many specs run at a time unless -at-once says another number. A spec of
	// policy mostly waits for packets that must not arrive; one of services keeps the
	// processors busy, and some measure time.
	atOnce int
	dns    bool // needs CoreDNS
	// crds are the CRDs that it needs: a Go module, and the path in it.
	crds [2]string
}

// reason tells why the specs whose name matches did not run.
type reason struct {
	specs *regexp.Regexp
	why   string
}

var suites = []suite{
	{
		name: "network",
		about: "Upstream's network specs (`[sig-network] [Conformance]` of k8s.io/kubernetes): Services, DNS, endpoints, pods that\n" +
			"reach pods and nodes. No policy is in them; they say that having the engine of policy in place breaks nothing.",
		focus:  `\[sig-network\].*\[Conformance\]`,
		atOnce: 1,
		dns:    true,
		short: []string{
			`Granular Checks: Pods should function for intra-pod communication: http`,
			`Granular Checks: Pods should function for node-pod communication: udp`,
			`should be able to create a functioning NodePort service`,
		},
	},
	{
		name: "netpol",
		about: "Upstream's specs of NetworkPolicy (k8s.io/kubernetes/test/e2e/network/netpol). Every one probes all pairs of its pods,\n" +
			"through Services, and compares with a table of what is allowed.",
		focus:  `\[sig-network\] Netpol`,
		atOnce: 4,
		short: []string{
			`server and client should support a 'default-deny-all' policy`,
			`should enforce policy to allow traffic from pods within server namespace based on PodSelector`,
			`should enforce policy based on Multiple PodSelectors and NamespaceSelectors`,
			`server and client should enforce policy based on Ports`,
			`using UDP should enforce policy based on Ports`,
			`using SCTP should enforce policy based on Ports`,
			`should enforce multiple, stacked policies with overlapping podSelectors`,
			`should allow ingress access from namespace on one named port`,
			`should allow egress access on one named port`,
			`should enforce except clause while egress access to server in CIDR block`,
			`should work with Ingress, Egress specified together`,
			`should enforce updated policy`,
			`should allow ingress access from updated namespace`,
			`should deny ingress access to updated pod`,
			`should stop enforcing policies after they are deleted`,
			`API with endport field`,
		},
	},
	{
		name: "clusternetpol",
		about: "Upstream's conformance suite of ClusterNetworkPolicy (sigs.k8s.io/network-policy-api/conformance), standard and experimental\n" +
			"channel: tiers Admin and Baseline, before and after NetworkPolicy. A test that found no way through must have found\n" +
			"silence: a refused connection counts as failed.",
		crds:  [2]string{"sigs.k8s.io/network-policy-api", "config/crd/experimental/policy.networking.k8s.io_clusternetworkpolicies.yaml"},
		short: []string{`CNPAdminTierIntegration`},
	},
}

// chosen are the suites of a list of names, in the order of suites.
func chosen(names string) ([]suite, error) {
	want := strings.Split(names, ",")
	var out []suite
	for _, s := range suites {
		if slices.Contains(want, s.name) {
			out = append(out, s)
		}
	}
	if len(out) != len(want) {
		var known []string
		for _, s := range suites {
			known = append(known, s.name)
		}
		return nil, fmt.Errorf("-suites %s: use names, each once, of %s", names, strings.Join(known, ", "))
	}
	return out, nil
}

// whyLeft is the reason why a spec does not run, empty when it does.
func (s *suite) whyLeft(spec string) string {
	for _, r := range s.left {
		if r.specs.MatchString(spec) {
			return r.why
		}
	}
	return ""
}

// inShort reports whether -short includes a spec.
func (s *suite) inShort(spec string) bool {
	return slices.ContainsFunc(s.short, func(part string) bool { return strings.Contains(spec, part) })
}

// combination is what the specs run against: a column of the record.
type combination struct {
	policy string // the packet filter of policy: "iptables" or "nftables"
	proxy  string // mode of kube-proxy: "iptables" or "nftables"
}

func (c combination) String() string {
	return "policy " + c.policy + ", kube-proxy " + c.proxy
}

// combinations are all pairs of two lists of packet filters.
func combinations(policies, proxies string) ([]combination, error) {
	for flag, list := range map[string]string{"-policy": policies, "-proxy-mode": proxies} {
		for _, v := range strings.Split(list, ",") {
			if v != "iptables" && v != "nftables" {
				return nil, fmt.Errorf("%s %q: use iptables, nftables or both with a comma between", flag, list)
			}
		}
	}
	var out []combination
	for _, policy := range strings.Split(policies, ",") {
		for _, proxy := range strings.Split(proxies, ",") {
			if c := (combination{policy, proxy}); !slices.Contains(out, c) {
				out = append(out, c)
			}
		}
	}
	return out, nil
}
