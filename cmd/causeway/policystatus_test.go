package main

import (
	"math"
	"net/netip"
	"slices"
	"testing"

	"github.com/causeway-net/causeway/felix/policy"
	"github.com/causeway-net/causeway/internal/model"
)

// TestProblems: what two parts say of one field is said once, what one part says of it twice stays.
func TestProblems(t *testing.T) {
	web := model.Object{Kind: "NetworkPolicy", Namespace: "shop", Name: "web"}
	read := model.Problem{Object: web, Source: "web.yaml", Field: ".spec.ingress[0].http", Message: "is not looked at", Ignored: true}
	engine := model.Problem{Object: web, Field: read.Field, Message: "is not supported", Ignored: true}
	tier := model.Problem{Object: web, Field: ".spec.tier", Message: "is nosuch"}
	other := tier
	other.Message = "is empty"
	got := problems([]model.Problem{read}, nil, []model.Problem{engine, tier, other}, []model.Problem{tier})
	if want := []model.Problem{read, tier, other}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestEndpointStatus: a pod has two paths, a host as many as say something, in the order of a packet's way.
func TestEndpointStatus(t *testing.T) {
	id := policy.ChainID{Policy: model.PolicyID{Kind: model.PolicyGlobal, Name: "web"}}
	tiers := []policy.Tier{{Name: "default", Chains: []policy.ChainID{id}, End: policy.Deny}}
	pod := endpointStatus(&policy.Endpoint{
		ID: model.PolicyEndpointID{Namespace: "shop", Name: "web"}, Interface: "cali1", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")},
		Ingress: policy.Path{Tiers: tiers, Default: policy.Allow}, Egress: policy.Path{Default: policy.Allow},
	})
	if len(pod.Paths) != 2 || pod.Kind != "Pod" || pod.Paths[0].Tiers[0].End != "deny" || pod.Paths[0].Tiers[0].Policies[0] != id.Policy || pod.Paths[1].Default != "allow" {
		t.Errorf("pod %+v", pod)
	}
	host := endpointStatus(&policy.Endpoint{
		ID: model.PolicyEndpointID{Kind: model.EndpointHost, Name: "eth0"}, Interface: "eth0",
		PreDNAT: policy.Path{Tiers: tiers}, Ingress: policy.Path{Default: policy.Deny}, Egress: policy.Path{Default: policy.Deny},
		ForwardIngress: policy.Path{Default: policy.Allow}, ForwardEgress: policy.Path{Default: policy.Allow},
	})
	var places []string
	for _, p := range host.Paths {
		places = append(places, p.Place)
	}
	if want := []string{"pre-DNAT", "forward ingress", "ingress", "egress", "forward egress"}; host.Kind != "HostEndpoint" || !slices.Equal(places, want) || host.Paths[0].Default != "go on" {
		t.Errorf("host %+v", host)
	}
	if order(math.Inf(1)) != nil || *order(100) != 100 {
		t.Error("the last order has no number, and others do")
	}
}
