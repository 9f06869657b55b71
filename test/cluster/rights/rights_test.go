package rights_test

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/causeway-net/causeway/internal/kubeapi"
	"github.com/causeway-net/causeway/test/cluster/apiserver"
	"github.com/causeway-net/causeway/test/cluster/rights"
)

var (
	config *rest.Config
	dir    string // of the audit log
)

func TestMain(m *testing.M) {
	// Main runs this again in a namespace: both name one folder, which TestCompare removes.
	const env = "CAUSEWAY_TEST_RIGHTS_DIR"
	if dir = os.Getenv(env); dir == "" {
		var err error
		if dir, err = os.MkdirTemp("", "causeway-rights-"); err != nil {
			panic(err)
		}
		os.Setenv(env, dir)
	}
	policy := filepath.Join(dir, "policy.yaml")
	if err := os.WriteFile(policy, []byte(rights.AuditPolicy), 0o600); err != nil {
		panic(err)
	}
	apiserver.Main(m, func(c *rest.Config) { config = c }, "--audit-log-path="+filepath.Join(dir, "audit.log"), "--audit-policy-file="+policy)
}

const manifest = `
apiVersion: v1
kind: ServiceAccount
metadata: {name: a, namespace: kube-system}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: rights-test}
rules:
  - {apiGroups: [""], resources: [nodes, namespaces], verbs: [list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: rights-test}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: rights-test}
subjects: [{kind: ServiceAccount, name: a, namespace: kube-system}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: rights-test, namespace: kube-system}
rules:
  - {apiGroups: [""], resources: [secrets], resourceNames: [one, two], verbs: [list]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: rights-test, namespace: kube-system}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: rights-test}
subjects: [{kind: ServiceAccount, name: a, namespace: kube-system}]
`

// TestCompare asks a real API server for some things and reads its audit log.
func TestCompare(t *testing.T) {
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	ctx := t.Context()
	_, err := apiserver.ApplyYAML(ctx, config, []byte(manifest))
	must(err)
	admin, err := kubeapi.New(config)
	must(err)
	token, err := admin.Core.CoreV1().ServiceAccounts("kube-system").CreateToken(ctx, "a", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	must(err)
	cfg := rest.AnonymousClientConfig(config)
	cfg.BearerToken = token.Status.Token
	c, err := kubeapi.New(cfg)
	must(err)
	core := c.Core.CoreV1()
	_, err = core.Nodes().List(ctx, metav1.ListOptions{})
	must(err)
	w, err := core.Nodes().Watch(ctx, metav1.ListOptions{}) // open until the end
	must(err)
	defer w.Stop()
	_, err = core.Secrets("kube-system").List(ctx, metav1.ListOptions{FieldSelector: "metadata.name=one"})
	must(err)
	if _, err := core.Secrets("kube-system").List(ctx, metav1.ListOptions{FieldSelector: "metadata.name=three"}); err == nil {
		t.Error("a Secret of another name was read")
	}
	if _, err := core.Pods("default").List(ctx, metav1.ListOptions{}); err == nil {
		t.Error("pods were read")
	}

	unused := []string{"kube-system/a list namespaces", "kube-system/a list secrets in kube-system named two", "kube-system/a watch namespaces"}
	denied := []string{"kube-system/a list pods in default", "kube-system/a list secrets in kube-system"}
	var r *rights.Report
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		log, err := os.ReadFile(filepath.Join(dir, "audit.log"))
		must(err)
		r, err = rights.Compare([]byte(manifest), bytes.NewReader(log[:bytes.LastIndexByte(log, '\n')+1]))
		must(err)
		if slices.Equal(texts(r.Unused), unused) && slices.EqualFunc(r.Denied, denied, func(u rights.Use, s string) bool { return u.Right.String() == s }) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("unused %q, want %q\ndenied %q, want %q", texts(r.Unused), unused, texts(r.Denied), denied)
		}
	}
	var out strings.Builder
	if err := r.Print(&out, nil); err == nil || err.Error() != "rights: 3 unused rights, 2 denied uses" {
		t.Errorf("got %v\n%s", err, &out)
	}
	exceptions, err := rights.Exceptions(strings.NewReader("# rare\n" + strings.Join(unused, " # why\n") + "\n\n"))
	must(err)
	r.Denied = nil
	if err := r.Print(&out, exceptions); err != nil {
		t.Errorf("with exceptions: %v", err)
	}
}

func texts[T interface{ String() string }](in []T) []string {
	var out []string
	for _, x := range in {
		out = append(out, x.String())
	}
	return out
}

// TestManifest shows that the rights of deploy/causeway.yaml can be compared: no wildcards,
// no users but its ServiceAccounts.
func TestManifest(t *testing.T) {
	data, err := os.ReadFile(filepath.Join("..", "..", "..", "deploy", "causeway.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	grants, err := rights.Grants(data)
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range grants {
		// Whoever makes one cannot be held to a name: RBAC knows it only afterwards.
		if g.Resource == "secrets" && (g.Name == "" && g.Verb != "create" || g.Namespace == "") {
			t.Errorf("%s: Secrets must be named one by one", g)
		}
	}
	if len(grants) < 50 {
		t.Errorf("%d rights only", len(grants))
	}
	for _, bad := range []string{
		strings.Replace(manifest, "[list, watch]", `["*"]`, 1),
		strings.Replace(manifest, "name: rights-test}\nrules", "name: other}\nrules", 1),
		strings.Replace(manifest, "{kind: ServiceAccount, name: a, namespace: kube-system}]", "{kind: Group, name: everyone}]", 1),
	} {
		if _, err := rights.Grants([]byte(bad)); err == nil {
			t.Errorf("no error for %s", bad)
		}
	}
}
