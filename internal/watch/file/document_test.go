package file

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/causeway-net/causeway/internal/watch"
)

func TestSplit(t *testing.T) {
	for in, want := range map[string]string{
		"":                         "[] false",
		"# nothing\n":              "[] false",
		"---\n---\n":               "[] false",
		"a: 1\n":                   "[1:a: 1] true",
		"a: 1":                     "[1:a: 1] true",
		"a: 1\n---\n":              "[1:a: 1] false",
		"a: 1\n---":                "[1:a: 1] false",
		"a: 1\n--":                 "[1:a: 1\n--] true",
		"---\n\na: 1\n---\nb: 2\n": "[3:a: 1 5:b: 2] true",
		"--- {a: 1}\n--- # c\nb: 2\n...\n# end\n": "[1:{a: 1} 2:# c\nb: 2] false",
		"%YAML 1.1\n---\na: 1\n":                  "[3:a: 1] true",
		"\ufeffa: 1\r\n---\r\nb: 2\r\n":           "[1:a: 1 3:b: 2] true",
		"a: |\n  text\n  ---\n":                   "[1:a: |\n  text\n  ---] true",
		"---x: 1\n":                               "[1:---x: 1] true",
	} {
		docs, open := split(in)
		var parts []string
		for _, d := range docs {
			parts = append(parts, fmt.Sprintf("%d:%s", d.line, d.text))
		}
		if got := fmt.Sprintf("[%s] %t", strings.Join(parts, " "), open); got != want {
			t.Errorf("split(%q) = %q, want %q", in, got, want)
		}
	}
}

