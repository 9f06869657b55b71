package policy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/causeway-net/causeway/internal/model"
)

func newRand(t *testing.T) *rand.Rand {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

func from(selector string) model.Policy {
	p := allow()
	p.Ingress[0].Source.Selector = selector
	return p
}

// TestOnlyTheDelta looks at what comes out for each kind of change.
func TestOnlyTheDelta(t *testing.T) {
	r := newRig(t)
	must(t, r.SetPolicy(from(`app == "api"`)))
	d := r.flush()
	if len(d.NewSets) != 1 || len(d.Chains) != 1 || len(d.Endpoints) != 1 || len(d.GoneSets) != 0 {
		t.Fatalf("a new policy: %+v", d)
	}
	set := d.NewSets[0].ID
	if kind, f, ok := KindOf(set); !ok || kind != SetIP || f != IPv4 || d.NewSets[0].Origin != `(app == "api" && projectcalico.org/namespace == "red")` {
		t.Errorf("set %+v", d.NewSets[0])
	}
	r.pod("api", "", "10.0.0.2", map[string]string{"app": "api"})
	d = r.flush()
	if len(d.ChangedSets) != 1 || len(d.NewSets)+len(d.Chains)+len(d.Endpoints) != 0 || r.members(set) != "10.0.0.2" {
		t.Fatalf("a new pod: %+v", d)
	}
	r.pod("api", "", "10.0.0.3", map[string]string{"app": "api"})
	if r.flush(); r.members(set) != "10.0.0.3" {
		t.Errorf("another address: members %s", r.members(set))
	}
	// Another pod has the address before the first one is gone.
	r.pod("next", "", "10.0.0.3", map[string]string{"app": "api"})
	r.RemoveEndpoint(model.PolicyEndpointID{Namespace: "red", Name: "api"})
	if d = r.flush(); !d.Empty() {
		t.Errorf("an address that changes hands: %+v", d)
	}
	r.pod("next", "", "10.0.0.3", map[string]string{"app": "else"})
	if r.flush(); r.members(set) != "" {
		t.Errorf("another label: members %s", r.members(set))
	}
	// The same again changes nothing; another policy with the same selector has the same set.
	must(t, r.SetPolicy(from(`app=='api'`)))
	r.SetNamespace(model.Namespace{Name: "red", Labels: map[string]string{"env": "test"}})
	r.pod("web", "cali1", "10.0.0.1", map[string]string{"app": "web"})
	if d = r.flush(); !d.Empty() {
		t.Errorf("the same again: %+v", d)
	}
	q := from(`(app == "api")`)
	q.ID.Name = "q"
	must(t, r.SetPolicy(q))
	if d = r.flush(); len(d.NewSets) != 0 || len(d.Chains) != 1 || len(d.Endpoints) != 1 {
		t.Errorf("a policy with the same selector: %+v", d)
	}
	r.RemovePolicy(q.ID)
	must(t, r.SetPolicy(from(`app == "db"`)))
	if d = r.flush(); len(d.GoneSets) != 1 || d.GoneSets[0] != set || len(d.NewSets) != 1 || len(d.GoneChains) != 1 || len(d.Chains) != 1 {
		t.Errorf("another selector: %+v", d)
	}
	// Removed and made again before anybody looked.
	r.RemovePolicy(allow().ID)
	must(t, r.SetPolicy(from(`app == "db"`)))
	if d = r.flush(); !d.Empty() {
		t.Errorf("removed and made again: %+v", d)
	}
	r.RemoveEndpoint(model.PolicyEndpointID{Namespace: "red", Name: "web"})
	if d = r.flush(); len(d.GoneSets) != 1 || len(d.GoneChains) != 1 || !slices.Equal(d.GoneEndpoints, []string{"cali1"}) {
		t.Errorf("the last local pod goes: %+v", d)
	}
}

// TestSetsOfNetworks: a set that comes to hold a network becomes another kind of set, and holds
// no member within another.
func TestSetsOfNetworks(t *testing.T) {
	r := newRig(t)
	must(t, r.SetPolicy(from(`app == "api"`)))
	r.pod("api", "", "10.0.0.2", map[string]string{"app": "api"})
	r.flush()
	was := r.chain(allow().ID)[0].Src.In[0]
	nets := func(s ...string) {
		m := model.NetworkSet{ID: model.NetworkSetID{Namespace: "red", Name: "nets"}, Labels: map[string]string{"app": "api"}}
		for _, p := range s {
			m.Nets = append(m.Nets, netip.MustParsePrefix(p))
		}
		must(t, r.SetNetworkSet(m))
	}
	nets("192.0.2.1/32")
	if d := r.flush(); len(d.ChangedSets) != 1 || len(d.Chains) != 0 {
		t.Fatalf("a single address: %+v", d)
	}
	nets("192.0.2.0/24", "10.0.0.0/24", "10.0.0.0/16", "192.0.2.1/32")
	d := r.flush()
	id := r.chain(allow().ID)[0].Src.In[0]
	if kind, _, _ := KindOf(id); kind != SetNet || !slices.Equal(d.GoneSets, []SetID{was}) || len(d.Chains) != 1 || r.members(id) != "10.0.0.0/16 192.0.2.0/24" {
		t.Fatalf("networks: set %s of %s, delta %+v", id, r.members(id), d)
	}
	r.pod("more", "", "10.0.0.9", map[string]string{"app": "api"})
	if d = r.flush(); !d.Empty() {
		t.Errorf("an address within a network: %+v", d)
	}
	r.pod("more", "", "10.9.0.9", map[string]string{"app": "api"})
	if r.flush(); r.members(id) != "10.0.0.0/16 10.9.0.9 192.0.2.0/24" {
		t.Errorf("an address outside: %s", r.members(id))
	}
	nets("192.0.2.0/24")
	if r.flush(); r.members(id) != "10.0.0.2 10.9.0.9 192.0.2.0/24" {
		t.Errorf("a network less: %s", r.members(id))
	}
	nets("0.0.0.0/0")
	if r.flush(); r.members(id) != "0.0.0.0/1 128.0.0.0/1" {
		t.Errorf("all addresses: %s", r.members(id))
	}
	nets()
	if d = r.flush(); r.members(was) != "10.0.0.2 10.9.0.9" || !slices.Equal(d.GoneSets, []SetID{id}) {
		t.Errorf("no network: %s, %+v", r.members(was), d)
	}
}

func TestUnknownPodsAreDenied(t *testing.T) {
	r := newRig(t)
	p := allow()
	must(t, r.SetPolicy(p))
	m := model.PolicyEndpoint{ID: model.PolicyEndpointID{Namespace: "red", Name: "new"}, Interface: "cali2", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.7")}, Unknown: true}
	must(t, r.SetEndpoint(m))
	r.flush()
	denied := func(iface string) bool {
		ep, ok := r.prog.Endpoints[iface]
		return ok && len(ep.Ingress.Tiers)+len(ep.Egress.Tiers) == 0 && ep.Ingress.Default == Deny && ep.Egress.Default == Deny && len(ep.Addresses) == 1
	}
	if !denied("cali2") || denied("cali1") {
		t.Fatalf("endpoints %+v", r.prog.Endpoints)
	}
	m.Unknown = false
	must(t, r.SetEndpoint(m))
	r.flush()
	if denied("cali2") || len(r.prog.Endpoints["cali2"].Ingress.Tiers) != 1 {
		t.Errorf("endpoint %+v", r.prog.Endpoints["cali2"])
	}
	// So are pods whose namespace is not known.
	m.ID.Namespace, m.Interface = "blue", "cali3"
	must(t, r.SetEndpoint(m))
	if r.flush(); !denied("cali3") {
		t.Errorf("endpoint %+v", r.prog.Endpoints["cali3"])
	}
	r.SetNamespace(model.Namespace{Name: "blue"})
	if r.flush(); denied("cali3") {
		t.Errorf("endpoint %+v", r.prog.Endpoints["cali3"])
	}
	m.ID.Namespace, m.Interface = "", "cali4"
	must(t, r.SetEndpoint(m))
	if r.flush(); denied("cali4") {
		t.Errorf("endpoint %+v", r.prog.Endpoints["cali4"])
	}
}

func TestFamilyThatNobodyHas(t *testing.T) {
	r := newRig(t)
	p := from(`app == "api"`)
	p.Ingress = append(p.Ingress, model.Rule{Action: model.RuleDeny, Source: model.EntityRule{NotSelector: `app == "api"`}},
		model.Rule{Action: model.RuleAllow, Source: model.EntityRule{Nets: []netip.Prefix{netip.MustParsePrefix("fd00::/64"), netip.MustParsePrefix("fd01::/64")}}})
	must(t, r.SetPolicy(p))
	r.flush()
	c := r.prog.Chains[ChainID{p.ID, Ingress}]
	// Nobody has an IPv6 address: no selector matches one.
	if len(c.IPv4) != 2 || len(c.IPv6) != 2 || len(c.IPv6[0].Src.NotIn) != 0 || c.IPv6[0].Action != Deny || len(c.IPv6[1].Src.In) != 1 {
		t.Fatalf("chain %+v", c)
	}
	r.pod("api", "", "fd00::2", map[string]string{"app": "api"})
	d := r.flush()
	if c = r.prog.Chains[ChainID{p.ID, Ingress}]; len(c.IPv6) != 3 || len(c.IPv6[1].Src.NotIn) != 1 || r.members(c.IPv6[0].Src.In[0]) != "fd00::2/128" {
		t.Errorf("chain %+v after %+v", c, d)
	}
}

func TestHostEndpoints(t *testing.T) {
	r := newRig(t)
	hep := func(name, iface string) model.PolicyEndpoint {
		return model.PolicyEndpoint{ID: model.PolicyEndpointID{Kind: model.EndpointHost, Name: name}, Interface: iface, Labels: map[string]string{"host": "yes"}}
	}
	must(t, r.SetEndpoint(hep("b", "eth0")))
	must(t, r.SetEndpoint(hep("a", "eth0")))
	global := func(name string, change func(*model.Policy)) {
		p := model.Policy{ID: model.PolicyID{Kind: model.PolicyGlobal, Name: name}, Tier: "default", ForIngress: true, Ingress: []model.Rule{{Action: model.RuleAllow}}}
		if change != nil {
			change(&p)
		}
		must(t, r.SetPolicy(p))
	}
	global("all", nil)
	global("forward", func(p *model.Policy) { p.ApplyOnForward, p.ForEgress = true, true })
	global("raw", func(p *model.Policy) { p.ApplyOnForward, p.Untracked = true, true })
	global("early", func(p *model.Policy) { p.ApplyOnForward, p.PreDNAT = true, true })
	global("pods", func(p *model.Policy) { p.Subject.NamespaceSelector = "all()" })
	r.flush()
	names := func(p Path) (out []string) {
		for _, tier := range p.Tiers {
			for _, c := range tier.Chains {
				out = append(out, c.Policy.Name)
			}
			out = append(out, tier.End.String())
		}
		return append(out, p.Default.String())
	}
	got := r.prog.Endpoints["eth0"]
	if got.ID.Name != "a" {
		t.Errorf("eth0 is of %s", got.ID)
	}
	want := [7][]string{
		{"all", "forward", "deny", "deny"}, {"forward", "deny", "deny"},
		{"forward", "deny", "allow"}, {"forward", "deny", "allow"},
		{"raw", "pass", "none"}, {"none"}, {"early", "pass", "none"},
	}
	for i, p := range got.Paths() {
		if !slices.Equal(names(*p), want[i]) {
			t.Errorf("path %d is %v, want %v", i, names(*p), want[i])
		}
	}
	pod := r.prog.Endpoints["cali1"]
	if !slices.Equal(names(pod.Ingress), []string{"all", "forward", "pods", "deny", "allow"}) {
		t.Errorf("the pod's ingress is %v", names(pod.Ingress))
	}
	if r.prog.Chains[ChainID{model.PolicyID{Kind: model.PolicyGlobal, Name: "raw"}, Ingress}].Layer != LayerUntracked {
		t.Error("raw is not in the raw table")
	}
	if p := r.Problems(); len(p) != 1 || p[0].Object.Name != "b" || p[0].Message != "is eth0, which HostEndpoint a has; must be an interface that no other endpoint has" {
		t.Errorf("problems %v", p)
	}
	r.RemoveEndpoint(model.PolicyEndpointID{Kind: model.EndpointHost, Name: "a"})
	must(t, r.SetEndpoint(hep("b", "eth1")))
	d := r.flush()
	if !slices.Equal(d.GoneEndpoints, []string{"eth0"}) || len(d.Endpoints) != 1 || d.Endpoints[0].Interface != "eth1" || len(r.Problems()) != 0 {
		t.Errorf("delta %+v", d)
	}
}

func TestHostAndLog(t *testing.T) {
	r := &rig{New(Config{LogPrefix: "x", LogPerMinute: 5}), t, NewProgram()}
	r.SetNamespace(model.Namespace{Name: "red"})
	r.pod("web", "cali1", "10.0.0.1", nil)
	r.SetHost(model.HostPolicy{FailsafeIn: []model.FailsafePort{{Protocol: 6, Port: 22}}, EndpointToHost: model.EndpointToHostDrop})
	p := allow()
	p.Ingress = []model.Rule{{Action: model.RuleLog}}
	must(t, r.SetPolicy(p))
	r.flush()
	if l := r.chain(p.ID)[0].Log; l == nil || *l != (LogOptions{"x", 5, 10}) {
		t.Errorf("log %+v", l)
	}
	if len(r.prog.Host.FailsafeIn) != 1 || r.prog.Host.EndpointToHost != model.EndpointToHostDrop {
		t.Errorf("host %+v", r.prog.Host)
	}
	if r.SetHost(r.prog.Host); !r.flush().Empty() {
		t.Error("the same host policy again changes something")
	}
}

func TestNeeds(t *testing.T) {
	r := newRig(t)
	svc := model.ServiceID{Namespace: "red", Name: "web"}
	if r.NeedsRemotePods() || r.NeedsService(svc) {
		t.Error("without policies")
	}
	p := from(`app == "api"`)
	p.Subject.Selector = `app == "none"`
	must(t, r.SetPolicy(p))
	if r.flush(); r.NeedsRemotePods() || r.Applies(p.ID) != 0 {
		t.Error("with a policy that selects no local pod")
	}
	p.Subject.Selector = ""
	p.Ingress = append(p.Ingress, model.Rule{Action: model.RuleAllow, Source: model.EntityRule{Service: &svc}})
	must(t, r.SetPolicy(p))
	if r.flush(); !r.NeedsRemotePods() || !r.NeedsService(svc) || r.Applies(p.ID) != 1 {
		t.Error("with one that does")
	}
	p = allow()
	must(t, r.SetPolicy(p))
	if r.flush(); r.NeedsRemotePods() || r.NeedsService(svc) {
		t.Error("with rules that select nothing")
	}
	p.Subject.Selector, p.AssumeNeeded = `app == "none"`, true
	must(t, r.SetPolicy(p))
	if r.flush(); len(r.prog.Chains) != 1 {
		t.Error("a policy that is assumed to be needed is not there")
	}
}

// TestWhatIsAsked counts selectors that are evaluated: those that name what changed, however
// many there are.
func TestWhatIsAsked(t *testing.T) {
	const n = 500
	r := newRig(t)
	for i := range n {
		p := from(fmt.Sprintf(`app == "app-%d"`, i))
		p.ID.Name = fmt.Sprint("p", i)
		p.Ingress = append(p.Ingress, model.Rule{Action: model.RuleAllow, Source: model.EntityRule{Selector: fmt.Sprintf(`zone != "zone-%d"`, i)}})
		must(t, r.SetPolicy(p))
	}
	r.pod("api", "", "10.0.0.2", map[string]string{"app": "app-1", "zone": "zone-1", "other": "x"})
	r.flush()
	asked := func(what string, most int, labels map[string]string) {
		t.Helper()
		before := r.peers.asked + r.subjects.asked
		r.pod("api", "", "10.0.0.2", labels)
		if got := r.peers.asked + r.subjects.asked - before; got > most {
			t.Errorf("%s: %d selectors asked, want %d at most", what, got, most)
		}
	}
	asked("a label that no selector names", 0, map[string]string{"app": "app-1", "zone": "zone-1", "other": "y"})
	asked("a label that many selectors require to have other values", 1, map[string]string{"app": "app-2", "zone": "zone-1", "other": "y"})
	asked("a label that many selectors name", n, map[string]string{"app": "app-2", "zone": "zone-2", "other": "y"})
	r.SetNamespace(model.Namespace{Name: "red", Labels: map[string]string{"env": "prod"}})
	asked("nothing", 0, map[string]string{"app": "app-2", "zone": "zone-2", "other": "y"})
	r.flush()
}

func TestBadObjects(t *testing.T) {
	e := New(Config{})
	for _, err := range []error{
		e.SetEndpoint(model.PolicyEndpoint{Addresses: []netip.Addr{{}}}),
		e.SetNode(model.PolicyNode{Addresses: []netip.Addr{{}}}),
		e.SetNetworkSet(model.NetworkSet{Nets: []netip.Prefix{{}}}),
		e.SetService(model.ServiceEndpoints{Endpoints: []model.ServiceEndpoint{{}}}),
		e.SetTier(model.Tier{Name: "t", DefaultAction: "Allow"}),
	} {
		if err == nil {
			t.Error("a bad object is taken")
		}
	}
	if len(e.endpoints)+len(e.nodeItems)+len(e.netsets)+len(e.services)+len(e.tiers) != 3 {
		t.Errorf("a bad object left something: %+v", e)
	}
}
