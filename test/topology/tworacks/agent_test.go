package tworacks

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/ipam"
	"github.com/causeway-net/causeway/test/lab"
	"github.com/causeway-net/causeway/test/topology/fabric"
	"github.com/causeway-net/causeway/test/topology/scenario"
)

// gobgpCLI runs Debian's gobgp as an operator would.
func gobgpCLI(t *testing.T, f *scenario.Fabric) {
	ctx := scenario.Context(t, time.Minute)
	n := f.Node("n1")
	gobgp := func(args ...string) (string, error) {
		return n.Exec(ctx, append([]string{"gobgp", "--target", "unix:///run/causeway/gobgp.sock"}, args...)...)
	}
	remote := f.Node("n3").Pods()[0].Address(false)
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"global"}, "65111"},
		{[]string{"neighbor"}, "10.1.11.0"},
		{[]string{"neighbor", "10.1.11.0"}, "ESTABLISHED"},
		{[]string{"neighbor", "10.1.11.0", "adj-in"}, "65101"},
		{[]string{"neighbor", "10.1.11.0", "adj-out"}, "/26"},
		{[]string{"global", "rib"}, "10.1.12.0"},
		{[]string{"global", "rib", "-a", "ipv6"}, "fd00:1:12::1"},
		{[]string{"global", "rib", remote.String()}, "65211"},
	} {
		out, err := gobgp(c.args...)
		if err != nil || !strings.Contains(strings.ToUpper(out), strings.ToUpper(c.want)) {
			t.Errorf("gobgp %s: want %q: %v\n%s", strings.Join(c.args, " "), c.want, err, out)
		}
	}
	monitor := n.Command(ctx, "timeout", "1", "gobgp", "--target", "unix:///run/causeway/gobgp.sock", "monitor", "global", "rib", "--current")
	if out, _ := monitor.CombinedOutput(); !strings.Contains(string(out), "10.244.") {
		t.Errorf("gobgp monitor shows no route:\n%s", out)
	}
	for _, args := range [][]string{
		{"global", "rib", "add", "203.0.113.0/24"}, {"neighbor", "10.1.11.0", "shutdown"}, {"neighbor", "del", "10.1.11.0"},
	} {
		out, err := gobgp(args...)
		if err == nil || !strings.Contains(out+err.Error(), "--gobgp-allow-writes") {
			t.Errorf("gobgp %s: not refused with the way to allow it: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	if err := fabric.Established(ctx, n); err != nil {
		t.Error(err)
	}
}

// speakerRights reads /proc: the process that reads bytes from the fabric may do nothing.
func speakerRights(t *testing.T, f *scenario.Fabric) {
	ctx := scenario.Context(t, time.Minute)
	st, err := fabric.Status(ctx, f.Node("n1"))
	if err != nil {
		t.Fatal(err)
	}
	out, err := f.Node("n1").Exec(ctx, "cat", fmt.Sprintf("/proc/%d/status", st.Speaker.PID))
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, line := range strings.Split(out, "\n") {
		k, v, _ := strings.Cut(line, ":")
		got[k] = strings.Join(strings.Fields(v), " ")
	}
	const netBindService = "0000000000000400" // capability 10, include/uapi/linux/capability.h
	for k, want := range map[string]string{
		"Uid": "65532 65532 65532 65532", "Gid": "65532 65532 65532 65532", "Groups": "", "NoNewPrivs": "1",
		"CapEff": netBindService, "CapPrm": netBindService, "CapBnd": netBindService, "CapAmb": netBindService,
	} {
		if got[k] != want {
			t.Errorf("%s is %q, want %q", k, got[k], want)
		}
	}
}

// editPeer edits manifests and looks at which sessions of n1 start anew.
func editPeer(t *testing.T, f *scenario.Fabric) {
	ctx := scenario.Context(t, time.Minute)
	n := f.Node("n1")
	since := func() map[netip.Addr]time.Time {
		t.Helper()
		st, err := fabric.Status(ctx, n)
		if err != nil {
			t.Fatal(err)
		}
		out := map[netip.Addr]time.Time{}
		for _, p := range st.Peers {
			out[p.Address] = p.Since
		}
		return out
	}
	edit := func(file, old, new string) {
		t.Helper()
		path := filepath.Join(f.Shared("manifests"), file)
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		s := strings.Replace(string(b), old, new, 1)
		if s == string(b) {
			t.Fatalf("%s does not hold %q", file, old)
		}
		if err := os.WriteFile(path, []byte(s), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	before := since()

	// A community for what is advertised bounces no session, and the ToR sees it.
	edit("bgp.yaml", "  nodeToNodeMeshEnabled: false", "  nodeToNodeMeshEnabled: false\n  prefixAdvertisements:\n  - {cidr: 10.244.0.0/16, communities: [\"65000:77\"]}")
	block := blockOf(t, ctx, n)
	scenario.Eventually(t, 10*time.Second, "the community at the ToR", func() error {
		out, err := f.Node("tor1a").Exec(ctx, "vtysh", "-c", "show bgp ipv4 unicast "+block)
		if err == nil && !strings.Contains(out, "65000:77") {
			err = errors.New(out)
		}
		return err
	})
	if now := since(); !maps.EqualFunc(before, now, time.Time.Equal) {
		t.Errorf("sessions were %v, are %v", before, now)
	}

	// A longer restart time is negotiated in OPEN: that one session starts anew.
	changed := netip.MustParseAddr("10.1.11.0")
	edit("peers.yaml", "  peerIP: 10.1.11.0\n", "  peerIP: 10.1.11.0\n  maxRestartTime: 90s\n")
	scenario.Eventually(t, 20*time.Second, "the edited session starts anew", func() error {
		if now := since(); !now[changed].After(before[changed]) {
			return fmt.Errorf("it is up since %s", now[changed])
		}
		return fabric.Established(ctx, n)
	})
	for peer, at := range since() {
		if peer != changed && !at.Equal(before[peer]) {
			t.Errorf("the session with %s was up since %s and is since %s", peer, before[peer], at)
		}
	}

	// A broken edit disables itself only: the session goes on with its last good version.
	now := since()
	edit("peers.yaml", "  maxRestartTime: 90s\n", "  maxRestartTime: soon\n")
	scenario.Eventually(t, 10*time.Second, "the problem is reported", func() error {
		st, err := fabric.Status(ctx, n)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(st.Problems, func(p model.Problem) bool { return strings.Contains(p.Field, "maxRestartTime") && !p.Ignored }) {
			return fmt.Errorf("problems: %v", st.Problems)
		}
		return nil
	})
	if after := since(); !maps.EqualFunc(now, after, time.Time.Equal) {
		t.Errorf("sessions were %v, are %v", now, after)
	}
	edit("peers.yaml", "  maxRestartTime: soon\n", "")
	edit("bgp.yaml", "\n  prefixAdvertisements:\n  - {cidr: 10.244.0.0/16, communities: [\"65000:77\"]}", "")
	scenario.Eventually(t, 20*time.Second, "sessions as at first", func() error {
		st, err := fabric.Status(ctx, n)
		if err == nil && slices.ContainsFunc(st.Problems, func(p model.Problem) bool { return !p.Ignored }) {
			err = fmt.Errorf("problems: %v", st.Problems)
		}
		return errors.Join(err, f.Established(ctx))
	})
}

func blockOf(t *testing.T, ctx context.Context, n *lab.Node) string {
	t.Helper()
	st, err := fabric.Status(ctx, n)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range st.Blocks {
		if b.Addr().Is4() {
			return b.String()
		}
	}
	t.Fatalf("%s owns no IPv4 block", n.Name())
	return ""
}

// agentKilled kills the agent, speaker and all, and starts it again.
func agentKilled(t *testing.T, f *scenario.Fabric) {
	ctx := scenario.Context(t, 2*time.Minute)
	streams := startStreams(ctx, t, f)
	before := addresses(t, ctx, f.Node("n1"))
	agent := f.Node("n1").Daemon("agent")
	if err := agent.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	streams.afterwards(t, 500*time.Millisecond)
	if err := agent.Start(ctx); err != nil {
		t.Fatal(err)
	}
	f.WaitEstablished(t, 30*time.Second)
	streams.afterwards(t, 12*time.Second) // past every deferral: what was stale is gone by then
	streams.lostNothing(t)
	if after := addresses(t, ctx, f.Node("n1")); !maps.Equal(before, after) {
		t.Errorf("addresses were %v, are %v", before, after)
	}
	f.PodsTalk(t, 10*time.Second)
}

// speakerKilled kills the child alone.
func speakerKilled(t *testing.T, f *scenario.Fabric) {
	ctx := scenario.Context(t, 2*time.Minute)
	n := f.Node("n1")
	streams := startStreams(ctx, t, f)
	for range 2 { // the second soon after the first: the peers hold stale routes no longer
		st, err := fabric.Status(ctx, n)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := n.Exec(ctx, "kill", "-9", fmt.Sprint(st.Speaker.PID)); err != nil {
			t.Fatal(err)
		}
		scenario.Eventually(t, 20*time.Second, "another speaker", func() error {
			now, err := fabric.Status(ctx, n)
			if err == nil && (now.Speaker.PID == st.Speaker.PID || now.Speaker.Restarts == st.Speaker.Restarts) {
				err = errors.New("the old one")
			}
			return errors.Join(err, fabric.Established(ctx, n))
		})
	}
	streams.afterwards(t, 12*time.Second)
	streams.lostNothing(t)
	st, err := fabric.Status(ctx, n)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range st.Peers {
		if p.HeldBack != nil {
			t.Errorf("%s is held back for what kill -9 did", p.Address)
		}
	}
}

// addresses lists what the agent keeps for which attachment.
func addresses(t *testing.T, ctx context.Context, n *lab.Node) map[string]string {
	t.Helper()
	st, err := fabric.Status(ctx, n)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, ep := range st.Endpoints {
		out[ep.Key.String()] = fmt.Sprint(ep.Addresses)
	}
	return out
}

// killedInADD kills the agent at ever later moments of an ADD until every stage was hit,
// and looks for leaks after each DEL.
func killedInADD(t *testing.T, f *scenario.Fabric) {
	ctx := scenario.Context(t, 5*time.Minute)
	n := f.Node("n2")
	agent := n.Daemon("agent")
	before := addresses(t, ctx, n)
	linksBefore := caliLinks(t, ctx, n)
	hit := map[string]int{}
	stages := []string{"nothing", "promised", "linked", "routed", "answered"}
	delay := time.Duration(0)
	for round := 0; round < 200; round++ {
		missing := slices.ContainsFunc(stages, func(s string) bool { return hit[s] == 0 })
		if !missing && round >= 25 {
			break
		}
		name := fmt.Sprintf("victim%d", round)
		pod, err := n.NewSandbox(ctx, name, lab.PodOptions{})
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- pod.Attach(ctx) }()
		answered := false
		select {
		case err := <-done:
			answered = err == nil
			done <- err
		case <-time.After(delay): // the moment of the kill is what is varied
		}
		if err := agent.Kill(ctx); err != nil {
			t.Fatal(err)
		}
		stage := stageOf(t, ctx, n, pod, linksBefore, answered)
		hit[stage]++
		if answered {
			delay = 0
		} else {
			delay += lab.Slow(500 * time.Microsecond)
		}
		if err := agent.Start(ctx); err != nil {
			t.Fatal(err)
		}
		// The plugin waits for the agent to come back, or says so; a runtime then deletes.
		if err := <-done; err == nil {
			if err := pod.Check(ctx); err != nil {
				t.Errorf("round %d, killed when %s: ADD succeeded and CHECK says: %v", round, stage, err)
			}
		}
		if err := pod.Detach(ctx); err != nil {
			t.Fatalf("round %d, killed when %s: DEL: %v", round, stage, err)
		}
		if err := pod.RemoveSandbox(ctx); err != nil {
			t.Fatal(err)
		}
		if after := addresses(t, ctx, n); !maps.Equal(before, after) {
			t.Fatalf("round %d, killed when %s: the agent keeps %v, at first %v", round, stage, after, before)
		}
		if links := caliLinks(t, ctx, n); !slices.Equal(links, linksBefore) {
			t.Fatalf("round %d, killed when %s: links %v, at first %v", round, stage, links, linksBefore)
		}
	}
	t.Logf("kills by stage: %v", hit)
	for _, s := range stages {
		if hit[s] == 0 {
			t.Errorf("no kill fell on stage %q", s)
		}
	}
	scenario.Eventually(t, 20*time.Second, "blocks hold what is in use and the stash, nothing else", func() error {
		return blocksAccountedFor(t, ctx, f, n)
	})
	f.WaitEstablished(t, 30*time.Second)
	f.PodsTalk(t, 10*time.Second)
}

func caliLinks(t *testing.T, ctx context.Context, n *lab.Node) []string {
	t.Helper()
	out, err := n.Exec(ctx, "ip", "-o", "link")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, line := range strings.Split(out, "\n") {
		if fields := strings.Fields(line); len(fields) > 1 && strings.HasPrefix(fields[1], "cali") {
			names = append(names, strings.TrimRight(strings.SplitN(fields[1], "@", 2)[0], ":"))
		}
	}
	slices.Sort(names)
	return names
}

// stageOf says how far an ADD had come when its agent was killed, by what is left of it.
func stageOf(t *testing.T, ctx context.Context, n *lab.Node, pod *lab.Pod, linksBefore []string, answered bool) string {
	t.Helper()
	if answered {
		return "answered"
	}
	for _, l := range caliLinks(t, ctx, n) {
		if slices.Contains(linksBefore, l) {
			continue
		}
		if out, err := n.Exec(ctx, "ip", "route", "show", "dev", l); err == nil && strings.Contains(out, "proto 82") {
			return "routed"
		}
		return "linked"
	}
	journal, err := os.ReadDir(n.Path("/var/lib/causeway"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range journal {
		if b, err := os.ReadFile(filepath.Join(n.Path("/var/lib/causeway"), e.Name())); err == nil && strings.Contains(string(b), pod.ContainerID) {
			return "promised"
		}
	}
	return "nothing"
}

// blocksAccountedFor returns nil when every address that the blocks hold for the node
// belongs to a pod that lives or to the node's stash, and every pod's address is held.
func blocksAccountedFor(t *testing.T, ctx context.Context, f *scenario.Fabric, n *lab.Node) error {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(f.Shared("manifests"), "ipam/blocks/*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no blocks: %v", err)
	}
	live := map[string]int{}
	for _, p := range n.Pods() {
		live["causeway."+p.ContainerID] = len(p.Addresses)
	}
	stash := ipam.StashPrefix + n.Name()
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		var block v3.IPAMBlock
		if err := yaml.Unmarshal(b, &block); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		for i, attr := range block.Spec.Allocations {
			if attr == nil {
				continue
			}
			a := block.Spec.Attributes[*attr]
			handle := ""
			if a.HandleID != nil {
				handle = *a.HandleID
			}
			switch owner := a.ActiveOwnerAttrs["node"]; {
			case handle == stash || (owner != n.Name() && handle != ""):
			case live[handle] > 0:
				live[handle]--
			default:
				return fmt.Errorf("%s: address %d is held by %q of node %q, which is nobody", block.Name, i, handle, owner)
			}
		}
	}
	for handle, missing := range live {
		if missing != 0 {
			return fmt.Errorf("%d addresses of %s are in no block", missing, handle)
		}
	}
	return nil
}
