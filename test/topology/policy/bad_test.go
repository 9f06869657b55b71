package policy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/causeway-net/causeway/internal/status"
	"github.com/causeway-net/causeway/test/lab"
	"github.com/causeway-net/causeway/test/topology/operator"
	"github.com/causeway-net/causeway/test/topology/policy/probe"
	"github.com/causeway-net/causeway/test/topology/scenario"
)

// badPolicy is a policy that cannot be in force: what is wrong, the text, and words of what is
// said of it. NAME is the policy's name.
type badPolicy struct {
	what, text string
	object     string // as it is reported, before the name
	field      string
}

// neverValid begins the names of policies that have no valid version.
const neverValid = "never-valid"

// badPolicies put policies that cannot be in force in the place of one that is, and beside it.
// All of them would let everybody in, or nobody, were a part of them believed.
func badPolicies(t *testing.T, f *fabric) {
	bads := []badPolicy{
		{"an unknown tier", gnpIn("nosuch", "NAME", "ingress: [{action: Allow}]"), "GlobalNetworkPolicy", ".spec.tier"},
		{"a broken selector", strings.Replace(gnp("NAME", 1, "ingress: [{action: Deny}]"), "'shop'", "'shop", 1), "GlobalNetworkPolicy", ".spec.selector"},
		{"a broken selector in a rule", gnp("NAME", 1, "ingress: [{action: Allow}, {action: Allow, source: {selector: role = 'good'}}]"), "GlobalNetworkPolicy", ".spec.ingress[1].source.selector"},
		{"port 70000", gnp("NAME", 1, "ingress: [{action: Allow, protocol: UDP, destination: {ports: [1, 70000]}}]"), "GlobalNetworkPolicy", ".spec.ingress[0].destination.ports[1]"},
		{"ICMP and ports", gnp("NAME", 1, "ingress: [{action: Deny}, {action: Deny, protocol: ICMP, destination: {ports: [1]}}]"), "GlobalNetworkPolicy", ".spec.ingress[1]"},
		{"endPort below port", `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: NAME, namespace: shop}
spec: {podSelector: {}, ingress: [{ports: [{port: 80, endPort: 70, protocol: UDP}]}]}
`, "KubernetesNetworkPolicy shop/", ".spec.ingress[0].ports[0].endPort"},
	}
	f.put(t, f.sets(), onlyGood("base", 100))
	l := f.loaded(t)
	step := func(what string, report bool, version func(b badPolicy, name string) string) {
		t.Helper()
		documents := []string{f.sets()}
		if what == neverValid {
			documents = append(documents, onlyGood("base", 100))
		}
		for i, b := range bads {
			documents = append(documents, version(b, fmt.Sprintf("%s-%d", what, i)))
		}
		f.put(t, documents...)
		if !report {
			f.unreported(t)
		}
		for i, b := range bads {
			if report {
				f.reported(t, b, fmt.Sprintf("%s-%d", what, i))
			}
		}
		l.goOn(t)
		l.noneForbidden(t, what)
	}
	bad := func(b badPolicy, name string) string { return strings.ReplaceAll(b.text, "NAME", name) }
	good := func(b badPolicy, name string) string {
		if strings.HasPrefix(b.object, "Kubernetes") {
			return kubernetesOnlyGood(name, f.good1, f.good2)
		}
		return onlyGood(name, 50)
	}
	step(neverValid, true, bad)
	// In the place of those that are in force, and nothing beside them.
	step("edited", false, good)
	step("edited", true, bad)
	step("edited", false, good)
	l.end(t)

	// A tier that comes later brings its policy into force.
	late := gnpIn("nosuch", "late", "ingress: [{action: Deny, source: {selector: role == 'bad'}}, {action: Allow}]")
	f.put(t, f.sets(), late)
	f.await(t, "a policy without its tier is reported", func(st status.Status) error {
		return operator.Problem(st, "GlobalNetworkPolicy late", "nosuch")
	})
	f.put(t, f.sets(), late, tier("nosuch", 10))
	f.unreported(t)
	tp := openTap(t, f.target)
	hails := []*probe.Hail{startHail(t, f.bad2, 500, at(hailPort, addrs(f.target)...)...), startHail(t, f.good2, 500, at(hailPort, addrs(f.target)...)...)}
	goOn(t, 100, hails...)
	if bad, good := tp.From(addrs(f.bad2)...), tp.From(addrs(f.good2)...); bad.Count > 0 || good.Count == 0 {
		t.Errorf("with its tier the policy lets %d forbidden packets in, and %d allowed ones", bad.Count, good.Count)
	}
	f.put(t)
}

// kubernetesOnlyGood is onlyGood of Kubernetes' own kind.
func kubernetesOnlyGood(name string, good ...*lab.Pod) string {
	var from []string
	for _, p := range prefixes(good...) {
		from = append(from, fmt.Sprintf("{ipBlock: {cidr: %q}}", p))
	}
	return fmt.Sprintf("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: %s, namespace: shop}\nspec: {podSelector: {}, ingress: [{from: [%s]}]}\n", name, strings.Join(from, ", "))
}

// reported waits until causewayctl and the metric say what is wrong, and where.
func (f *fabric) reported(t *testing.T, b badPolicy, name string) {
	t.Helper()
	ctx := scenario.Context(t, time.Minute)
	object := strings.TrimSuffix(b.object+" "+name, " ")
	if strings.HasSuffix(b.object, "/") {
		object = b.object + name
	}
	scenario.Eventually(t, 10*time.Second, b.what+" is reported", func() error {
		out, err := f.n1.Exec(ctx, "causewayctl", "problems")
		if err == nil && (!strings.Contains(out, object) || !strings.Contains(out, b.field)) {
			err = fmt.Errorf("causewayctl problems says nothing of %s, %s:\n%s", object, b.field, out)
		}
		if err != nil {
			return err
		}
		text, err := f.metrics(ctx)
		if err != nil {
			return err
		}
		for line := range strings.Lines(text) {
			if strings.HasPrefix(line, "causeway_problems{") && strings.Contains(line, name+`"`) && strings.Contains(line, b.field) && strings.Contains(line, `effect="disabled"`) {
				return nil
			}
		}
		return errors.New("no metric causeway_problems speaks of it")
	})
}

func (f *fabric) unreported(t *testing.T) {
	t.Helper()
	f.await(t, "nothing is reported", operator.NoProblems)
}

// metrics asks the agent of n1 for what Prometheus would scrape.
func (f *fabric) metrics(ctx context.Context) (string, error) {
	var d net.Dialer
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return d.DialContext(ctx, "unix", f.n1.Path("/run/causeway/agent.sock"))
	}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent/metrics", nil)
	if err != nil {
		return "", err
	}
	resp, err := c.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}
