package policy

import (
	"slices"
	"testing"

	"github.com/causeway-net/causeway/internal/model"
)

// TestSurvey: policies come in the order in which they are asked, a staged one with what it would
// do, and the size is that of the program that the deltas come to.
func TestSurvey(t *testing.T) {
	r := newRig(t)
	staged := allow()
	staged.ID = model.PolicyID{Kind: model.PolicyStagedNamespaced, Namespace: "red", Name: "trial"}
	staged.Order = -1
	staged.Ingress = append(staged.Ingress, model.Rule{Action: model.RuleLog}, model.Rule{Action: model.RuleDeny})
	elsewhere := allow()
	elsewhere.ID.Namespace, elsewhere.ID.Name = "blue", "elsewhere"
	for _, p := range []model.Policy{from(`app == "web"`), elsewhere, staged} {
		must(t, r.SetPolicy(p))
	}
	r.pod("far", "", "10.0.0.2", map[string]string{"app": "web"})
	r.flush()
	got := r.Policies()
	if len(got) != 3 || got[0].ID != staged.ID || got[0].Locals != 1 || got[2].Locals+got[1].Locals != 1 {
		t.Fatalf("policies %+v", got)
	}
	if want := []Action{Allow, Log, Deny}; !slices.Equal(got[0].Rules[Ingress], want) || got[0].Rules[Egress] != nil || got[0].Tier != model.TierDefault || got[0].TierOrder != 1000000 {
		t.Errorf("staged: %+v, want rules %v", got[0], want)
	}
	members := 0
	for _, s := range r.prog.Sets {
		members += len(s)
	}
	if want := (Size{Endpoints: 1, Policies: 2, Chains: 2, Sets: len(r.prog.Sets), Members: members}); r.Size() != want || members != 2 {
		t.Errorf("size %+v, want %+v", r.Size(), want)
	}
	if eps := r.Endpoints(); len(eps) != 1 || eps[0].Interface != "cali1" || len(eps[0].Ingress.Tiers) != 1 {
		t.Errorf("endpoints %+v", eps)
	}
	if addrs, known := r.Addresses(model.PolicyEndpointID{Namespace: "red", Name: "far"}); !known || len(addrs) != 1 || addrs[0].String() != "10.0.0.2" {
		t.Errorf("addresses %v, known %v", addrs, known)
	}
	if _, known := r.Addresses(model.PolicyEndpointID{Namespace: "red", Name: "none"}); known {
		t.Error("a pod that nobody told of is known")
	}
}
