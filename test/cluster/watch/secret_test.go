package watch_test

import (
	"encoding/base64"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/causeway-net/causeway/internal/model"
)

var silent = slog.New(slog.DiscardHandler)

const readerRBAC = `
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: watch-reader}
rules:
- {apiGroups: [""], resources: [nodes, namespaces, pods], verbs: [list, watch]}
- {apiGroups: [projectcalico.org, networking.k8s.io, policy.networking.k8s.io], resources: ["*"], verbs: [list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: watch-reader}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: watch-reader}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: reader}]
`

const secretRBAC = `
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: watch-secret, namespace: kube-system}
rules: [{apiGroups: [""], resources: [secrets], resourceNames: [tor], verbs: [list, watch]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: watch-secret, namespace: kube-system}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: watch-secret}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: reader}]
`

func secret(name, value string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Secret\nmetadata: {name: %s, namespace: kube-system}\ndata: {k: %s}\n---\n", name, base64.StdEncoding.EncodeToString([]byte(value)))
}

func guarded(name, secret string) string {
	return fmt.Sprintf("apiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata: {name: %s}\nspec: {node: n1, peerIP: 10.0.0.254, asNumber: 65100, password: {secretKeyRef: {name: %s, key: k}}}\n---\n", name, secret)
}

// TestSecrets: a password is read by the name of its Secret alone, as long as something
// refers to it; one that is forbidden is a problem of its peer until it is allowed.
func TestSecrets(t *testing.T) {
	installed(t)
	apply(t, readerRBAC)
	apply(t, nodeObject("n1", "10.0.0.1")+guarded("tor", "tor")+secret("tor", "hunter1")+secret("other", "hunter9"))
	r := start(t, impersonated(server.Config, "reader"))
	s := r.await("the peer without its password", func(s *model.Snapshot) bool { return hasProblem(s, "the Secret kube-system/tor cannot be read: ") })
	if len(s.Peers) != 0 || !hasProblem(s, "forbidden") || s.BGP.Unknown {
		t.Errorf("%+v", s)
	}
	apply(t, secretRBAC)
	r.await("the password, once it is allowed", func(s *model.Snapshot) bool {
		return len(s.Peers) == 1 && s.Peers[0].Password == "hunter1" && len(s.Problems) == 0
	})
	apply(t, secret("tor", "hunter2"))
	r.await("its change", func(s *model.Snapshot) bool { return s.Peers[0].Password == "hunter2" })
	remove(t, "v1/secrets", "kube-system", "tor")
	r.await("its end, which ends no session", func(s *model.Snapshot) bool {
		return len(s.Peers) == 1 && s.Peers[0].Password == "hunter2" && hasProblem(s, "there is no Secret kube-system/tor")
	})
	apply(t, secret("tor", "hunter3"))
	r.await("its return", func(s *model.Snapshot) bool { return len(s.Peers) == 1 && s.Peers[0].Password == "hunter3" })

	// A Node that vanishes leaves the watch of the password alone.
	remove(t, "v1/nodes", "", "n1")
	r.await("no Node", func(s *model.Snapshot) bool { return len(s.Nodes) == 0 && len(s.Peers) == 1 })
	if _, ok := r.watching("secret kube-system/tor"); !ok {
		t.Error("the Secret is not watched any more")
	}
	apply(t, nodeObject("n1", "10.0.0.1"))
	r.await("the Node", func(s *model.Snapshot) bool { return len(s.Nodes) == 1 })

	// A peer that turns to another Secret never loses its password on the way.
	before := r.published()
	apply(t, secret("tor2", "hunter4"))
	apply(t, strings.ReplaceAll(secretRBAC, "resourceNames: [tor]", "resourceNames: [tor, tor2]"))
	eventually(t, "the right to read the other", func() bool {
		return mayRead(t, "reader", "tor2")
	}, r.logged)
	apply(t, guarded("tor", "tor2"))
	r.await("the other password", func(s *model.Snapshot) bool { return len(s.Peers) == 1 && s.Peers[0].Password == "hunter4" })
	if n := r.published(); n != before+1 {
		t.Errorf("%d snapshots on the way", n-before)
	}
	if _, ok := r.watching("secret kube-system/tor"); ok {
		t.Error("the old Secret is still watched")
	}
	remove(t, "bgppeers", "", "tor")
	r.await("no peer", func(s *model.Snapshot) bool { return len(s.Peers) == 0 })
	eventually(t, "no Secret", func() bool { _, ok := r.watching("secret kube-system/tor2"); return !ok }, r.logged)
	if strings.Contains(r.logged(), "hunter") {
		t.Error("a password is logged")
	}
}

// TestForbidden: a kind that the agent may not read is a problem that names it, and what
// was known of it stays.
func TestForbidden(t *testing.T) {
	installed(t)
	apply(t, readerRBAC)
	apply(t, nodeObject("n1", "10.0.0.1")+poolObject("p", "10.244.0.0/16"))
	p := newProxy(t)
	r := start(t, impersonated(p.cfg, "reader"))
	r.await("all", func(s *model.Snapshot) bool { return len(s.Nodes) == 1 && len(s.Pools) == 1 })
	apply(t, strings.Replace(readerRBAC, "[projectcalico.org, networking.k8s.io, policy.networking.k8s.io]", "[networking.k8s.io]", 1))
	p.setCut(true) // a watch that stands is not asked again
	p.setCut(false)
	s := r.await("the problem", func(s *model.Snapshot) bool {
		return hasProblem(s, "Watch ippools.projectcalico.org: is forbidden; grant list and watch to the agent")
	})
	if len(s.Pools) != 1 || !hasProblem(s, "what was known stays in force") {
		t.Errorf("%+v", s)
	}
	apply(t, readerRBAC)
	r.await("its end", func(s *model.Snapshot) bool { return len(s.Problems) == 0 && len(s.Pools) == 1 })
}
