// Package manifests_test holds what is made below deploy/ up to date, and shows that a real
// API server takes it and that the chart refuses what is wrong.
package manifests_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/causeway-net/causeway/internal/kubeapi"
	"github.com/causeway-net/causeway/test/cluster/apiserver"
	"github.com/causeway-net/causeway/test/cluster/rights"
)

// Building Helm needs the network, so it is built before Main leaves it.
func TestMain(m *testing.M) {
	if out, err := exec.Command(filepath.Join(root, "deploy/scripts/helm"), "--path").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "helm: %v\n%s", err, out)
		os.Exit(1)
	}
	apiserver.Main(m, func(c *rest.Config) { config = c })
}

var config *rest.Config

const root = "../../.."

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// run runs a program and returns its output, and what it says when it fails.
func run(t *testing.T, name string, args ...string) ([]byte, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, &stderr)
	}
	return out, err
}

func template(t *testing.T, args ...string) ([]byte, error) {
	t.Helper()
	return run(t, filepath.Join(root, "deploy/scripts/helm"), append([]string{"template", "causeway", filepath.Join(root, "deploy/helm/causeway"), "--kube-version", "1.34.0"}, args...)...)
}

func kustomize(t *testing.T, folder string) []byte {
	t.Helper()
	out, err := run(t, filepath.Join(apiserver.Bin(), "kubectl"), "kustomize", filepath.Join(root, "deploy/kustomize", folder))
	must(t, err)
	return out
}

// objects reads manifests, by "Kind namespace/name".
func objects(t *testing.T, data []byte) map[string]map[string]any {
	t.Helper()
	out := map[string]map[string]any{}
	for reader := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data))); ; {
		doc, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return out
		}
		must(t, err)
		var o map[string]any
		must(t, yaml.UnmarshalStrict(doc, &o))
		if len(o) == 0 {
			continue
		}
		u := unstructured.Unstructured{Object: o}
		key := fmt.Sprintf("%s %s/%s", u.GetKind(), u.GetNamespace(), u.GetName())
		if out[key] != nil {
			t.Errorf("%s stands there twice", key)
		}
		out[key] = o
	}
}

// same compares manifests by what they say.
func same(t *testing.T, what string, got, want map[string]map[string]any) {
	t.Helper()
	for key := range want {
		if got[key] == nil {
			t.Errorf("%s lacks %s", what, key)
		}
	}
	for key, o := range got {
		if at := difference(o, want[key], ""); at != "" {
			t.Errorf("%s: %s differs at %s", what, key, at)
		}
	}
}

// difference returns where two decoded objects differ first; empty when nowhere.
func difference(a, b any, path string) string {
	switch a := a.(type) {
	case map[string]any:
		b, ok := b.(map[string]any)
		if !ok {
			return path
		}
		for _, key := range slices.Sorted(maps.Keys(a)) {
			if at := difference(a[key], b[key], path+"."+key); at != "" {
				return at
			}
		}
		for _, key := range slices.Sorted(maps.Keys(b)) {
			if _, ok := a[key]; !ok {
				return path + "." + key
			}
		}
	case []any:
		b, ok := b.([]any)
		if !ok || len(a) != len(b) {
			return path
		}
		for i := range a {
			if at := difference(a[i], b[i], fmt.Sprintf("%s[%d]", path, i)); at != "" {
				return at
			}
		}
	default:
		if !reflect.DeepEqual(a, b) {
			return fmt.Sprintf("%s: %v, want %v", path, a, b)
		}
	}
	return ""
}

