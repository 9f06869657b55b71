package lab

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func parseText(t *testing.T, text string) (*Topology, error) {
	t.Helper()
	return parse("/x/t.clab.yml", []byte(text), func(name string) (string, bool) {
		v, ok := map[string]string{"TAG": "9.1"}[name]
		return v, ok
	})
}

func TestParseMergesAsContainerlab(t *testing.T) {
	topo, err := parseText(t, `
name: merge
topology:
  defaults:
    kind: linux
    exec: [echo defaults]
    env: {A: defaults, B: defaults, C: defaults}
    binds: ["d:/etc/d"]
  kinds:
    linux:
      image: frrouting/frr:${TAG}
      env: {B: kind}
      exec: [echo kind]
  groups:
    hosts: {image: "alpine:${OTHER:=3}", env: {C: group}}
  nodes:
    r1:
      binds: ["__clabNodeName__.conf:/etc/frr/frr.conf:ro", "/abs:/etc/d"]
      env: {A: "__clabNodeName__"}
      exec: ["echo 'two words' __clabNodeName__"]
      sysctls: {net.ipv4.ip_forward: 0}
    h1: {group: hosts, cmd: "sleep 'a b'"}
    sw: {kind: bridge}
  links:
    - endpoints: ["r1:eth1", "sw:p1"]
    - type: veth
      mtu: 1400
      endpoints:
        - {node: h1, interface: eth1, mac: "02:00:00:00:00:01"}
        - {node: sw, interface: p2}
`)
	if err != nil {
		t.Fatal(err)
	}
	r1, h1 := topo.Node("r1"), topo.Node("h1")
	if r1.Role != RoleFRR || r1.Image != "frrouting/frr:9.1" || h1.Role != RoleHost || h1.Image != "alpine:3" || topo.Node("sw").Role != RoleBridge {
		t.Errorf("roles: %+v %+v", r1, h1)
	}
	if r1.Env["A"] != "r1" || r1.Env["B"] != "kind" || r1.Env["C"] != "defaults" || h1.Env["C"] != "group" {
		t.Errorf("env: %v %v", r1.Env, h1.Env)
	}
	if want := []string{"echo defaults", "echo kind", "echo 'two words' r1"}; !slices.Equal(r1.Exec, want) {
		t.Errorf("exec: %q", r1.Exec)
	}
	if want := []string{"sleep", "a b"}; !slices.Equal(h1.Cmd, want) {
		t.Errorf("cmd: %q", h1.Cmd)
	}
	var binds []string
	for _, b := range r1.Binds {
		binds = append(binds, b.Source+" "+b.Target)
	}
	if want := []string{"/x/r1.conf /etc/frr/frr.conf", "/abs /etc/d"}; !slices.Equal(binds, want) || !r1.Binds[0].ReadOnly || r1.Binds[1].ReadOnly {
		t.Errorf("binds: %q", binds)
	}
	if l := topo.Links[1]; l.MTU != 1400 || l.A.MAC.String() != "02:00:00:00:00:01" || topo.Links[0].MTU != defaultMTU {
		t.Errorf("links: %+v", topo.Links)
	}
}

// TestParseErrors: each broken file is refused with the line, the field and what would be
// right.
func TestParseErrors(t *testing.T) {
	node := "name: x\ntopology:\n  nodes:\n    a:\n      kind: linux\n      image: alpine\n"
	for _, c := range []struct{ text, want string }{
		{"", "is empty"},
		{"name: UP\ntopology: {nodes: {a: {kind: bridge}}}", `/x/t.clab.yml:1: name: "UP" must be`},
		{"topology: {nodes: {a: {kind: bridge}}}", "name: missing"},
		{"name: x", "topology: missing"},
		{"name: x\ntopology: {}", "topology.nodes: missing"},
		{"name: x\nversion: 3\ntopology: {nodes: {a: {kind: bridge}}}", ":2: version: is not a key"},
		{node + "      colour: red\n", "/x/t.clab.yml:7: topology.nodes.a.colour: is not a key of a containerlab node"},
		{node + "      startup-config: c.cfg\n", "t.clab.yml:7: topology.nodes.a.startup-config: not supported: bind the file"},
		{node + "      network-mode: host\n", `network-mode: "host" cannot be had`},
		{node + "      image: b\n", "topology.nodes.a.image: is there twice"},
		{node + "      binds: [a]\n", "must be source:target"},
		{node + "      binds: ['a:b']\n", "must be an absolute path"},
		{node + "      binds: ['a:/usr/bin/x']\n", "/usr is the machine's own"},
		{node + "      binds: ['a:/etc/x:rshared']\n", `option "rshared"`},
		{node + "      exec: [\"echo 'x\"]\n", "exec[0]: a quote is not closed"},
		{node + "      exec: ls\n", "exec: must be a list"},
		{node + "      sysctls: {kernel.pid_max: 5}\n", "only net.*"},
		{node + "      env: {A: $NOPE}\n", "t.clab.yml:7: environment variable NOPE is not set"},
		{"name: x\ntopology:\n  nodes:\n    a: {kind: nokia_srlinux}\n", `:4: topology.nodes.a.kind: "nokia_srlinux" cannot run here`},
		{"name: x\ntopology:\n  nodes:\n    a: {kind: linux}\n", "topology.nodes.a.image: missing"},
		{"name: x\ntopology:\n  nodes:\n    a: {kind: frr, cmd: x}\n", "cmd: not for FRR"},
		{node + "  links: [{endpoints: ['a:eth1']}]\n", "topology.links[0].endpoints: has 1"},
		{node + "  links: [{endpoints: ['a:eth1', 'b:eth1']}]\n", `there is no node "b"`},
		{node + "  links: [{endpoints: ['a:eth1', 'host:x']}]\n", "reaches outside the lab"},
		{node + "  links: [{endpoints: ['a:eth1', 'a:eth1']}]\n", "a:eth1 is in two links"},
		{node + "  links: [{endpoints: ['a:eth0', 'a:eth1']}]\n", "management interface"},
		{node + "  links: [{endpoints: ['a:eth2', 'a:waytoolonginterface']}]\n", "must be 1 to 15"},
		{node + "  links: [{endpoints: ['a:eth2', 'a:eth1'], mtu: 9}]\n", "mtu:"},
		{node + "  links: [{type: vxlan, endpoints: ['a:eth2', 'a:eth1']}]\n", "only veth"},
	} {
		_, err := parseText(t, c.text)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q:\n  got  %v\n  want %s", c.text, err, c.want)
		}
	}
}

