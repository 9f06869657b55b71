package lab

import (
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/causeway-net/causeway/test/lab/traffic"
)

func TestStreamCountsWhatACutLinkLoses(t *testing.T) {
	t.Parallel()
	l := up(t, small, Options{})
	a, b := l.Node("a"), l.Node("b")
	for _, target := range []string{"10.9.0.2", "fd09::2"} {
		s, err := traffic.Start(t.Context(), traffic.Config{From: a, To: b, Target: netip.MustParseAddr(target), Flows: 4, PPS: 2000})
		if err != nil {
			t.Fatal(err)
		}
		before, err := traffic.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		poll(t, "traffic flows", func() bool { return s.Received() > 100 })
		if err := b.LinkDown("eth1"); err != nil {
			t.Fatal(err)
		}
		sent, cut := s.Sent(), s.Elapsed()
		poll(t, "packets are lost", func() bool { return s.Sent() > sent+400 })
		if err := b.LinkUp("eth1"); err != nil {
			t.Fatal(err)
		}
		got, back := s.Received(), s.Elapsed()
		poll(t, "traffic flows again", func() bool { return s.Received() > got+100 })
		r := s.Stop()
		if len(r.Flows) != 4 || r.Lost < 300 || r.Sent-r.Received != r.Lost || r.Duplicates != 0 {
			t.Errorf("%s", r)
		}
		// The outage is at least the time the link was down, as the sender saw it.
		if time.Duration(r.LongestOutage) < (back-cut)/2 || time.Duration(r.LongestGap) < (back-cut)/2 {
			t.Errorf("cut for %s: %s", back-cut, r)
		}
		after, err := traffic.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		if d := after["eth1"].Sub(before["eth1"]); d.RxPackets < 150 {
			t.Errorf("eth1 counted %+v of %d received", d, r.Received)
		}
		ports := map[int]bool{}
		for _, f := range r.Flows {
			ports[f.SourcePort] = true
		}
		if out, err := json.Marshal(r); err != nil || len(ports) != 4 || !strings.Contains(string(out), `"longest_outage_ms":`) {
			t.Errorf("ports %v, JSON %s %v", ports, out, err)
		}
	}
}

func TestPingAllSaysWhoDoesNotAnswer(t *testing.T) {
	t.Parallel()
	l := up(t, small, Options{})
	at := func(name string, addrs ...string) traffic.Endpoint {
		e := traffic.Endpoint{Space: l.Node(name)}
		for _, a := range addrs {
			e.Addrs = append(e.Addrs, netip.MustParseAddr(a))
		}
		return e
	}
	all := []traffic.Endpoint{at("a", "10.9.0.1", "fd09::1"), at("b", "10.9.0.2", "fd09::2", "10.9.0.99")}
	m := traffic.PingAll(t.Context(), all, all, traffic.PingConfig{})
	if failed := m.Failed(); len(m) != 5 || len(failed) != 1 || failed[0].Target.String() != "10.9.0.99" || failed[0].From != "a" {
		t.Errorf("\n%s", m)
	}
}

// A CNI plugin for this test: it gives the pod a veth and the address 10.77.0.2, or fails.
const plugin = `#!/bin/sh
conf=$(cat)
case "$CNI_COMMAND" in
VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}'; exit;;
ADD)
  case "$CNI_ARGS" in *K8S_POD_NAME=bad*) echo '{"cniVersion":"1.0.0","code":11,"msg":"try again later"}'; exit 1;; esac
  echo "$conf" > /run/conf
  ip link add "$CNI_IFNAME" netns "${CNI_NETNS##*/}" type veth peer name host0 || exit 1
  ip -n "${CNI_NETNS##*/}" addr add 10.77.0.2/24 dev "$CNI_IFNAME"
  ip -n "${CNI_NETNS##*/}" link set "$CNI_IFNAME" up
  ip addr add 10.77.0.1/24 dev host0 && ip link set host0 up
  echo '{"cniVersion":"1.0.0","ips":[{"address":"10.77.0.2/24"}]}';;
DEL) ip link del host0 2>/dev/null; echo "$CNI_CONTAINERID" >> /run/deleted;;
esac
exit 0
`

func TestPods(t *testing.T) {
	t.Parallel()
	bin := t.TempDir()
	if err := os.WriteFile(filepath.Join(bin, "test-plugin"), []byte(plugin), 0o755); err != nil {
		t.Fatal(err)
	}
	l := up(t, small, Options{CNIPath: []string{bin}})
	ctx, a := t.Context(), l.Node("a")
	conf := []byte(`{"cniVersion":"1.0.0","name":"test","plugins":[{"type":"test-plugin","capabilities":{"ips":true}}]}`)
	p, err := a.AddPod(ctx, "p1", PodOptions{Netconf: conf, IPs: []netip.Addr{netip.MustParseAddr("10.77.0.2")}})
	if err != nil {
		t.Fatal(err)
	}
	if p.Address(false).String() != "10.77.0.2" || p.Address(true).IsValid() || p.String() != "a/p1" {
		t.Errorf("pod %s has %v", p, p.Addresses)
	}
	if out, err := a.Exec(ctx, "cat", "/run/conf"); err != nil || !strings.Contains(out, `"runtimeConfig":{"ips":["10.77.0.2"]}`) {
		t.Errorf("the plugin was given %s %v", out, err)
	}
	if out, err := p.Exec(ctx, "ip", "-br", "addr", "show", "eth0"); err != nil || !strings.Contains(out, "10.77.0.2/24") {
		t.Errorf("in the pod: %q %v", out, err)
	}
	if _, err := a.Exec(ctx, "ping", "-c1", "-W2", "10.77.0.2"); err != nil {
		t.Error(err)
	}
	if _, err := a.AddPod(ctx, "p1", PodOptions{Netconf: conf}); err == nil || !strings.Contains(err.Error(), "there already") {
		t.Errorf("the same pod again: %v", err)
	}
	// A failed ADD is followed by DEL, and nothing is left of the pod.
	_, err = a.AddPod(ctx, "bad", PodOptions{Netconf: conf, ContainerID: "bad-id"})
	var cniErr *types.Error
	if !errors.As(err, &cniErr) || cniErr.Code != 11 {
		t.Errorf("failed ADD: %v", err)
	}
	if out, _ := a.Exec(ctx, "cat", "/run/deleted"); !strings.Contains(out, "bad-id") || a.Pod("bad") != nil {
		t.Errorf("after a failed ADD: DEL for %q, pod %v", out, a.Pod("bad"))
	}
	// Another process finds the pod and deletes it.
	o, err := Open(l.opts.StateRoot, l.Name)
	if err != nil {
		t.Fatal(err)
	}
	if err := o.Node("a").DeletePod(ctx, "p1"); err != nil {
		t.Fatal(err)
	}
	if out, err := a.Exec(ctx, "ls", "/run/netns"); err != nil || out != "" || len(a.Pods()) != 0 {
		t.Errorf("after deletion: namespaces %q, pods %v, %v", out, a.Pods(), err)
	}
}
