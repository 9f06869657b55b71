package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-net/causeway/test/lab"
)

// probePolicies forbid and allow what the prober sends; they stand beside the thousand.
const probePolicies = `
{metadata: {name: closed}, spec: {podSelector: {}}}
---
{metadata: {name: flip}, spec: {podSelector: {matchLabels: {app: target}}, ingress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {flip: "on"}}}], ports: [{port: 7001, protocol: UDP}]}]}}
---
{metadata: {name: open}, spec: {podSelector: {matchLabels: {open: "yes"}}, ingress: [{from: [{ipBlock: {cidr: 192.168.0.0/16}}], ports: [{port: 7002, protocol: UDP}]}]}}
---
{metadata: {name: joiners}, spec: {podSelector: {matchLabels: {app: target}}, ingress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {joins: "yes"}}}], ports: [{port: 7003, protocol: UDP}]}]}}
---
{metadata: {name: port}, spec: {podSelector: {matchLabels: {app: target}}, ingress: [{from: [{ipBlock: {cidr: 192.168.0.0/16}}], ports: [{port: 7004, protocol: UDP}]}]}}
`

// change is something that happens in the cluster, forth and back.
type change struct {
	name string
	// flow passes after forth and is forbidden after back, and before forth.
	flow func(i int) flow
	// before makes what forth needs, untimed; may be nil.
	before      func(ctx context.Context, i int) error
	forth, back func(ctx context.Context, i int) error
}

// changes are those that the issue names; target is the pod of w1 that is sent to.
func (c *policyCluster) changes(target netip.Addr) []change {
	core := c.api.clients.Core
	outside := netip.MustParseAddr(outsideSource)
	on, off := "on", "other"
	// A pod of another node, each time another one: its set of the probe, and the sets of its
	// tenant and of those who look at its tenant.
	remote := func(i int) tenantPod { return tenantPod{localPods + i%(c.pods-localPods)} }
	var made *corev1.Pod
	joiner := func(i int) tenantPod { return tenantPod{1<<20 + i} }
	setPort := func(ctx context.Context, port int) error {
		patch := fmt.Sprintf(`{"spec":{"ingress":[{"from":[{"ipBlock":{"cidr":"192.168.0.0/16"}}],"ports":[{"port":%d,"protocol":"UDP"}]}]}}`, port)
		_, err := core.NetworkingV1().NetworkPolicies(probeSpace).Patch(ctx, "port", types.MergePatchType, []byte(patch), metav1.PatchOptions{})
		return err
	}
	return []change{
		{
			name: "one label changed, pod of another node",
			flow: func(i int) flow { return flow{remote(i).address(), target, 7001} },
			forth: func(ctx context.Context, i int) error {
				return c.relabel(ctx, remote(i).namespace(), remote(i).name(), map[string]*string{"flip": &on, "app": &off})
			},
			back: func(ctx context.Context, i int) error {
				app := remote(i).app()
				return c.relabel(ctx, remote(i).namespace(), remote(i).name(), map[string]*string{"flip": nil, "app": &app})
			},
		},
		{
			name: "one label changed, pod of this node",
			flow: func(int) flow { return flow{outside, target, 7002} },
			forth: func(ctx context.Context, _ int) error {
				yes := "yes"
				return c.relabel(ctx, probeSpace, "target", map[string]*string{"open": &yes})
			},
			back: func(ctx context.Context, _ int) error {
				return c.relabel(ctx, probeSpace, "target", map[string]*string{"open": nil})
			},
		},
		{
			name:  "one policy changed",
			flow:  func(i int) flow { return flow{outside, target, uint16(20000 + i)} },
			forth: func(ctx context.Context, i int) error { return setPort(ctx, 20000+i) },
			back:  func(ctx context.Context, _ int) error { return setPort(ctx, 7004) },
		},
		{
			name: "one pod added and removed, on another node",
			flow: func(i int) flow { return flow{joiner(i).address(), target, 7003} },
			before: func(ctx context.Context, i int) (err error) {
				o := newPodObject(tenantName(i%(tenants-1)), fmt.Sprintf("joiner-%d-%d", time.Now().UnixNano(), i), otherNode(1), map[string]string{"joins": "yes", "app": "web"})
				made, err = core.CoreV1().Pods(o.Namespace).Create(ctx, o, metav1.CreateOptions{})
				return err
			},
			forth: func(ctx context.Context, i int) error { return c.report(ctx, made, joiner(i).address()) },
			back: func(ctx context.Context, _ int) error {
				now := int64(0)
				return core.CoreV1().Pods(made.Namespace).Delete(ctx, made.Name, metav1.DeleteOptions{GracePeriodSeconds: &now})
			},
		},
	}
}

