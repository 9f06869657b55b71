package controller

import (
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
)

var discard = slog.New(slog.DiscardHandler)

func nets(in ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range in {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func TestDefaultPools(t *testing.T) {
	kubeadm := func(s string) finding { return finding{"podSubnet of kubeadm", s} }
	proxy := func(s string) finding { return finding{"clusterCIDR of kube-proxy", s} }
	for name, tc := range map[string]struct {
		d    Defaults
		e    evidence
		want string // pools, or words of the error
	}{
		"nothing is known":              {Defaults{}, evidence{}, "! which addresses pods are to have is not known"},
		"podCIDRs alone do not tell":    {Defaults{}, evidence{podCIDRs: nets("10.244.0.0/24")}, "! such as 10.244.0.0/24"},
		"kubeadm":                       {Defaults{}, evidence{pods: []finding{kubeadm("10.244.0.0/16")}}, "10.244.0.0/16/26"},
		"kubeadm, two families":         {Defaults{}, evidence{pods: []finding{kubeadm("10.244.0.0/16, fd00::/48")}}, "10.244.0.0/16/26 fd00::/48/122"},
		"host bits, as Kubernetes":      {Defaults{}, evidence{pods: []finding{kubeadm("10.244.7.1/16")}}, "10.244.0.0/16/26"},
		"kube-proxy":                    {Defaults{}, evidence{pods: []finding{proxy("fd00::/48")}}, "fd00::/48/122"},
		"both agree":                    {Defaults{}, evidence{pods: []finding{kubeadm("10.244.0.0/16"), proxy("10.244.0.0/16")}}, "10.244.0.0/16/26"},
		"both tell one family each":     {Defaults{}, evidence{pods: []finding{kubeadm("10.244.0.0/16"), proxy("fd00::/48")}}, "10.244.0.0/16/26 fd00::/48/122"},
		"they differ":                   {Defaults{}, evidence{pods: []finding{kubeadm("10.244.0.0/16"), proxy("10.245.0.0/16")}}, "! podSubnet of kubeadm is 10.244.0.0/16, but clusterCIDR of kube-proxy is 10.245.0.0/16"},
		"nonsense":                      {Defaults{}, evidence{pods: []finding{kubeadm("ten")}}, `! podSubnet of kubeadm is "ten"`},
		"podCIDRs confirm":              {Defaults{}, evidence{pods: []finding{kubeadm("10.244.0.0/16")}, podCIDRs: nets("10.244.3.0/24", "fd00::/64")}, "10.244.0.0/16/26"},
		"podCIDRs contradict":           {Defaults{}, evidence{pods: []finding{kubeadm("10.244.0.0/16")}, podCIDRs: nets("10.1.3.0/24")}, "! a Node's podCIDR is 10.1.3.0/24"},
		"settings go first":             {Defaults{V4: PoolOptions{CIDR: "10.9.0.0/16"}}, evidence{pods: []finding{kubeadm("10.244.0.0/16")}, podCIDRs: nets("10.1.3.0/24")}, "10.9.0.0/16/26"},
		"one family by setting":         {Defaults{V4: PoolOptions{CIDR: "10.9.0.0/16"}}, evidence{pods: []finding{kubeadm("10.244.0.0/16,fd00::/48")}}, "10.9.0.0/16/26 fd00::/48/122"},
		"one family not at all":         {Defaults{V4: PoolOptions{CIDR: NoPool}}, evidence{pods: []finding{kubeadm("10.244.0.0/16,fd00::/48")}}, "fd00::/48/122"},
		"neither family":                {Defaults{V4: PoolOptions{CIDR: NoPool}, V6: PoolOptions{CIDR: NoPool}}, evidence{}, ""},
		"none":                          {Defaults{None: true}, evidence{pods: []finding{kubeadm("10.244.0.0/16")}}, ""},
		"the Services' range":           {Defaults{}, evidence{pods: []finding{kubeadm("10.0.0.0/8")}, services: nets("10.96.0.0/12")}, "! the Services' range 10.96.0.0/12"},
		"the Services' range, set":      {Defaults{V4: PoolOptions{CIDR: "10.96.5.0/24"}}, evidence{services: nets("10.96.0.0/12")}, "! --ipv4-pool is 10.96.5.0/24"},
		"a node's address":              {Defaults{}, evidence{pods: []finding{kubeadm("10.0.0.0/16")}, nodes: []address{{netip.MustParseAddr("10.0.0.7"), "n"}}}, "! holds the address 10.0.0.7 of Node n"},
		"smaller than a block":          {Defaults{}, evidence{pods: []finding{kubeadm("10.244.0.0/28")}}, "! .spec.blockSize"},
		"a block size that fits":        {Defaults{V4: PoolOptions{BlockSize: 28}}, evidence{pods: []finding{kubeadm("10.244.0.0/28")}}, "10.244.0.0/28/28"},
		"addresses that pods never use": {Defaults{V4: PoolOptions{CIDR: "169.254.0.0/17"}}, evidence{}, "! 169.254.0.0/16"},
	} {
		got, err := tc.d.pools(tc.e)
		var out []string
		for _, p := range got {
			out = append(out, fmt.Sprintf("%s/%d", p.Spec.CIDR, p.Spec.BlockSize))
		}
		if words, bad := strings.CutPrefix(tc.want, "! "); bad {
			if err == nil || !strings.Contains(err.Error(), words) {
				t.Errorf("%s: %v, error %v; want %q in it", name, out, err, words)
			}
			continue
		}
		if err != nil || strings.Join(out, " ") != tc.want {
			t.Errorf("%s: %v, error %v; want %s", name, out, err, tc.want)
		}
	}
}

func TestDefaultsCheck(t *testing.T) {
	for name, tc := range map[string]struct {
		d    Defaults
		want string
	}{
		"fine":                 {Defaults{V4: PoolOptions{IPIP: "CrossSubnet", NATOutgoing: true}, V6: PoolOptions{VXLAN: "Always"}}, ""},
		"not a network":        {Defaults{V4: PoolOptions{CIDR: "10.0.0.1/16"}}, "10.0.0.0/16"},
		"not even an address":  {Defaults{V6: PoolOptions{CIDR: "x"}}, `"x"`},
		"the other family":     {Defaults{V4: PoolOptions{CIDR: "fd00::/64"}}, "other family"},
		"no mode":              {Defaults{V4: PoolOptions{IPIP: "Off"}}, "Never"},
		"both encapsulations":  {Defaults{V4: PoolOptions{IPIP: "Always", VXLAN: "Always"}}, "one of them must be Never"},
		"block too large":      {Defaults{V4: PoolOptions{BlockSize: 19}}, "20"},
		"no selector":          {Defaults{V6: PoolOptions{NodeSelector: "has("}}, "nodeSelector"},
		"none, and all ignore": {Defaults{V4: PoolOptions{CIDR: NoPool, BlockSize: 7}}, ""},
	} {
		err := tc.d.check()
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
}
