package server

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"

	"github.com/causeway-net/causeway/cni-plugin/internal/sandbox"
)

// TestPortmap chains portmap behind the plugin: a connection to the host's port reaches
// the pod, for both families, and DEL takes the rules away.
func TestPortmap(t *testing.T) {
	r := newRig(t)
	r.start()
	ns := sandbox.Pod(t)
	l := r.list("1.0.0", "", `{"type":"portmap","capabilities":{"portMappings":true},"snat":true}`)
	rt := runtime("c1", ns)
	rt.CapabilityArgs = map[string]any{"portMappings": []map[string]any{{"hostPort": 18080, "containerPort": 80, "protocol": "tcp"}}}
	r.add(l, rt)
	if err := r.check(l, rt); err != nil {
		t.Errorf("CHECK: %v", err)
	}
	serve(t, ns, "80")
	plain, other := r.list("1.0.0", ""), runtime("c2", sandbox.Pod(t))
	r.add(plain, other)
	for _, host := range []string{sandbox.HostIPv4, sandbox.HostIPv6} {
		talk(t, other.NetNS, host, "18080")
	}
	r.del(plain, other)
	r.del(l, rt)
	if out := sandbox.Run(t, "sh", "-c", "nft list ruleset; iptables-save; ip6tables-save"); strings.Contains(out, "18080") {
		t.Errorf("portmap's rules are left:\n%s", out)
	}
	r.clean()
}

// TestBandwidth chains bandwidth, which finds the host end by our result.
func TestBandwidth(t *testing.T) {
	r := newRig(t)
	r.start()
	l := r.list("1.1.0", "", `{"type":"bandwidth","capabilities":{"bandwidth":true}}`)
	rt := runtime("c1", sandbox.Pod(t))
	rt.CapabilityArgs = map[string]any{"bandwidth": map[string]any{"ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 8_000_000, "egressBurst": 800_000}}
	r.add(l, rt)
	if err := r.check(l, rt); err != nil {
		t.Errorf("CHECK: %v", err)
	}
	if out := sandbox.Run(t, "tc", "qdisc", "show", "dev", hostNameOf(rt)); !strings.Contains(out, "tbf") {
		t.Errorf("the host end has no rate:\n%s", out)
	}
	sandbox.Run(t, "ping", "-c1", "-W2", "10.9.0.1")
	r.del(l, rt)
	r.clean()
}

// TestBehindAnother: as a later plugin of a chain ours adds to what came before.
func TestBehindAnother(t *testing.T) {
	r := newRig(t)
	r.start()
	ns := sandbox.Pod(t)
	first := `{"type":"ptp","ipam":{"type":"host-local","ranges":[[{"subnet":"10.77.0.0/24"}]],"dataDir":"` + filepath.Dir(r.socket) + `"}}`
	base, err := libcni.NetworkConfFromBytes([]byte(`{"cniVersion":"1.1.0","name":"base","plugins":[` + first + `]}`))
	if err != nil {
		t.Fatal(err)
	}
	rt := runtime("c1", ns)
	prev := r.add(base, rt)
	conf := `{"cniVersion":"1.1.0","name":"net","type":"causeway-cni","prevResult":` + marshal(t, prev) + `}`
	req := r.request("ADD", "c1")
	req.IfName, req.Stdin, req.NetNS = "net1", []byte(conf), ns
	resp, err := r.raw(req, ns)
	if err != nil || resp.Error != nil {
		t.Fatalf("ADD: %v, %v", err, resp.Error)
	}
	text := string(resp.Result)
	for _, want := range []string{`"address":"10.77.0.2/24"`, `"address":"10.9.0.1/32","gateway":"169.254.1.1","interface":3`, `"name":"net1"`} {
		if !strings.Contains(text, want) {
			t.Errorf("result lacks %s: %s", want, text)
		}
	}
	check := req
	check.Command, check.Stdin = "CHECK", []byte(`{"cniVersion":"1.1.0","name":"net","type":"causeway-cni","prevResult":`+text+`}`)
	if resp, err := r.raw(check, ns); err != nil || resp.Error != nil {
		t.Errorf("CHECK: %v, %v", err, resp.Error)
	}
	req.Command = "DEL"
	if resp, err := r.raw(req, ns); err != nil || resp.Error != nil {
		t.Errorf("DEL: %v, %v", err, resp.Error)
	}
	r.del(base, rt)
	r.clean()
}

// serve answers connections to a port in the pod until the test ends.
func serve(t *testing.T, ns, port string) {
	t.Helper()
	cmd := exec.Command("ip", "netns", "exec", filepath.Base(ns), "python3", "-uc", `
import socket, sys
s = socket.create_server(("::", int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True)
print("listening")
while True:
    c, _ = s.accept()
    c.sendall(b"hello from the pod\n")
    c.close()
`, port)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	if _, err := out.Read(make([]byte, 16)); err != nil {
		t.Fatalf("the pod's server did not start: %v", err)
	}
}

// talk connects from the host and from the namespace, and reads what serve says.
func talk(t *testing.T, from, host, port string) {
	t.Helper()
	const connect = `
import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=3)
print(s.makefile().read(), end="")`
	for where, out := range map[string]string{
		"the host":    sandbox.Run(t, "python3", "-c", connect, host, port),
		"another pod": sandbox.In(t, from, "python3", "-c", connect, host, port),
	} {
		if out != "hello from the pod\n" {
			t.Errorf("from %s to %s port %s: %q", where, host, port, out)
		}
	}
}