// TestUpToDate makes everything again and compares: `make manifests` mends it.
func TestUpToDate(t *testing.T) {
	dir := t.TempDir()
	_, err := run(t, filepath.Join(root, "deploy/scripts/manifests"), dir)
	must(t, err)
	for _, file := range []string{"causeway.yaml", "kustomize/base/causeway.yaml", "crds/Kustomization", "policies/Kustomization"} {
		got, err := os.ReadFile(filepath.Join(root, "deploy", file))
		must(t, err)
		want, err := os.ReadFile(filepath.Join(dir, file))
		must(t, err)
		if !bytes.Equal(got, want) {
			t.Errorf("deploy/%s is not what deploy/scripts/manifests makes; run `make manifests`", file)
		}
	}
}

// TestSame shows that manifest, chart and Kustomize base install the same objects.
func TestSame(t *testing.T) {
	data, err := os.ReadFile(filepath.Join(root, "deploy/causeway.yaml"))
	must(t, err)
	manifest := objects(t, data)
	out, err := template(t, "--namespace", "kube-system", "--include-crds")
	must(t, err)
	same(t, "the chart", objects(t, out), manifest)
	same(t, "the Kustomize base", objects(t, kustomize(t, "base")), manifest)
	for _, key := range []string{
		"DaemonSet kube-system/causeway-agent", "Deployment kube-system/causeway-controller", "PodDisruptionBudget kube-system/causeway-controller",
		"CustomResourceDefinition /ippools.projectcalico.org", "ValidatingAdmissionPolicy /causeway-agent-ipamblocks", "ValidatingAdmissionPolicyBinding /causeway-agent-nodes",
	} {
		if manifest[key] == nil {
			t.Errorf("deploy/causeway.yaml lacks %s", key)
		}
	}
}

// TestApply applies the manifest, as the manifest says, and each overlay.
func TestApply(t *testing.T) {
	must(t, apiserver.Apply(t.Context(), config, filepath.Join(root, "deploy/causeway.yaml")))
	for _, overlay := range []string{"tor-peering", "dual-stack", "vxlan"} {
		t.Run(overlay, func(t *testing.T) {
			warnings, err := apiserver.ApplyYAML(t.Context(), config, kustomize(t, "overlays/"+overlay))
			must(t, err)
			if len(warnings) > 0 {
				t.Errorf("something in it is not in force: %q", warnings)
			}
		})
	}
	dual := string(kustomize(t, "overlays/dual-stack"))
	for _, want := range []string{"- --ipv4-pool=10.244.0.0/16", "- --ipv6-pool=fd00:10:244::/56"} {
		if !strings.Contains(dual, want) {
			t.Errorf("the dual-stack overlay lacks %s", want)
		}
	}
}

// TestPods holds what the pods may do to the least that they need.
func TestPods(t *testing.T) {
	must(t, apiserver.Apply(t.Context(), config, filepath.Join(root, "deploy/causeway.yaml")))
	c, err := kubeapi.New(config)
	must(t, err)
	agent, err := c.Core.AppsV1().DaemonSets("kube-system").Get(t.Context(), "causeway-agent", metav1.GetOptions{})
	must(t, err)
	controller, err := c.Core.AppsV1().Deployments("kube-system").Get(t.Context(), "causeway-controller", metav1.GetOptions{})
	must(t, err)
	pods := slices.Concat(agent.Spec.Template.Spec.InitContainers, agent.Spec.Template.Spec.Containers, controller.Spec.Template.Spec.Containers)
	for _, x := range pods {
		s := x.SecurityContext
		switch {
		case s == nil, s.Privileged != nil && *s.Privileged, s.AllowPrivilegeEscalation == nil, *s.AllowPrivilegeEscalation,
			s.ReadOnlyRootFilesystem == nil, !*s.ReadOnlyRootFilesystem, s.Capabilities == nil, len(s.Capabilities.Drop) != 1:
			t.Errorf("%s: securityContext %+v", x.Name, s)
		}
		if x.Name != "agent" && len(s.Capabilities.Add) != 0 {
			t.Errorf("%s has the capabilities %v", x.Name, s.Capabilities.Add)
		}
		if x.Name == "install" {
			continue
		}
		for _, p := range []string{"Liveness", "Readiness"} {
			probe := map[string]any{"Liveness": x.LivenessProbe, "Readiness": x.ReadinessProbe}[p]
			text, err := json.Marshal(probe)
			must(t, err)
			if !strings.Contains(string(text), `"host":"127.0.0.1"`) {
				t.Errorf("%s: %s probe %s: want one of the host's loopback", x.Name, p, text)
			}
		}
	}
	if s := controller.Spec.Template.Spec.SecurityContext; s.RunAsNonRoot == nil || !*s.RunAsNonRoot {
		t.Error("the controller may run as root")
	}
}

