package agent_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-net/causeway/internal/watch"
	"github.com/causeway-net/causeway/test/cluster/apiserver"
)

const pools = `
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: pods}
spec: {cidr: 10.77.0.0/22, blockSize: 26}
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: tiny}
spec: {cidr: 10.78.0.0/32, blockSize: 32, nodeSelector: "!all()"}
`

// TestAgents is the life of two nodes on one subnet with the mesh between them.
func TestAgents(t *testing.T) {
	c := newCluster(t)
	n1, n2 := c.addNode("n1", "192.0.2.11"), c.addNode("n2", "192.0.2.12")
	both := []*node{n1, n2}
	for _, n := range both {
		n.onFailure()
		c.run(filepath.Join(c.bin, "causeway"), "install", "--source-dir", c.bin, "--bin-dir", n.path("host", "bin"))
		n.writeKubeconfig()
		n.start()
	}
	step := func(name string, f func(t *testing.T)) {
		t.Helper()
		if !t.Run(name, func(t *testing.T) {
			c.t = t
			defer func() { c.t = t }()
			f(t)
		}) {
			t.FailNow()
		}
		c.t = t
	}

	step("before the Node is registered", func(t *testing.T) {
		for _, n := range both {
			c.eventually("the agent is alive and not ready", func() string {
				if code, body := n.probe("/livez"); code != 200 {
					return fmt.Sprintf("livez: %d %s", code, body)
				}
				if code, body := n.probe("/readyz"); code != 503 || !strings.Contains(body, `no Node "`+n.name+`"`) {
					return fmt.Sprintf("readyz: %d %s", code, body)
				}
				return ""
			})
			if _, err := os.Stat(n.path("host", "net.d")); err == nil {
				t.Errorf("%s: the network configuration was written before the agent is ready", n.name)
			}
		}
	})

	step("the first start", func(t *testing.T) {
		_, err := apiserver.ApplyYAML(t.Context(), server.Config, []byte(pools))
		c.must(err)
		// n1 alone: there are no peers, so none is needed.
		n1.register()
		n1.becomes("a node without peers is well", "False CausewayIsUp")
		if got := n1.object().Annotations[watch.AnnotationIPv4Address]; got != "192.0.2.11/24" {
			t.Errorf("%s is %q", watch.AnnotationIPv4Address, got)
		}
		c.hasEvent("Node", "n1", "CausewayIsUp")
		n2.register()
		n2.becomes("a node whose sessions are established is well", "False CausewayIsUp")
		c.hasEvent("Node", "n2", "CausewayIsDown") // it was not before
		for _, n := range both {
			c.eventually("annotation and session of "+n.name, func() string {
				st, err := n.status()
				switch {
				case err != nil:
					return err.Error()
				case n.object().Annotations[watch.AnnotationIPv4Address] != n.addr+"/24":
					return fmt.Sprint(n.object().Annotations)
				case len(st.Peers) != 1 || st.Peers[0].State != "Established":
					return fmt.Sprintf("%+v", st.Peers)
				}
				return ""
			})
			if code, body := n.probe("/readyz"); code != 200 {
				t.Errorf("%s: readyz: %d %s", n.name, code, body)
			}
		}
	})

	var p1, p2 *pod
	step("pods", func(t *testing.T) {
		p1, p2 = n1.newPod("p1", nil).add(), n2.newPod("p2", nil).add()
		p1.reaches(p2.addr)
		p2.reaches(p1.addr)
		p1.reaches(n2.addr)
	})

	step("the operator's view", func(t *testing.T) {
		out := strings.Join(strings.Fields(c.run(filepath.Join(c.bin, "causewayctl"), "--socket", n1.path("run", "agent.sock"), "status")), " ")
		for _, want := range []string{"Datastore kubernetes ", "NetworkUnavailable False", "192.0.2.11/24", "1 of 1 established"} {
			if !strings.Contains(out, want) {
				t.Errorf("causewayctl status lacks %q:\n%s", want, out)
			}
		}
	})

	step("no address", func(t *testing.T) {
		p := n1.newPod("greedy", map[string]string{"cni.projectcalico.org/ipv4pools": `["tiny"]`})
		if out, err := p.cni("add"); err == nil {
			t.Fatalf("an address of a pool that is not for this node: %s", out)
		}
		c.hasEvent("Pod", "greedy", "Warning FailedAddress", "tiny")
	})

	step("somebody else sets the condition", func(t *testing.T) {
		patch := `{"status":{"conditions":[{"type":"NetworkUnavailable","status":"True","reason":"NoRouteCreated"}]}}`
		_, err := c.clients.Core.CoreV1().Nodes().Patch(t.Context(), n1.name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, "status")
		c.must(err)
		n1.becomes("it is set again", "False CausewayIsUp")
	})

	step("a rolling update", func(t *testing.T) {
		before := transition(n1)
		end := p1.stream(p2.addr)
		stopAdding := n1.keepAdding("lane1", "lane2", "lane3", "lane4")
		for _, signal := range []os.Signal{unix.SIGTERM, unix.SIGKILL, unix.SIGTERM, unix.SIGTERM} {
			n1.stop(signal)
			n1.start()
			c.eventually("the new agent is ready", func() string {
				if code, body := n1.probe("/readyz"); code != 200 {
					return fmt.Sprint(code, body)
				}
				if st, err := n1.status(); err != nil || len(st.Peers) != 1 || st.Peers[0].State != "Established" {
					return fmt.Sprintf("%v %+v", err, st.Peers)
				}
				return ""
			})
		}
		stopAdding()
		end()
		if got := transition(n1); got != before {
			t.Errorf("the condition flipped: %s, was %s", got, before)
		}
	})

	step("the API server is away", func(t *testing.T) {
		known := n1.newPod("known", nil)
		known.add() // its sandbox dies with the API server away, and comes back
		before := transition(n1)
		end := p1.stream(p2.addr)
		server.StopAPI()
		_, err := known.cni("del")
		c.must(err)
		known.add().reaches(p2.addr)
		// Nothing passes by a pod of which nobody knows what it may (I2).
		unknown := n1.nameless("unknown").add()
		unknown.reachesNot(p2.addr)
		for _, probe := range []string{"/livez", "/readyz"} {
			if code, body := n1.probe(probe); code != 200 {
				t.Errorf("%s without API server: %d %s", probe, code, body)
			}
		}
		c.eventually("the status says so", func() string {
			if st, err := n1.status(); err != nil || st.Source.Error == "" {
				return fmt.Sprintf("%v %+v", err, st.Source)
			}
			return ""
		})
		// An agent that starts now works from what the one before knew: its peers hear of it
		// before they forget it, and new pods get addresses of the stash.
		n1.stop(unix.SIGKILL)
		n1.start()
		c.eventually("it is alive and ready, and its session is back", func() string {
			for _, probe := range []string{"/livez", "/readyz"} {
				if code, body := n1.probe(probe); code != 200 {
					return fmt.Sprint(probe, code, body)
				}
			}
			st, err := n1.status()
			if err != nil || len(st.Peers) != 1 || st.Peers[0].State != "Established" || st.Peers[0].Advertised == 0 {
				return fmt.Sprintf("%v %+v", err, st.Peers)
			}
			return ""
		})
		late := n1.nameless("late").add()
		late.reachesNot(p2.addr)
		known.reaches(p2.addr)
		c.must(server.StartAPI())
		c.eventually("the status says that it is back", func() string {
			if st, err := n1.status(); err != nil || st.Source.Error != "" || !st.Ready || len(st.Peers) != 1 || st.Peers[0].State != "Established" {
				return fmt.Sprintf("%v %+v %+v", err, st.Source, st.Peers)
			}
			return ""
		})
		end()
		if got := transition(n1); got != before {
			t.Errorf("the condition flipped: %s, was %s", got, before)
		}
		// Their objects arrive; a runtime that gave no UID means the pod of that name.
		for _, p := range []*pod{unknown, late} {
			n1.podObject(p.name, nil)
			p.reaches(p2.addr)
		}
		for _, p := range []*pod{known, unknown, late} {
			_, err := p.cni("del")
			c.must(err)
		}
	})

	step("the run folder is removed", func(t *testing.T) {
		end := p1.stream(p2.addr)
		c.must(os.RemoveAll(n1.path("run")))
		err := <-n1.ended
		n1.agent = nil
		text, _ := os.ReadFile(n1.path("log"))
		if err == nil || !strings.Contains(string(text), "somebody removed it") {
			t.Errorf("the agent ended with %v", err)
		}
		n1.start()
		c.eventually("the new agent has its sessions again", func() string {
			st, err := n1.status()
			if err != nil || !st.Ready || len(st.Peers) != 1 || st.Peers[0].State != "Established" {
				return fmt.Sprintf("%v %+v", err, st)
			}
			return ""
		})
		end()
	})

	step("the node's address changes", func(t *testing.T) {
		n2.ip("addr", "add", "192.0.2.22/24", "dev", "eth0")
		n2.setInternalIP("192.0.2.22")
		c.eventually("the annotation follows", func() string {
			if got := n2.object().Annotations[watch.AnnotationIPv4Address]; got != "192.0.2.22/24" {
				return got
			}
			return ""
		})
		c.hasEvent("Node", "n2", "Warning NodeAddressChanged", "192.0.2.12/24", "192.0.2.22/24")
		c.eventually("n1 peers with the new address", func() string {
			st, err := n1.status()
			if err != nil || len(st.Peers) != 1 || st.Peers[0].Address.String() != "192.0.2.22" || st.Peers[0].State != "Established" {
				return fmt.Sprintf("%v %+v", err, st.Peers)
			}
			return ""
		})
		p1.reaches(p2.addr)
		if st, err := n2.status(); err != nil || st.Network.AddressChanges != 1 {
			t.Errorf("%v %+v", err, st.Network)
		}
	})

	step("the node's address is found on its links", func(t *testing.T) {
		n2.ip("addr", "add", "192.0.2.200/32", "dev", "eth0") // a virtual one
		n2.ip("link", "add", "docker0", "type", "bridge")
		n2.ip("addr", "add", "172.17.0.1/16", "dev", "docker0")
		n2.ip("link", "set", "docker0", "up")
		c.must(n2.inside("sysctl", "-qw", "net.ipv4.conf.all.promote_secondaries=1").Run())
		c.must(n2.stop(unix.SIGTERM))
		n2.start("--ip-autodetection-method", "first-found")
		moves := func(from, to string) {
			t.Helper()
			c.eventually("the annotation follows", func() string {
				if got := n2.object().Annotations[watch.AnnotationIPv4Address]; got != to+"/24" {
					return got
				}
				return ""
			})
			c.hasEvent("Node", "n2", "Warning NodeAddressChanged", "from "+from+"/24 to "+to+"/24 (autodetection method first-found)")
			c.eventually("n1 peers with the new address", func() string {
				st, err := n1.status()
				if err != nil || len(st.Peers) != 1 || st.Peers[0].Address.String() != to || st.Peers[0].State != "Established" {
					return fmt.Sprintf("%v %+v", err, st.Peers)
				}
				return ""
			})
			p1.reaches(p2.addr)
		}
		moves("192.0.2.22", "192.0.2.12") // the link's primary one, whatever the InternalIP
		n2.ip("addr", "del", "192.0.2.12/24", "dev", "eth0")
		moves("192.0.2.12", "192.0.2.22")
		if st, err := n2.status(); err != nil || st.Network.AddressChanges != 2 {
			t.Errorf("%v %+v", err, st.Network)
		}
	})

	step("cleanup", func(t *testing.T) {
		args := n1.flags("--cleanup", "--cni-bin-dir", n1.path("host", "bin"), "--cni-source-dir", c.bin)
		if out, err := n1.inside(filepath.Join(c.bin, "causeway"), args...).CombinedOutput(); err == nil || !strings.Contains(string(out), "an agent runs on this node") {
			t.Fatalf("beside an agent: %v %s", err, out)
		}
		if err := n1.stop(unix.SIGTERM); err != nil {
			t.Errorf("the agent ended with %v", err)
		}
		for i, want := range []string{"removed", "nothing of Causeway's was found"} {
			out, err := n1.inside(filepath.Join(c.bin, "causeway"), args...).CombinedOutput()
			if err != nil || !strings.Contains(string(out), want) {
				t.Errorf("run %d: %v\n%s", i, err, out)
			}
		}
		if left := leftovers(t, n1); len(left) > 0 {
			t.Errorf("left on the host:\n%s", strings.Join(left, "\n"))
		}
		o := n1.object()
		if _, ok := o.Annotations[watch.AnnotationIPv4Address]; ok || n1.condition() != "" {
			t.Errorf("left on the Node: %v %s", o.Annotations, n1.condition())
		}
	})
}