// TestMessages holds that whatever is wrong is named by file, document, field and what
// would be right.
func TestMessages(t *testing.T) {
	head := "apiVersion: projectcalico.org/v3\nkind: %s\nmetadata: {name: a}\nspec:\n"
	pool, peer := fmt.Sprintf(head, "IPPool"), fmt.Sprintf(head, "BGPPeer")
	for _, tc := range []struct{ in, want string }{
		{pool + "  cidr: 10.0.0.0/8\n  blocksize: 26\n", `x.yaml document 1: IPPool a: .spec.blocksize: is not a field of IPPool; did you mean "blockSize"?`},
		{pool + "  cidr: 10.0.0.0/8\n  whatever: 26\n", `x.yaml document 1: IPPool a: .spec.whatever: is not a field of IPPool; known here are "allowedUses", "assignmentMode", "blockSize",`},
		{"apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: a}\ncidr: 10.0.0.0/8\n", `IPPool a: .cidr: is not a field of IPPool; did you mean ".spec.cidr"?`},
		{pool + "  cidr: 10.0.0.0/8\n  blockSize: \"26\"\n", `.spec.blockSize: is the string "26"; must be a whole number from`},
		{pool + "  cidr: 10.0.0.0/8\n  blockSize: 26.5\n", `.spec.blockSize: is the number 26.5; must be a whole number from`},
		{pool + "  cidr: 10\n", ".spec.cidr: is the number 10; must be a string in quotes"},
		{pool + "  cidr: [10.0.0.0/8]\n", ".spec.cidr: is a list; must be a string"},
		{pool + "  cidr: 10.0.0.0/8\n  disabled: \"yes\"\n", `.spec.disabled: is the string "yes"; must be true or false`},
		{pool + "  cidr: 10.0.0.0/8\n  allowedUses: Workload\n", `.spec.allowedUses: is the string "Workload"; must be a list`},
		{pool + "  cidr: 10.0.0.0/8\n  allowedUses: [null]\n", `.spec.allowedUses[0]: is null; remove it or give it a value`},
		{"apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: a}\nspec: 10.0.0.0/8\n", `.spec: is the string "10.0.0.0/8"; must be an object with the fields "allowedUses"`},
		{pool + "  cidr: 10.0.0.0/8\n  cidr: 10.1.0.0/16\n", `x.yaml document 1: File x.yaml: is not valid YAML: unmarshal errors: line 6: key "cidr" already set in map`},
		{"# one\n---\n" + pool + "  cidr: 10.0.0.0/8\n---\na: b: c\n", "x.yaml document 2: File x.yaml: is not valid YAML: line 9: mapping values are not allowed"},
		{peer + "  peerIP: 10.0.0.1\n  asNumber: 4294967296\n", ".spec.asNumber: is the number 4294967296; must be a whole number from 0 to 4294967295"},
		{peer + "  peerIP: 10.0.0.1\n  asNumber: -1\n", ".spec.asNumber: is the number -1; must be a whole number from 0 to 4294967295"},
		{peer + "  peerIP: 10.0.0.1\n  asNumber: 1\n  keepaliveTime: 10\n", `.spec.keepaliveTime: is the number 10; must be a duration in quotes or with its unit, such as "90s" or "2m"`},
		{peer + "  peerIP: 10.0.0.1\n  asNumber: 1\n  keepaliveTime: soon\n", `.spec.keepaliveTime: is the string "soon"; must be a duration`},
		{"apiVersion: v1\nkind: Node\nmetadata:\n  name: n1\n  creationTimestamp: today\n", `.metadata.creationTimestamp: is the string "today"; must be a time such as`},
		{"apiVersion: v1\nkind: Node\nmetadata:\n  name: n1\n  annotations: {projectcalico.org/ASNumber: 65001}\n", ".metadata.annotations.projectcalico.org/ASNumber: is the number 65001; must be a string in quotes"},
		{"apiVersion: v1\nkind: Node\nmetadata:\n  name: n1\nspec: {pool: x}\n", ".spec.pool: is not a field of Node"},
		{"kind: IPPool\nmetadata: {name: a}\n", `IPPool a: .apiVersion: is ""; must be "projectcalico.org/v3"`},
		{"apiVersion: crd.projectcalico.org/v1\nkind: IPPool\nmetadata: {name: a}\n", `IPPool a: .apiVersion: is "crd.projectcalico.org/v1"; must be "projectcalico.org/v3"`},
		{"apiVersion: v1\nmetadata: {name: a}\n", "x.yaml document 1: File x.yaml: .kind: is missing; must be one of BGPConfiguration, BGPPeer, FelixConfiguration, IPAMBlock,"},
		{"apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {}\n", "x.yaml document 1: File x.yaml: .metadata.name: is missing"},
		{"apiVersion: apps/v1\nkind: DaemonSet\nmetadata: {name: a}\n", `DaemonSet a: .kind: is "DaemonSet" of "apps/v1", which is not read; must be one of`},
		{"apiVersion: projectcalico.org/v3\nkind: Node\nmetadata: {name: a}\n", `Node a: .kind: is Node of projectcalico.org/v3; write it as apiVersion "v1"`},
		{"apiVersion: projectcalico.org/v3\nkind: BGPFilter\nmetadata: {name: a}\n", "BGPFilter a: .kind: is BGPFilter, which is not acted on yet"},
		{"apiVersion: projectcalico.org/v3\nkind: FelixConfiguration\nmetadata: {name: default}\nspec: {natPortRange: 1-2}\n", `.spec.natPortRange: is "1-2"; must be a port or a range`},
		{"apiVersion: projectcalico.org/v3\nkind: FelixConfiguration\nmetadata: {name: default}\nspec: {natPortRnge: 1}\n", `.spec.natPortRnge: is not a field of FelixConfiguration; did you mean "natPortRange"?`},
		{"apiVersion: projectcalico.org/v3\nkind: FelixConfiguration\nmetadata: {name: default}\nspec: {bpfEnabled: true}\n", `.spec.bpfEnabled: is not acted on yet`},
		{"- a\n", "x.yaml document 1: File x.yaml: is no object"},
		{"apiVersion: v1\nkind: List\nitems:\n- kind: IPPool\n  apiVersion: projectcalico.org/v3\n  metadata: {name: a}\n  spec: {cdr: 10.0.0.0/8}\n",
			`x.yaml document 1 item 1: IPPool a: .items[0].spec.cdr: is not a field of IPPool; did you mean "cidr"?`},
		{"apiVersion: projectcalico.org/v3\nkind: IPPoolList\nitems:\n- metadata: {name: a}\n  spec: {cidr: 10.0.0.0/33}\n", `x.yaml document 1 item 1: IPPool a: .spec.cidr: is "10.0.0.0/33"`},
		{"apiVersion: v1\nkind: List\nitems: {}\n", ".items: is no list"},
		{"apiVersion: v1\nkind: List\nitems: [1]\n", ".items[0]: is no object"},
	} {
		c := newClock()
		c.see("x.yaml", tc.in)
		c.pass(settleTime)
		if got := problems(c.build()); !strings.Contains(got, tc.want) {
			t.Errorf("%s\ngives\n%s\nwant\n%s", tc.in, got, tc.want)
		}
	}
}

