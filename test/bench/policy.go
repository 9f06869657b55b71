package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-net/causeway/test/cluster/apiserver"
	"github.com/causeway-net/causeway/test/lab"
)

// backend is what programs policy into the kernel.
type backend struct {
	name  string
	felix string // FelixConfiguration's spec
	// shows lists rules of the backend; it must name ours, so that nothing else is measured by
	// that name.
	shows []string
	ours  string
	extra bool // only what changes and starts cost
}

var backends = []backend{
	{name: "iptables-nft", felix: "nftablesMode: Disabled, iptablesBackend: NFT", shows: []string{"iptables-nft-save", "-t", "filter"}, ours: "cali-"},
	{name: "nftables", felix: "nftablesMode: Enabled", shows: []string{"nft", "list", "tables"}, ours: "causeway"},
	{name: "iptables-legacy", felix: "nftablesMode: Disabled, iptablesBackend: Legacy", shows: []string{"iptables-legacy-save", "-t", "filter"}, ours: "cali-", extra: true},
}

// Sizes of the cluster: what one change costs must not grow from the one to the other.
const (
	fewPods  = 1_000
	manyPods = 10_000
)

// policyRun is one run of the policy benchmark.
type policyRun struct {
	*bench
	lab    *lab.Lab
	w1, w2 *lab.Node
	c      *policyCluster
	target netip.Addr
	local  []netip.Addr // of the tenants' pods on w1
	few    map[string]changeCost

	ours, base *worker // on w1, and on a node without agent
}

// kubernetesThere says whether there is an API server to be had.
func kubernetesThere() error {
	if _, err := os.Stat(filepath.Join(apiserver.Bin(), "kube-apiserver")); err != nil {
		return fmt.Errorf("%w: run `make kubernetes` first", err)
	}
	return nil
}

// policyBench measures policy with 1,000 policies and 10,000 pods in a real API server, 110 of
// them attached to a node by CNI.
func (b *bench) policyBench(ctx context.Context) (err error) {
	for program, from := range map[string]string{"iperf3": "iperf3", "strace": "strace", "ipset": "ipset", "nft": "nftables", "iptables-legacy-save": "iptables"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("%w (apt-get install %s)", err, from)
		}
	}
	if err := kubernetesThere(); err != nil {
		return err
	}
	l, err := b.up(ctx, "test/bench/policy/policy.clab.yml", "cwb-policy", func(o *lab.Options) { o.NoAgents = true })
	if err != nil {
		return err
	}
	defer b.down(ctx, l)
	a, err := startAPI(ctx, l.Node("api"))
	if err != nil {
		return err
	}
	defer a.stop()
	r := &policyRun{bench: b, lab: l, w1: l.Node("w1"), w2: l.Node("w2"), few: map[string]changeCost{}}
	if r.c, err = newPolicyCluster(ctx, a); err != nil {
		return err
	}
	for _, n := range []*lab.Node{r.w1, r.w2} {
		if err := os.WriteFile(filepath.Join(n.StateDir(), "causeway", "kubeconfig"), a.kubeconfig(), 0o600); err != nil {
			return err
		}
	}
	if err := b.ownProgram(ctx, r.w1); err != nil {
		return err
	}
	if err := errors.Join(r.c.addPolicies(ctx), r.c.create(ctx, probeSpace, probePolicies), r.c.grow(ctx, fewPods), r.benchPods(ctx)); err != nil {
		return err
	}
	b.say("the API server has %d policies and %d pods", tenants*perTenant, fewPods)
	chosen := slices.DeleteFunc(slices.Clone(backends), func(k backend) bool { return !slices.Contains(b.backends, k.name) })
	for i, k := range chosen {
		if err := r.use(ctx, k, r.w1); err != nil {
			return err
		}
		if i == 0 {
			if err := r.attach(ctx); err != nil {
				return err
			}
		}
		if err := r.inForce(ctx, k, r.w1); err != nil {
			return err
		}
		if err := r.changes(ctx, k, fewPods); err != nil {
			return fmt.Errorf("%s, %d pods: %w", k.name, fewPods, err)
		}
	}
	if r.ours, err = startWorker(ctx, r.w1); err != nil {
		return err
	}
	defer r.ours.stop()
	if r.base, err = startWorker(ctx, l.Node("p1")); err != nil {
		return err
	}
	defer r.base.stop()
	if err := r.c.grow(ctx, manyPods); err != nil {
		return err
	}
	b.say("the API server has %d pods", manyPods)
	for _, k := range chosen {
		if err := r.full(ctx, k); err != nil {
			return fmt.Errorf("%s, %d pods: %w", k.name, manyPods, err)
		}
	}
	return nil
}