// changeCost is what one kind of change costs.
type changeCost struct {
	total   []float64 // ms, from the request to the API server to the first packet that is judged anew
	request []float64 // ms, of it until the API server answered
	cpu     float64   // ms of the agent's processor time, and of what it executes, for one change
}

// changeTimes makes a change times times, forth and back.
func (b *bench) changeTimes(ctx context.Context, n *lab.Node, p *prober, ch change, times int) (changeCost, error) {
	var cost changeCost
	const every = time.Millisecond
	pid, err := n.Daemon("agent").PID(ctx)
	if err != nil {
		return cost, err
	}
	before, err := cpuWithChildren(pid)
	if err != nil {
		return cost, err
	}
	for i := range times {
		if ch.before != nil {
			if err := ch.before(ctx, i); err != nil {
				return cost, err
			}
		}
		p.aim(every, ch.flow(i))
		if _, err := p.ends(ctx); err != nil {
			return cost, fmt.Errorf("before change %d: %w", i, err)
		}
		for _, forth := range []bool{true, false} {
			do, seen := ch.forth, p.passes
			if !forth {
				do, seen = ch.back, p.ends
			}
			start := p.now()
			if err := do(ctx, i); err != nil {
				return cost, err
			}
			answered := p.now()
			at, err := seen(ctx)
			if err != nil {
				return cost, fmt.Errorf("change %d, allowed %t: %w", i, forth, err)
			}
			if !forth {
				at += every // the one after the last that passed
			}
			cost.total = append(cost.total, milliseconds(max(0, at-start)))
			cost.request = append(cost.request, milliseconds(answered-start))
		}
	}
	after, err := cpuWithChildren(pid)
	cost.cpu = milliseconds(after-before) / float64(2*times)
	return cost, err
}

// cpuWithChildren is the processor time of a process and of the children that it has waited
// for (proc(5): stat fields 14 to 17, in ticks of 10 ms).
func cpuWithChildren(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(fields) < 15 {
		return 0, fmt.Errorf("/proc/%d/stat: %q", pid, b)
	}
	var ticks int64
	for _, f := range fields[11:15] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/%d/stat: %w", pid, err)
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / 100, nil
}

// writtenBy counts the bytes that a process and its children hand to the kernel over netlink,
// and by legacy iptables' setsockopt, while do runs. strace(1) looks on, so that nothing is
// timed meanwhile.
func (b *bench) writtenBy(ctx context.Context, pid int, do func() error) (int, error) {
	file := filepath.Join(b.stateRoot, "strace")
	defer os.Remove(file)
	cmd := exec.CommandContext(ctx, "strace", "-f", "-qq", "-yy", "-s", "0", "-e", "trace=write,sendto,sendmsg,setsockopt", "-e", "signal=none", "-o", file, "-p", strconv.Itoa(pid))
	var complaint strings.Builder
	cmd.Stderr = &complaint
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	attached := func() error {
		if procField(fmt.Sprintf("/proc/%d/status", pid), "TracerPid") != strconv.Itoa(cmd.Process.Pid) {
			return fmt.Errorf("strace is not attached: %s", complaint.String())
		}
		return nil
	}
	err := b.poll(ctx, 10*time.Second, "strace", attached)
	if err == nil {
		err = do()
	}
	cmd.Process.Signal(unix.SIGINT)
	cmd.Wait() // it tells of the signal
	if err != nil {
		return 0, err
	}
	text, err := os.ReadFile(file)
	return netlinkBytes(string(text)), err
}

var (
	netlinkSent = regexp.MustCompile(`(?:(?:write|sendto|sendmsg)\(\d+<NETLINK:.*|<\.\.\. (?:write|sendto|sendmsg) resumed>.*)\) *= (\d+)$`)
	optionSet   = regexp.MustCompile(`setsockopt\(.*, IP6?T_SO_SET_[A-Z_]+, .*, (\d+)\) *= 0$`)
)

// netlinkBytes reads what strace wrote.
func netlinkBytes(text string) (sum int) {
	unfinished := map[string]bool{} // threads whose last call, to a netlink socket, was not finished
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		thread, _, _ := strings.Cut(line, " ")
		if strings.HasSuffix(line, "<unfinished ...>") {
			unfinished[thread] = strings.Contains(line, "<NETLINK:")
			continue
		}
		m := netlinkSent.FindStringSubmatch(line)
		if strings.Contains(line, " resumed>") && !unfinished[thread] {
			m = nil
		}
		if m == nil {
			m = optionSet.FindStringSubmatch(line)
		}
		if m != nil {
			n, _ := strconv.Atoi(m[1]) // the expression takes digits alone
			sum += n
		}
	}
	return sum
}