// transition is when the condition changed last.
func transition(n *node) string {
	for _, c := range n.object().Status.Conditions {
		if c.Type == corev1.NodeNetworkUnavailable {
			return string(c.Status) + " since " + c.LastTransitionTime.UTC().String()
		}
	}
	return ""
}

// leftovers lists what is in the node's kernel and on its disk beyond what a node that never
// had an agent has.
func leftovers(t *testing.T, n *node) (left []string) {
	t.Helper()
	fresh := n.addNode("fresh", "192.0.2.99")
	for _, args := range [][]string{{"ip", "-o", "link"}, {"ip", "route"}, {"ip", "-6", "route"}, {"ip", "rule"}, {"iptables-nft-save"}, {"ip6tables-nft-save"}, {"iptables-legacy-save"}, {"ip6tables-legacy-save"}} {
		read := func(n *node) []string {
			out, err := n.inside(args[0], args[1:]...).Output()
			if err != nil {
				t.Fatalf("%v: %v", args, err)
			}
			var lines []string
			for line := range strings.SplitSeq(string(out), "\n") {
				// Built-in chains and empty tables stay; addresses, indexes and hardware differ.
				if line == "" || line[0] == '#' || line[0] == ':' || line[0] == '*' || line == "COMMIT" {
					continue
				}
				if args[1:] != nil && slices.Contains(args, "link") {
					line, _, _ = strings.Cut(strings.TrimSpace(line[strings.Index(line, ":")+1:]), ":")
					line, _, _ = strings.Cut(line, "@")
				}
				lines = append(lines, strings.ReplaceAll(strings.TrimSpace(line), n.addr, "ADDR"))
			}
			return lines
		}
		want := read(fresh)
		for _, line := range read(n) {
			if !slices.Contains(want, line) && !strings.HasPrefix(line, "fe80::") {
				left = append(left, strings.Join(args, " ")+": "+line)
			}
		}
	}
	for _, path := range []string{n.path("run"), n.path("state"), n.path("host", "net.d", "10-causeway.conflist"), n.path("host", "bin", "causeway-cni"), n.path("host", "bin", "portmap")} {
		if _, err := os.Lstat(path); err == nil {
			left = append(left, path)
		}
	}
	if out, err := exec.Command("ip", "netns", "pids", n.ns).Output(); err == nil && len(out) > 0 {
		left = append(left, "processes "+string(out))
	}
	return left
}