// full is all that is measured with all pods.
func (r *policyRun) full(ctx context.Context, k backend) error {
	if err := r.use(ctx, k, r.w1); err != nil {
		return err
	}
	if err := r.inForce(ctx, k, r.w1); err != nil {
		return err
	}
	if err := r.changes(ctx, k, manyPods); err != nil {
		return err
	}
	if err := r.memory(ctx, k); err != nil {
		return fmt.Errorf("memory: %w", err)
	}
	if err := r.starts(ctx, k); err != nil {
		return fmt.Errorf("start: %w", err)
	}
	if k.extra {
		return nil
	}
	if err := r.addWithPolicies(ctx, k); err != nil {
		return fmt.Errorf("ADD: %w", err)
	}
	if err := r.traffic(ctx, k); err != nil {
		return fmt.Errorf("traffic: %w", err)
	}
	return nil
}

// use starts the agent of n with a backend; nothing of another one is left.
func (r *policyRun) use(ctx context.Context, k backend, n *lab.Node) error {
	felix := "{apiVersion: projectcalico.org/v3, kind: FelixConfiguration, metadata: {name: default}, spec: {" + k.felix + "}}"
	if _, err := apiserver.ApplyYAML(ctx, r.c.api.config, []byte(felix)); err != nil {
		return err
	}
	if err := r.wipe(ctx, n); err != nil {
		return err
	}
	if err := n.Start(ctx); err != nil {
		return err
	}
	return r.poll(ctx, lab.Slow(time.Minute), n.Name()+" takes pods", func() error { return n.CNIStatus(ctx) })
}

// wipe ends the agent of n and takes all rules and sets out of the node's kernel.
func (r *policyRun) wipe(ctx context.Context, n *lab.Node) error {
	d := n.Daemon("agent")
	if st, err := d.Status(ctx); err != nil {
		return err
	} else if st.Running {
		if err := d.Stop(ctx); err != nil {
			return err
		}
	}
	const script = `set -e
nft flush ruleset
for p in iptables-legacy ip6tables-legacy; do
  for t in raw mangle nat filter; do $p -t $t -F; $p -t $t -X; done
done
ipset destroy`
	_, err := n.Exec(ctx, "sh", "-c", script)
	return err
}

// inForce waits until the policies of the target are what its packets meet.
func (r *policyRun) inForce(ctx context.Context, k backend, n *lab.Node) error {
	p, err := startProber(r.lab.Node("r"), n)
	if err != nil {
		return err
	}
	defer p.close()
	outside := netip.MustParseAddr(outsideSource)
	p.aim(5*time.Millisecond, flow{outside, r.target, 7005})
	if _, err := p.ends(ctx); err != nil {
		return fmt.Errorf("what the policies forbid: %w", err)
	}
	p.aim(5*time.Millisecond, flow{outside, r.target, 7004})
	if _, err := p.passes(ctx); err != nil {
		return fmt.Errorf("what the policies allow: %w", err)
	}
	out, err := n.Exec(ctx, k.shows...)
	if err != nil {
		return err
	}
	if !strings.Contains(out, k.ours) {
		return fmt.Errorf("node %s is to use %s, but `%s` shows nothing of %s", n, k.name, strings.Join(k.shows, " "), k.ours)
	}
	return nil
}

// benchPods makes the objects of the pods that the worker attaches, and the target's.
func (r *policyRun) benchPods(ctx context.Context) error {
	pods := r.c.api.clients.Core.CoreV1()
	err := abreast(max(r.size.pods, r.size.burst), func(i int) error {
		o := newPodObject("bench", fmt.Sprintf("pod-%d", i), "w1", map[string]string{"app": tenantApps[i%len(tenantApps)], "tier": "back", "version": "v1"})
		_, err := pods.Pods(o.Namespace).Create(ctx, o, metav1.CreateOptions{})
		return err
	})
	if err != nil {
		return err
	}
	_, err = pods.Pods(probeSpace).Create(ctx, newPodObject(probeSpace, "target", "w1", map[string]string{"app": "target"}), metav1.CreateOptions{})
	return err
}

// attachPod attaches the pod of an object, which must be there, and returns it. The name must
// be the only one on the node, whatever the namespace.
func (r *policyRun) attachPod(ctx context.Context, n *lab.Node, namespace, name string) (*lab.Pod, error) {
	o, err := r.c.api.clients.Core.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	return n.AddPod(ctx, name, lab.PodOptions{Namespace: namespace, UID: string(o.UID)})
}

// attach attaches the local pods, and writes their status as a kubelet does.
func (r *policyRun) attach(ctx context.Context) error {
	one := func(namespace, name string) (netip.Addr, error) {
		pod, err := r.attachPod(ctx, r.w1, namespace, name)
		if err != nil {
			return netip.Addr{}, err
		}
		return pod.Address(false), r.reportPod(ctx, namespace, name, pod.Address(false))
	}
	begin := time.Now()
	for k := range localPods {
		p := tenantPod{k}
		at, err := one(p.namespace(), p.name())
		if err != nil {
			return err
		}
		r.local = append(r.local, at)
	}
	var err error
	r.target, err = one(probeSpace, "target")
	r.say("%d pods are attached to w1, within %.1f s", localPods+1, time.Since(begin).Seconds())
	return err
}