// TestAccepted lists what must not be complained about.
func TestAccepted(t *testing.T) {
	for _, in := range []string{
		poolManifest("a", "10.0.0.0/8") + "status: {conditions: [{type: Allocatable, status: \"True\", reason: a, message: b, lastTransitionTime: \"2026-01-01T00:00:00Z\"}]}\n",
		"apiVersion: projectcalico.org/v3\nkind: IPPoolList\nmetadata: {resourceVersion: \"1\"}\nitems:\n- metadata: {name: a, creationTimestamp: null}\n  spec: {cidr: 10.0.0.0/8, allowedUses: null}\n",
		"apiVersion: projectcalico.org/v3\nkind: FelixConfiguration\nmetadata: {name: default}\nspec: {natPortRange: 32768:65535, natOutgoingAddress: fd00::9, bpfEnabled: false}\n---\n" + poolManifest("a", "10.0.0.0/8"),
		"apiVersion: v1\nkind: List\nitems: []\n---\n" + poolManifest("a", "10.0.0.0/8"),
		"apiVersion: v1\nkind: Node\nmetadata: {name: n2}\nspec: {podCIDR: 10.0.0.0/24, taints: [{key: a, effect: NoSchedule}]}\nstatus: {capacity: {cpu: \"4\"}, futureField: {a: 1}, nodeInfo: {newer: 1}}\n---\n" + poolManifest("a", "10.0.0.0/8"),
	} {
		c := newClock()
		c.see("x.yaml", in)
		c.pass(settleTime)
		if s := c.build(); len(s.Problems) != 0 || len(s.Pools) != 1 {
			t.Errorf("%s\ngives %d pools\n%s", in, len(s.Pools), problems(s))
		}
	}
}

// TestSecretsAreNotShown holds that no part of a Secret gets into a problem, whatever is
// wrong with it (I7).
func TestSecretsAreNotShown(t *testing.T) {
	for _, body := range []string{
		"data: {tor: hunter2!}\n", "data: {tor: [hunter2]}\n", "data: hunter2\n", "stringData: {tor: 1234567}\n", "stringData: {tor: true}\n",
		"data: {tor: *hunter2}\n", "data: {tor: !!int hunter2}\n", "stringData: {tor: \"hunter2}\n", "stringData:\n  tor: hunter2: x\n", "immutable: hunter2\n",
		"data:\n\ttor: hunter2\n", "type: [hunter2]\n",
	} {
		c := newClock()
		c.see("x.yaml", "apiVersion: v1\nkind: Secret\nmetadata: {name: bgp}\n"+body)
		c.pass(settleTime)
		got := problems(c.build())
		if got == "" || strings.Contains(got, "hunter2") || strings.Contains(got, "1234567") {
			t.Errorf("%s\ngives\n%s", body, got)
		}
	}
}

// TestPasswordsAreNotShown holds the same for those who write a password where a reference to
// its Secret belongs.
func TestPasswordsAreNotShown(t *testing.T) {
	for _, doc := range []string{
		"apiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata: {name: a}\nspec: {peerIP: 10.0.0.1, asNumber: 1, password: hunter2}\n",
		"apiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata: {name: a}\nspec: {peerIP: 10.0.0.1, asNumber: 1, password: [hunter2}\n",
		"apiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata: {name: a}\nspec: {peerIP: 10.0.0.1, asNumber: 1, password: *hunter2}\n",
		"apiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata: {name: a}\nspec: {peerIP: 10.0.0.1, asNumber: 1, password: {secretKeyRef: hunter2}}\n",
		"apiVersion: projectcalico.org/v3\nkind: BGPConfiguration\nmetadata: {name: default}\nspec: {nodeMeshPassword: hunter2}\n",
	} {
		c := newClock()
		c.see("x.yaml", doc)
		c.pass(settleTime)
		if got := problems(c.build()); got == "" || strings.Contains(got, "hunter2") {
			t.Errorf("%s\ngives\n%s", doc, got)
		}
	}
}

// FuzzParse holds that no text makes the parser panic, and that what it makes of a text
// does not depend on what was read before.
func FuzzParse(f *testing.F) {
	f.Add(everything)
	f.Add("--- {a: [}\n---\n...")
	f.Add("a: &a [*a]\n")
	f.Fuzz(func(t *testing.T, in string) {
		first, second := newClock(), newClock()
		first.see("x.yaml", in)
		first.pass(time.Second)
		second.see("x.yaml", everything)
		second.pass(time.Second)
		second.see("x.yaml", "")
		second.pass(time.Second)
		second.see("x.yaml", in)
		second.pass(time.Second)
		if a, b := first.build(), second.build(); !reflect.DeepEqual(a, b) {
			t.Fatalf("%+v\n%+v", a, b)
		}
	})
}

// TestCheckedKeysAgree holds that the key a document is known by is the object's.
func TestCheckedKeysAgree(t *testing.T) {
	for _, opt := range []watch.Options{{Node: "n1"}, {Node: "n1", SecretNamespace: "net"}} {
		for _, raw := range []string{
			"{apiVersion: v1, kind: Secret, metadata: {name: a}}", "{apiVersion: v1, kind: Secret, metadata: {name: a, namespace: b}}",
			"{apiVersion: v1, kind: Node, metadata: {name: a, namespace: b}}", "{apiVersion: projectcalico.org/v3, kind: BGPPeer, metadata: {name: a}}",
		} {
			v := parse(rawDocument{raw, 1}, opt, false).versions[0]
			if v.object == nil || v.object.Key != v.key {
				t.Errorf("%s: %v and %+v", raw, v.key, v.object)
			}
		}
	}
}