// TestParseWarnings: what is left out is listed, never silent.
func TestParseWarnings(t *testing.T) {
	topo, err := parseText(t, "name: x\nmgmt: {network: m}\ntopology:\n  nodes:\n    a:\n      kind: linux\n      image: alpine\n      memory: 1G\n      ports: ['80:80']\n    b: {kind: bird, binds: ['c:/etc/bird/bird.conf']}\n")
	if err != nil {
		t.Fatal(err)
	}
	all := strings.Join(topo.Warnings, "\n")
	for _, want := range []string{":2: mgmt: ignored", ":8: topology.nodes.a.memory: ignored", ":9: topology.nodes.a.ports: ignored", "bird is known to causeway-lab only"} {
		if !strings.Contains(all, want) {
			t.Errorf("no warning %q in\n%s", want, all)
		}
	}
	if len(topo.Warnings) != 4 || !slices.Equal(topo.Node("a").Ports, []string{"80:80"}) {
		t.Errorf("%d warnings, ports %v", len(topo.Warnings), topo.Node("a").Ports)
	}
}

func TestRoleOf(t *testing.T) {
	for image, want := range map[string]Role{
		"quay.io/frrouting/frr:8.4.4": RoleFRR, "causeway:dev": RoleCauseway, "registry:5000/x/bird": RoleBIRD,
		"osrg/gobgp": RoleGoBGP, "alpine:frr": RoleHost, "nicolaka/netshoot": RoleHost,
	} {
		if got, err := roleOf("linux", image); err != nil || got != want {
			t.Errorf("%s: %s, %v; want %s", image, got, err, want)
		}
	}
}

func TestParseFRRDaemons(t *testing.T) {
	got, err := parseFRRDaemons("# c\nbgpd=yes\nospfd=no\nzebra_options=\"  -A 127.0.0.1 -s 1\"\nvtysh_enable=yes # why\nbfdd=\n")
	if err != nil || got["bgpd"] != "yes" || got["zebra_options"] != "  -A 127.0.0.1 -s 1" || got["vtysh_enable"] != "yes" || got["bfdd"] != "" {
		t.Errorf("%q %v", got, err)
	}
	for _, bad := range []string{"bgpd yes", "sharpd=yes", "bgpd=\"yes"} {
		if _, err := parseFRRDaemons(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

// topologies are the ones that ship.
func topologies(t *testing.T) map[string]*Topology {
	t.Helper()
	files, err := filepath.Glob("../../deploy/containerlab/*/*.clab.yml")
	if err != nil || len(files) < 5 {
		t.Fatalf("topologies: %v %v", files, err)
	}
	out := map[string]*Topology{}
	for _, f := range files {
		topo, err := Load(f)
		if err != nil {
			t.Fatal(err)
		}
		if name := filepath.Base(filepath.Dir(f)); topo.Name != name || filepath.Base(f) != name+".clab.yml" {
			t.Errorf("%s has the name %s", f, topo.Name)
		}
		out[topo.Name] = topo
	}
	return out
}

func TestShippedTopologiesLoadWithoutWarning(t *testing.T) {
	for name, topo := range topologies(t) {
		if len(topo.Warnings) > 0 {
			t.Errorf("%s: %q", name, topo.Warnings)
		}
		for _, n := range topo.Nodes {
			if n.Role != RoleCauseway {
				continue
			}
			if n.Env["CAUSEWAY_NODE_NAME"] != n.Name {
				t.Errorf("%s: node %s is told that it is %q", name, n.Name, n.Env["CAUSEWAY_NODE_NAME"])
			}
			b, err := os.ReadFile(filepath.Join(topo.Dir(), "manifests", "nodes.yaml"))
			if err != nil || !strings.Contains(string(b), "name: "+n.Name+"\n") {
				t.Errorf("%s: nodes.yaml does not have %s (%v)", name, n.Name, err)
			}
		}
		if dot := topo.DOT(); strings.Count(dot, " -- ") != len(topo.Links) {
			t.Errorf("%s: DOT has not %d links:\n%s", name, len(topo.Links), dot)
		}
		if art := topo.ASCII(); strings.Count(art, "--") < len(topo.Links) {
			t.Errorf("%s: the drawing lacks links:\n%s", name, art)
		}
	}
}