func (r *policyRun) reportPod(ctx context.Context, namespace, name string, address netip.Addr) error {
	o, err := r.c.api.clients.Core.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	return r.c.report(ctx, o, address)
}

// changes measures what one change costs, and with all pods what it writes, too.
func (r *policyRun) changes(ctx context.Context, k backend, pods int) error {
	p, err := startProber(r.lab.Node("r"), r.w1)
	if err != nil {
		return err
	}
	defer p.close()
	bytes := map[string]int{}
	for _, ch := range r.c.changes(r.target) { // before the prober leaves any connection to be marked
		if pods < manyPods {
			break
		}
		if bytes[ch.name], err = r.bytesOf(ctx, p, ch); err != nil {
			return fmt.Errorf("%s: bytes written: %w", ch.name, err)
		}
	}
	for _, ch := range r.c.changes(r.target) {
		// What a process does for the first time is not what it does all day.
		if _, err := r.changeTimes(ctx, r.w1, p, ch, 3); err != nil {
			return fmt.Errorf("%s: %w", ch.name, err)
		}
		cost, err := r.changeTimes(ctx, r.w1, p, ch, r.size.changes)
		if err != nil {
			return fmt.Errorf("%s: %w", ch.name, err)
		}
		row := PolicyChange{Backend: k.name, Pods: pods, Change: ch.name, Times: len(cost.total), P50: median(cost.total), P99: percentile(cost.total, 99),
			Request: median(cost.request), CPU: cost.cpu, Bytes: bytes[ch.name], Goal: changeGoal, Each: cost.total}
		if few, ok := r.few[k.name+ch.name]; ok {
			row.GrowthTime, row.GrowthCPU = row.P50/median(few.total), row.CPU/few.cpu
		} else {
			r.few[k.name+ch.name] = cost
		}
		r.report.PolicyChanges = append(r.report.PolicyChanges, row)
		r.say("%s, %d pods: %s: p50 %.1f ms, p99 %.1f ms (the API server %.1f ms), processor %.2f ms, %d bytes", k.name, pods, ch.name, row.P50, row.P99, row.Request, row.CPU, row.Bytes)
	}
	return nil
}

// bytesOf is what one change has the agent write into the kernel: the median of some, each
// with a second for what comes after it. Nothing is sent meanwhile: connections that a change
// forbids are marked, which is written too.
func (r *policyRun) bytesOf(ctx context.Context, p *prober, ch change) (int, error) {
	pid, err := r.w1.Daemon("agent").PID(ctx)
	if err != nil {
		return 0, err
	}
	p.aim(time.Second)
	var each []float64
	for i := range 5 {
		if ch.before != nil {
			if err := ch.before(ctx, i); err != nil {
				return 0, err
			}
		}
		for _, do := range []func(context.Context, int) error{ch.forth, ch.back} {
			bytes, err := r.writtenBy(ctx, pid, func() error {
				if err := do(ctx, i); err != nil {
					return err
				}
				select {
				case <-ctx.Done():
					return ctx.Err()
				case <-time.After(time.Second):
					return nil
				}
			})
			if err != nil {
				return 0, err
			}
			each = append(each, float64(bytes))
		}
	}
	return int(median(each)), nil
}

// changeGoal is the most that the 99th percentile of one change may be, ms.
const changeGoal = 50

func policyState(k backend) string {
	return fmt.Sprintf("%d policies × %d pods (%d local), %s", tenants*perTenant, manyPods, localPods+1, k.name)
}

// memory reads what agent and speaker use.
func (r *policyRun) memory(ctx context.Context, k backend) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(r.size.rest):
	}
	var agent, speaker usage
	err := r.poll(ctx, 30*time.Second, "w1 runs agent and speaker alone", func() (err error) { // and no iptables
		agent, speaker, err = usageOfNode(ctx, r.w1)
		return err
	})
	if err != nil {
		return err
	}
	r.figure(&Figure{Name: policyState(k) + ": memory (PSS) of agent + speaker", Unit: "MB", Value: agent.pss + speaker.pss, Goal: 250},
		&Figure{Name: "of it heap and stacks of the agent", Unit: "MB", Value: agent.anon},
		&Figure{Name: "largest resident set of the agent", Unit: "MB", Value: agent.peak})
	r.say("%s: PSS %.0f MB, heap and stacks of the agent %.0f MB", k.name, agent.pss+speaker.pss, agent.anon)
	return nil
}

// addWithPolicies is CNI ADD with all policies, against ptp without any.
func (r *policyRun) addWithPolicies(ctx context.Context, k backend) error {
	return r.addLatency(r.lab, "IPv4, 1,000 policies, "+k.name, r.ours, r.base, ptpNetwork(false))
}
