package enforce

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/causeway-net/causeway/felix/trace"
	"github.com/causeway-net/causeway/internal/model"
)

// TestExplain: pods are found by name and by address, wherever they are, and the answer is by the
// rules that stand.
func TestExplain(t *testing.T) {
	w := newWorld(t)
	w.policies.SetNamespace(model.Namespace{Name: "default"})
	w.policies.SetPending(nil)
	w.use()
	for name, addr := range map[string]string{"web": "10.0.0.1", "near": "10.0.0.2"} {
		ep, object := pod(name, addr)
		w.policies.SetPod(object)
		if err := w.attach(ep); err != nil {
			t.Fatal(err)
		}
	}
	_, client := pod("client", "10.0.1.1")
	client.Node = "n2"
	w.policies.SetRemote(client)
	w.policies.Set(only("web", "client"))
	ask := func(from, to End) ([]Answer, error) {
		return w.Explain(t.Context(), Question{From: from, To: to, Protocol: model.ProtocolTCP, SourcePort: 40000, Port: 80})
	}
	named := func(name string) End { return End{Namespace: "default", Name: name} }
	w.sees("that the policy forbids", func() bool {
		a, err := ask(named("near"), named("web"))
		if err != nil || a[0].Result.Allowed {
			return false
		}
		_, err = ask(named("client"), named("web")) // known since the policy selects it
		return err == nil && a[0].Result.Stages[len(a[0].Result.Stages)-1].Point == trace.WorkloadIngress
	})
	a, err := ask(named("near"), named("web"))
	if err != nil {
		t.Fatal(err)
	}
	last := a[0].Result.Stages[len(a[0].Result.Stages)-1]
	if a[0].From.Name != "near" || a[0].To.Name != "web" || last.Point != trace.WorkloadIngress || last.Reason != trace.ByTier || last.Tier != model.TierDefault {
		t.Errorf("answer %+v", a[0])
	}
	a, err = ask(named("client"), End{Addr: netip.MustParseAddr("10.0.0.1")})
	if err != nil || !a[0].Result.Allowed || a[0].From.Name != "" || a[0].To.Name != "web" || a[0].Packet.In != "*" || a[0].Packet.Out != "caliweb" {
		t.Errorf("from another node: %+v, %v", a, err)
	}
	for want, ends := range map[string][2]End{
		"from: Pod default/nobody is not on this node": {named("nobody"), named("web")},
		"to: is missing":                     {named("web"), {}},
		"of no family that the protocol has": {named("web"), {Addr: netip.MustParseAddr("fd00::1")}},
	} {
		if _, err := ask(ends[0], ends[1]); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
	if st := w.Status(); st.Size.Endpoints != 2 || st.Size.Policies != 1 || st.Changes.Count == 0 || st.Changes.Last <= 0 || st.Changes.Took < st.Changes.Last {
		t.Errorf("status %+v", st)
	}
}
