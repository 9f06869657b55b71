package model

import (
	"slices"
	"testing"
)

func TestPolicyIDOrder(t *testing.T) {
	ids := []PolicyID{
		{PolicyGlobal, "", "b"}, {PolicyNamespaced, "z", "a"}, {PolicyNamespaced, "y", "a"}, {PolicyKubernetes, "y", "a"}, {PolicyGlobal, "", "a"},
	}
	slices.SortFunc(ids, PolicyID.Compare)
	want := []PolicyID{
		{PolicyGlobal, "", "a"}, {PolicyKubernetes, "y", "a"}, {PolicyNamespaced, "y", "a"}, {PolicyNamespaced, "z", "a"}, {PolicyGlobal, "", "b"},
	}
	if !slices.Equal(ids, want) {
		t.Errorf("order %v, want %v", ids, want)
	}
}

func TestPolicyKinds(t *testing.T) {
	for k, want := range map[PolicyKind][2]bool{
		PolicyKubernetes: {true, false}, PolicyCluster: {true, false}, PolicyNamespaced: {}, PolicyGlobal: {},
		PolicyStagedKubernetes: {true, true}, PolicyStagedNamespaced: {false, true}, PolicyStagedGlobal: {false, true},
	} {
		if k.PodsOnly() != want[0] || k.Staged() != want[1] {
			t.Errorf("%s: pods only %v, staged %v", k, k.PodsOnly(), k.Staged())
		}
	}
}

func TestPolicyNames(t *testing.T) {
	for got, want := range map[string]string{
		PolicyID{PolicyNamespaced, "red", "web"}.String():           "NetworkPolicy red/web",
		PolicyID{PolicyGlobal, "", "web"}.String():                  "GlobalNetworkPolicy web",
		PolicyEndpointID{EndpointWorkload, "red", "web"}.String():   "Pod red/web",
		PolicyEndpointID{Kind: EndpointHost, Name: "eth0"}.String(): "HostEndpoint eth0",
		NetworkSetID{"red", "nets"}.String():                        "NetworkSet red/nets",
		NetworkSetID{Name: "nets"}.String():                         "GlobalNetworkSet nets",
		ServiceID{"red", "web"}.String():                            "Service red/web",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
