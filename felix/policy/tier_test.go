package policy

import (
	"testing"

	"github.com/causeway-net/causeway/internal/model"
)

// TestLastPolicyOfGoneTier: the only policy of a tier that was removed gets a version that
// endpoints ask in another place. It holds on to the tier meanwhile.
func TestLastPolicyOfGoneTier(t *testing.T) {
	e := New(Config{})
	if err := e.SetTier(model.Tier{Name: "late", Order: 2, DefaultAction: model.RuleDeny}); err != nil {
		t.Fatal(err)
	}
	p := model.Policy{ID: model.PolicyID{Kind: model.PolicyGlobal, Name: "p"}, Tier: "late", ForIngress: true}
	for _, order := range []float64{1, 2} {
		p.Order = order
		if err := e.SetPolicy(p); err != nil {
			t.Fatal(err)
		}
		e.RemoveTier("late")
	}
	e.RemovePolicy(p.ID)
	if err := e.SetPolicy(p); err == nil {
		t.Error("a policy came into a tier that is gone")
	}
}
