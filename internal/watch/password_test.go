package watch

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/internal/model"
)

// TestPasswordsStay: a password that was in force stays so while it cannot be read, and is
// never replaced by none.
func TestPasswordsStay(t *testing.T) {
	var snap *model.Snapshot
	p := &Publisher{Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Publish: func(s *model.Snapshot) { snap = s }}
	peer := func(password *v3.BGPPassword) *v3.BGPPeer {
		x := &v3.BGPPeer{ObjectMeta: metav1.ObjectMeta{Name: "tor"}}
		x.Spec.PeerIP, x.Spec.ASNumber, x.Spec.Password = "192.0.2.1", 65001, password
		return x
	}
	mesh := config("default", func(s *v3.BGPConfigurationSpec) { s.NodeMeshPassword = ref("bgp", "mesh") })
	secrets := func(mesh, tor string) metav1.Object {
		s := secretObject("kube-system", "bgp", "mesh", mesh)
		s.Data["tor"] = []byte(tor)
		return s
	}
	for _, step := range []struct {
		name      string
		objects   []metav1.Object
		unread    map[string]Unread
		mesh, tor string // passwords; "down" where there is no session
		problem   string // its text
	}{
		{"no Secret yet", []metav1.Object{mesh, peer(ref("bgp", "tor"))}, nil, "down", "down", "stays down without its password"},
		{"it comes", []metav1.Object{mesh, peer(ref("bgp", "tor")), secrets("m1", "t1")}, nil, "m1", "t1", ""},
		{"it goes", []metav1.Object{mesh, peer(ref("bgp", "tor"))}, nil, "m1", "t1", "there is no Secret kube-system/bgp; the password that was read before stays in force"},
		{"it cannot be read", []metav1.Object{mesh, peer(ref("bgp", "tor"))}, map[string]Unread{"bgp": {Why: "later"}}, "m1", "t1", "cannot be read: later; the password that was read before stays"},
		{"a key is gone", []metav1.Object{mesh, peer(ref("bgp", "tor")), secretObject("kube-system", "bgp", "mesh", "m2")}, nil, "m2", "t1", `has no key "tor"; the password that was read before stays`},
		{"it is not valid", []metav1.Object{mesh, peer(ref("bgp", "tor")), secrets("m2", "t\n")}, nil, "m2", "t1", "control character"},
		{"optional, and gone", []metav1.Object{mesh, peer(optional(ref("bgp", "tor")))}, nil, "m2", "t1", "which is optional, is gone; the password that was read before stays"},
		{"it is another one", []metav1.Object{mesh, peer(ref("bgp", "tor")), secrets("m2", "t2")}, nil, "m2", "t2", ""},
		{"the peer wants none", []metav1.Object{mesh, peer(nil)}, nil, "m2", "", "there is no Secret"},
		{"the peer wants it again", []metav1.Object{mesh, peer(ref("bgp", "tor"))}, nil, "m2", "down", "stays down without its password"},
	} {
		in := Input{Unread: step.unread}
		for _, o := range step.objects {
			in.Objects = append(in.Objects, Sourced{Object: Check(o, Options{})})
		}
		p.Update(in)
		mesh, tor := "down", "down"
		if snap.BGP.Mesh {
			mesh = snap.BGP.MeshPassword
		}
		if len(snap.Peers) == 1 {
			tor = snap.Peers[0].Password
		}
		if mesh != step.mesh || tor != step.tor {
			t.Errorf("%s: passwords are %q and %q, want %q and %q", step.name, mesh, tor, step.mesh, step.tor)
		}
		if said := fmt.Sprint(snap.Problems); step.problem == "" && len(snap.Problems) > 0 || !strings.Contains(said, step.problem) {
			t.Errorf("%s: problems %s, want %q", step.name, said, step.problem)
		} else if strings.Contains(said, "m1") || strings.Contains(said, "t1") {
			t.Errorf("%s: a password is shown: %s", step.name, said)
		}
		if snap.BGP.Unknown {
			t.Errorf("%s: the configuration counts as unknown", step.name)
		}
	}
}
