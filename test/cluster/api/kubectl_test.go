package api_test

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/causeway-net/causeway/docs/compat"
	"github.com/causeway-net/causeway/test/cluster/apiserver"
)

// kubectl runs kubectl as the administrator and returns all that it prints.
func kubectl(t *testing.T, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(apiserver.Bin(), "kubectl"), append([]string{
		"--server", config.Host, "--token", config.BearerToken, "--insecure-skip-tls-verify", "--cache-dir", t.TempDir(), "--kubeconfig", "/dev/null",
	}, args...)...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// TestKubectl applies the manifests of Calico's users as they do, shows and removes them.
func TestKubectl(t *testing.T) {
	ready(t)
	out, err := kubectl(t, "apply", "-f", "testdata/manifests.yaml")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, k := range compat.Kinds {
		if want := strings.ToLower(k.Name) + ".projectcalico.org/"; !strings.Contains(out, want) {
			t.Errorf("kubectl applied no %s:\n%s", want, out)
		}
	}
	for _, want := range []string{
		"Warning: Validation failed for ValidatingAdmissionPolicy 'causeway-warnings-felixconfiguration' with binding 'causeway-warnings-felixconfiguration': spec.kubeNodePortRanges is stored, but Causeway does not act on it",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
	if out, err := kubectl(t, "get", "ippools,bgpconfigs,gnp,cnp,hep,gns,kcc,clusterinfos,affinities,sknp,snp,sgnp,ipamconfig", "-A"); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err := kubectl(t, "explain", "bgppeer.spec.ttlSecurity"); err != nil || !strings.Contains(out, "hops") {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err := kubectl(t, "get", "ippools", "default-ipv4-ippool"); err != nil || !strings.Contains(out, "10.244.0.0/16") {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err := kubectl(t, "delete", "-f", "testdata/manifests.yaml"); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