// TestCleanup holds deploy/cleanup.yaml to the DaemonSet: the same image and the same
// folders of the host, and a Job that the API server takes.
func TestCleanup(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "deploy/cleanup.yaml"))
	must(t, err)
	var job batchv1.Job
	must(t, yaml.UnmarshalStrict(bytes.ReplaceAll(text, []byte("NODE\n"), []byte("node1\n")), &job))
	manifest, err := os.ReadFile(filepath.Join(root, "deploy/causeway.yaml"))
	must(t, err)
	var agent appsv1.DaemonSet
	data, err := json.Marshal(objects(t, manifest)["DaemonSet kube-system/causeway-agent"])
	must(t, err)
	must(t, json.Unmarshal(data, &agent))
	pod, of := job.Spec.Template.Spec, agent.Spec.Template.Spec
	switch {
	case pod.NodeName != "node1":
		t.Errorf("nodeName is %q", pod.NodeName)
	case pod.Containers[0].Image != of.Containers[0].Image:
		t.Errorf("its image is %s, the agent's %s", pod.Containers[0].Image, of.Containers[0].Image)
	case !reflect.DeepEqual(pod.Volumes, of.Volumes):
		t.Errorf("its volumes are %v, the agent's %v", pod.Volumes, of.Volumes)
	}
	c, err := kubeapi.New(config)
	must(t, err)
	_, err = c.Core.BatchV1().Jobs("kube-system").Create(t.Context(), &job, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}, FieldValidation: metav1.FieldValidationStrict})
	must(t, err)
}

// TestPoliciesCoverRights shows that whatever the agents may write is under an admission
// policy that asks for their node.
func TestPoliciesCoverRights(t *testing.T) {
	data, err := os.ReadFile(filepath.Join(root, "deploy/causeway.yaml"))
	must(t, err)
	covered := map[string]bool{}
	for key, o := range objects(t, data) {
		if !strings.HasPrefix(key, "ValidatingAdmissionPolicy /causeway-agent-") {
			continue
		}
		rules, _, err := unstructured.NestedSlice(o, "spec", "matchConstraints", "resourceRules")
		must(t, err)
		for _, r := range rules {
			r := r.(map[string]any)
			if fmt.Sprint(r["operations"]) != "[*]" {
				t.Errorf("%s is not asked for all operations", key)
			}
			for _, g := range r["apiGroups"].([]any) {
				for _, res := range r["resources"].([]any) {
					covered[fmt.Sprint(res, ".", g)] = true
				}
			}
		}
	}
	grants, err := rights.Grants(data)
	must(t, err)
	writes := 0
	for _, g := range grants {
		if g.User != "kube-system/causeway-agent" || slices.Contains([]string{"get", "list", "watch"}, g.Verb) {
			continue
		}
		writes++
		resource, sub, _ := strings.Cut(g.Resource, "/")
		if !covered[g.Resource+"."+g.Group] && (sub == "" || !covered[resource+"/*."+g.Group]) {
			t.Errorf("%s: no admission policy is asked", g)
		}
	}
	if writes < 5 {
		t.Errorf("the agent has %d rights to write only", writes)
	}
}

