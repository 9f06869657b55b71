package trace

import (
	"net/netip"
	"testing"

	"github.com/causeway-net/causeway/felix/policy"
	"github.com/causeway-net/causeway/internal/model"
)

const netSet = policy.SetID("n4aaaaaaaaaaaaaaaaaaaa")

// program is one workload, cali1, behind a policy that allows TCP from some networks but
// those of a port's, and a staged one before it.
func program() *policy.Program {
	p := policy.NewProgram()
	staged := policy.ChainID{Policy: model.PolicyID{Kind: model.PolicyStagedGlobal, Name: "trial"}}
	web := policy.ChainID{Policy: model.PolicyID{Kind: model.PolicyGlobal, Name: "web"}}
	p.Sets[netSet] = map[policy.Member]struct{}{{Prefix: netip.MustParsePrefix("10.1.0.0/16")}: {}, {Prefix: netip.MustParsePrefix("10.2.3.4/32")}: {}}
	p.Chains[staged] = policy.Chain{ID: staged, IPv4: []policy.Rule{{Action: policy.Return}}}
	p.Chains[web] = policy.Chain{ID: web, IPv4: []policy.Rule{
		{Action: policy.Log, Index: 0},
		{Action: policy.Allow, Index: 2, Protocol: 6, Src: policy.Peer{In: []policy.SetID{netSet}}, Dst: policy.Peer{NotPorts: []model.PortRange{{First: 22, Last: 23}}}},
	}}
	addr := netip.MustParseAddr("10.0.0.1")
	p.Endpoints["cali1"] = policy.Endpoint{ID: model.PolicyEndpointID{Namespace: "shop", Name: "web"}, Interface: "cali1", Addresses: []netip.Addr{addr}, Sources: []netip.Prefix{netip.PrefixFrom(addr, 32)},
		Ingress: policy.Path{Tiers: []policy.Tier{{Name: "default", Chains: []policy.ChainID{staged, web}, End: policy.Deny}}, Default: policy.Allow},
		Egress:  policy.Path{Default: policy.Allow}}
	p.Host.EndpointToHost = model.EndpointToHostReturn
	return p
}

func packet(src string, port uint16) Packet {
	return Packet{Src: netip.MustParseAddr(src), Dst: netip.MustParseAddr("10.0.0.1"), Protocol: 6, SrcPort: 4000, DstPort: port, In: "eth0", Out: "cali1"}
}

// TestTraceExplains: the text names every rule that matched and what decided.
func TestTraceExplains(t *testing.T) {
	for want, p := range map[string]Packet{
		`allowed
  workload ingress cali1 (Pod shop/web): allow by rule, tier default
    StagedGlobalNetworkPolicy trial ingress rule 0: return
    GlobalNetworkPolicy web ingress rule 0: log
    GlobalNetworkPolicy web ingress rule 2: allow`: packet("10.1.255.255", 80),
		`denied
  workload ingress cali1 (Pod shop/web): deny by end of tier, tier default
    StagedGlobalNetworkPolicy trial ingress rule 0: return
    GlobalNetworkPolicy web ingress rule 0: log`: packet("10.1.0.0", 23),
		`denied
  source check cali9: deny by no such endpoint`: {Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("10.9.9.9"), Protocol: 6, In: "cali9", Out: "eth0"},
		`allowed
  source check cali1 (Pod shop/web): allow by source address
  workload egress cali1 (Pod shop/web): allow by default
  to host cali1 (Pod shop/web): goes on, by defaultEndpointToHostAction`: {Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("10.9.9.9"), Protocol: 6, In: "cali1"},
	} {
		if got := Trace(program(), p).String(); got != want {
			t.Errorf("%s:\n%s\nwant\n%s", p, got, want)
		}
	}
}

// TestAllowedIsTrace: the short answer is the long one's, at the edges of networks and ports.
func TestAllowedIsTrace(t *testing.T) {
	for src, in := range map[string]bool{"10.0.255.255": false, "10.1.0.0": true, "10.1.255.255": true, "10.2.0.0": false, "10.2.3.3": false, "10.2.3.4": true, "10.2.3.5": false} {
		for port, open := range map[uint16]bool{0: true, 21: true, 22: false, 23: false, 24: true, 65535: true} {
			p := packet(src, port)
			if got := Allowed(program(), p); got != (in && open) || got != Trace(program(), p).Allowed {
				t.Errorf("%s: Allowed %v, want %v, %s", p, got, in && open, Trace(program(), p))
			}
		}
	}
}

func TestPacketString(t *testing.T) {
	p := packet("10.1.0.1", 80)
	p.FirstDst, p.FirstDstPort = netip.MustParseAddr("10.96.0.1"), 443
	if got, want := p.String(), "protocol 6 10.1.0.1:4000 > 10.0.0.1:80, eth0 > cali1, first to 10.96.0.1:443"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func BenchmarkAllowed(b *testing.B) {
	prog, p := program(), packet("10.2.3.4", 80)
	b.ReportAllocs()
	for b.Loop() {
		Allowed(prog, p)
	}
}
