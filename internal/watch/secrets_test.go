package watch

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v3 "github.com/causeway-net/causeway/api/v3"
)

func guardedPeer(name string, set func(*v3.BGPPeerSpec)) *v3.BGPPeer {
	p := &v3.BGPPeer{ObjectMeta: meta(name), Spec: v3.BGPPeerSpec{PeerIP: "10.0.0.9", ASNumber: 1, Password: ref(name, "k")}}
	set(&p.Spec)
	return p
}

// TestSecretsNeeded holds that a node asks for the passwords of its own sessions alone, and
// that what it does not ask for is no problem of it.
func TestSecretsNeeded(t *testing.T) {
	type spec = *v3.BGPPeerSpec
	objects := []metav1.Object{
		config("default", func(s *v3.BGPConfigurationSpec) { s.NodeMeshPassword = ref("mesh", "k") }),
		guardedPeer("all", func(spec) {}),
		guardedPeer("by-name", func(s spec) { s.Node = "n1" }),
		guardedPeer("other-name", func(s spec) { s.Node = "n2" }),
		guardedPeer("by-label", func(s spec) { s.NodeSelector = `rack == "r1"` }),
		guardedPeer("other-label", func(s spec) { s.NodeSelector = `rack == "r2"` }),
		guardedPeer("back", func(s spec) { s.Node, s.PeerIP, s.ASNumber, s.PeerSelector = "n2", "", 0, `rack == "r1"` }),
		guardedPeer("no-way-back", func(s spec) {
			s.Node, s.PeerIP, s.ASNumber, s.PeerSelector, s.ReversePeering = "n2", "", 0, `rack == "r1"`, ptr(v3.ReversePeeringManual)
		}),
	}
	self := node("n1", func(n *corev1.Node) { n.Labels = map[string]string{"rack": "r1"} })
	sourced := func(objects ...metav1.Object) (out []Sourced) {
		for _, o := range objects {
			out = append(out, Sourced{Object: Check(o, opt)})
		}
		return out
	}
	names, known := SecretsNeeded(sourced(append(objects, self)...), opt)
	if want := []string{"all", "back", "by-label", "by-name", "mesh"}; !known || !slices.Equal(names, want) {
		t.Errorf("needed: %v, %v; want %v", names, known, want)
	}
	if names, known := SecretsNeeded(sourced(objects...), opt); known || len(names) != 8 {
		t.Errorf("without the own Node: %v, %v", names, known)
	}

	in := Input{Objects: sourced(append(objects, self)...), Unread: map[string]Unread{
		"mesh": {Why: "it is forbidden", Lasting: true}, "all": {Why: "it is forbidden", Lasting: true},
	}}
	for _, n := range []string{"by-name", "by-label", "back"} {
		in.Objects = append(in.Objects, sourced(secretObject("", n, "k", "v"))...)
	}
	s := Build(in, opt)
	var peers []string
	for _, p := range s.Peers {
		peers = append(peers, p.Name+"="+p.Password)
	}
	if got := strings.Join(peers, " "); got != "back=v by-label=v by-name=v" || s.BGP.Mesh || s.BGP.Unknown {
		t.Errorf("peers in force: %s; %+v", got, s.BGP)
	}
	expect(t, "forbidden", s,
		"bad .spec.nodeMeshPassword.secretKeyRef the Secret kube-system/mesh cannot be read: it is forbidden; the node mesh stays down",
		"bad .spec.password.secretKeyRef the Secret kube-system/all cannot be read: it is forbidden; the peer stays down")

	// While nobody knows whether the password is there, nothing is proven stale; and what
	// is optional is not taken for absent.
	peer := guardedPeer("p", func(s spec) { s.Password = optional(s.Password) })
	in = Input{Objects: sourced(peer, self), Unread: map[string]Unread{"p": {Why: "not yet"}}}
	if s = Build(in, opt); !s.BGP.Unknown || len(s.Peers) != 0 {
		t.Errorf("an unread Secret: %+v %+v", s.BGP, s.Peers)
	}
	in.Objects = append(in.Objects, sourced(secretObject("", "p", "k", "v"))...)
	if s = Build(in, opt); s.BGP.Unknown || len(s.Peers) != 1 || len(s.Problems) != 0 {
		t.Errorf("the last known version: %+v %+v\n%s", s.BGP, s.Peers, problems(s))
	}
}

func TestNamespaceSelector(t *testing.T) {
	p := pool("a", "10.244.0.0/16", func(s *v3.IPPoolSpec) { s.NamespaceSelector = `team == "a"` })
	for known, want := range map[bool]int{false: 1, true: 0} {
		o := Options{Node: "n1", NamespaceLabels: known}
		s := Build(Input{Objects: []Sourced{{Object: Check(p, o)}}}, o)
		if len(s.Problems) != want || len(s.Pools) != 1 || s.Pools[0].NamespaceSelector == nil {
			t.Errorf("labels known %v: %+v\n%s", known, s.Pools, problems(s))
		}
	}
}

func TestSucceed(t *testing.T) {
	valid, same, broken := Check(pool("a", "10.0.0.0/8"), opt), Check(pool("a", "10.0.0.0/8"), opt), Check(pool("a", "x"), opt)
	if o, p := Succeed(valid, same, nil); o != valid || p != nil {
		t.Errorf("a version that means the same: %+v %v", o, p)
	}
	if o, p := Succeed(valid, broken, nil); o != valid || len(p) != 1 || !strings.HasSuffix(p[0].Message, "its last valid version stays in force") {
		t.Errorf("a broken version: %+v %v", o, p)
	}
	if o, p := Succeed(nil, broken, nil); o != nil || len(p) != 1 || strings.Contains(p[0].Message, "last valid") {
		t.Errorf("a first version that is broken: %+v %v", o, p)
	}
}