// TestChart renders the chart with other values, and with wrong ones.
func TestChart(t *testing.T) {
	out, err := template(t, "--namespace", "net", "--set",
		"image.tag=v1,agent.metricsAddress=:9091,agent.healthAddress=[::1]:9099,agent.resync=1m,agent.ipAutodetectionMethod=interface=eth.*,agent.ip6AutodetectionMethod=none,agent.maxUnavailable=10%,agent.bgpSecrets={a,b},imagePullSecrets={p},kubernetesService.host=192.0.2.1,kubernetesService.port=6443,"+
			"controller.replicas=1,controller.nodeGrace=1m30s,controller.defaultPools.ipv4.cidr=10.1.0.0/16,controller.defaultPools.ipv4.natOutgoing=false,controller.defaultPools.ipv6.cidr=none,policies.warnings=false")
	must(t, err)
	for _, want := range []string{
		"image: docker.io/causeway-net/causeway:v1", "--metrics-address=:9091", `host: "::1", port: 9099`, "--resync=1m", `"--ip-autodetection-method=interface=eth.*"`, `"--ip6-autodetection-method=none"`, "maxUnavailable: 10%", "- name: p",
		"value: \"192.0.2.1\"", "value: \"6443\"", "replicas: 1", "--node-grace=1m30s", "--ipv4-pool=10.1.0.0/16", "--ipv4-pool-nat-outgoing=false", "--ipv6-pool=none",
		"'system:serviceaccount:net:causeway-agent'", "--secret-namespace=net", "--namespace=net",
	} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the chart with other values lacks %s", want)
		}
	}
	got := objects(t, out)
	for _, key := range slices.Sorted(maps.Keys(got)) {
		if strings.HasPrefix(key, "PodDisruptionBudget") || strings.Contains(key, "warn") || strings.Contains(key, " kube-system/") && !strings.HasSuffix(key, "/causeway-controller-cluster-settings") {
			t.Errorf("the chart with other values has %s", key)
		}
	}
	secrets := got["Role net/causeway-agent"]["rules"].([]any)[0].(map[string]any)["resourceNames"]
	if fmt.Sprint(secrets) != "[causeway-announce a b]" {
		t.Errorf("agents may read the Secrets %v", secrets)
	}
	out, err = template(t, "--namespace", "net", "--set", "agent.bgpSecrets=null,policies.nodeBinding=false,policies.warnings=false")
	must(t, err)
	if strings.Contains(string(out), "ValidatingAdmissionPolicy") {
		t.Error("admission policies though there should be none")
	}
	secrets = objects(t, out)["Role net/causeway-agent"]["rules"].([]any)[0].(map[string]any)["resourceNames"]
	if fmt.Sprint(secrets) != "[causeway-announce]" {
		t.Errorf("without passwords agents may read the Secrets %v", secrets)
	}

	for _, bad := range []string{
		"agent.logLevel=loud", "agent.unknown=1", "agent.healthAddress=0.0.0.0:9099", "agent.healthAddress=9099", "agent.maxUnavailable=0", "agent.maxUnavailable=0%", "agent.iptablesBackend=nftables",
		"agent.resync=90", "agent.ipAutodetectionMethod=eth0", "agent.cniBinDir=opt/cni/bin", "agent.bgpSecrets={A_B}", "agent.bgpSecrets=bgp-secrets", "controller.replicas=0", "controller.defaultPools.ipv6.ipipMode=Always",
		"controller.defaultPools.ipv4.blockSize=19", "controller.defaultPools.ipv4.cidr=ten", "controller.defaultPools.ipv5.cidr=none", "image.pullPolicy=Sometimes", "image.tag=a b", "kubernetesService.port=70000",
		"policies.nodeBinding=maybe", "unknown=1",
	} {
		if _, err := template(t, "--set", bad); err == nil {
			t.Errorf("the chart takes %s", bad)
		} else if !strings.Contains(err.Error(), "schema") {
			t.Errorf("%s: %v; want a refusal by the schema", bad, err)
		}
	}
}
