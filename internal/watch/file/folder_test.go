package file

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/internal/watch"
)

// clock drives a folder without files: each sight of a file is new.
type clock struct {
	*folder
	now   time.Time
	print int64
}

func newClock() *clock {
	return &clock{folder: newFolder(watch.Options{Node: "n1"}), now: time.Unix(1e9, 0)}
}

func (c *clock) see(name, data string) {
	c.print++
	c.observe(name, data, fingerprint{mtime: c.print}, c.now, 0)
}

func (c *clock) pass(d time.Duration) {
	for end := c.now.Add(d); ; {
		next := c.next()
		if next.IsZero() || next.After(end) {
			c.now = end
			c.settle(c.now)
			return
		}
		c.now = next
		c.settle(c.now)
	}
}

func (c *clock) build() *model.Snapshot { return watch.Build(c.input(), c.opt) }

// objects is the snapshot without its problems.
func (c *clock) objects() model.Snapshot {
	s := *c.build()
	s.Problems = nil
	return s
}

const everything = `# The lab.
---
apiVersion: v1
kind: Node
metadata:
  name: n1
  annotations:
    projectcalico.org/IPv4Address: 10.0.0.1/24
    projectcalico.org/ASNumber: "65001"
  labels: {rack: r1}
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: pool4}
spec:
  cidr: 10.244.0.0/16
  nodeSelector: rack == "r1"
  blockSize: 27
--- {apiVersion: projectcalico.org/v3, kind: IPPool, metadata: {name: pool6}, spec: {cidr: "fd00:10:244::/64"}}
---
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Secret
  metadata: {name: bgp}
  stringData:
    tor: hunter2
- apiVersion: projectcalico.org/v3
  kind: BGPConfiguration
  metadata: {name: default}
  spec:
    asNumber: 64600
    nodeToNodeMeshEnabled: false
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata:
  name: tor
spec:
  peerIP: 10.0.0.254
  asNumber: 65000
  keepaliveTime: 10s
  password:
    secretKeyRef:
      name: bgp
      key: tor
`

// TestTruncated cuts a file off at every byte, as a writer that is half done leaves it,
// twice: with the rest coming later, and with the file rewritten from the start. Nothing is
// ever removed, changed or reported.
func TestTruncated(t *testing.T) {
	c := newClock()
	c.see("lab.yaml", everything)
	c.pass(time.Second)
	want := c.build()
	if len(want.Problems) > 0 || len(want.Nodes) != 1 || len(want.Pools) != 2 || len(want.Peers) != 1 || want.Peers[0].Password != "hunter2" || want.BGP.ASN != 64600 {
		t.Fatalf("the whole file gives %+v", want)
	}
	check := func(n int, when string) {
		t.Helper()
		if got := c.build(); !reflect.DeepEqual(got, want) {
			t.Fatalf("%s after %d bytes, %q:\n%+v\nwant\n%+v", when, n, everything[max(0, n-20):n], got, want)
		}
	}
	for n := range len(everything) {
		c.see("lab.yaml", everything[:n])
		check(n, "at once")
		c.pass(settleTime - time.Millisecond)
		check(n, "while it is written")
		c.see("lab.yaml", everything)
		check(n, "when whole again")
		c.pass(settleTime / 2)
	}
	c.pass(time.Second)
	check(len(everything), "settled")
}

// TestTruncatedEdit is the same for an edit that also changes the beginning: the change is
// in force at once, and nothing else is lost.
func TestTruncatedEdit(t *testing.T) {
	edited := strings.Replace(everything, "65001", "65002", 1)
	change := strings.Index(edited, "---\napiVersion: projectcalico.org/v3")
	for n := range len(edited) {
		c := newClock()
		c.see("lab.yaml", everything)
		c.pass(time.Second)
		want := c.objects()
		c.see("lab.yaml", edited[:n])
		c.pass(tailTime)
		if n > change+3 {
			want.Nodes = slices.Clone(want.Nodes)
			want.Nodes[0].ASN = 65002
		}
		got := c.objects()
		if n <= change+3 { // the node itself may be half written
			got.Nodes, want.Nodes = nil, nil
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("after %d bytes %q:\n%+v\nwant\n%+v", n, edited[max(0, n-20):n], got, want)
		}
	}
}

// TestNewFileGrows holds that of a new file that is written line by line nothing is in
// force before it is whole: not a peer without its password.
func TestNewFileGrows(t *testing.T) {
	c := newClock()
	for n := range len(everything) {
		c.see("lab.yaml", everything[:n])
		c.pass(20 * time.Millisecond)
		for _, p := range c.build().Peers {
			t.Fatalf("after %d bytes there is a peer %+v", n, p)
		}
	}
	c.see("lab.yaml", everything)
	c.pass(tailTime)
	if s := c.build(); len(s.Peers) != 1 || s.Peers[0].Password == "" {
		t.Fatalf("whole: %+v", s)
	}
}

func names(s *model.Snapshot) string {
	var out []string
	for _, p := range s.Pools {
		out = append(out, p.Name+"="+p.CIDR.String())
	}
	return strings.Join(out, " ")
}

func problems(s *model.Snapshot) string {
	var out []string
	for _, p := range s.Problems {
		out = append(out, p.String())
	}
	return strings.Join(out, "\n")
}

// TestSteps plays what happens to files and says what is in force after each step.
func TestSteps(t *testing.T) {
	a1, a2 := poolManifest("a", "10.1.0.0/16"), poolManifest("a", "10.11.0.0/16")
	b1 := poolManifest("b", "10.2.0.0/16")
	aBad := poolManifest("a", "10.1.0.1/16")
	type step struct {
		do       func(*clock)
		want     string // pools
		problems string // a part of them; empty: none
	}
	see := func(name, data string) func(*clock) { return func(c *clock) { c.see(name, data) } }
	gone := func(name string) func(*clock) { return func(c *clock) { c.missing(name, c.now) } }
	pass := func(d time.Duration) func(*clock) { return func(c *clock) { c.pass(d) } }
	tail, settle := pass(tailTime), pass(settleTime)
	for name, steps := range map[string][]step{
		"an object leaves a file": {
			{see("x.yaml", a1+"---\n"+b1), "a=10.1.0.0/16", ""},
			{tail, "a=10.1.0.0/16 b=10.2.0.0/16", ""},
			{see("x.yaml", b1), "a=10.1.0.0/16 b=10.2.0.0/16", ""},
			{pass(settleTime - 1), "a=10.1.0.0/16 b=10.2.0.0/16", ""},
			{pass(1), "b=10.2.0.0/16", ""},
		},
		"a file is deleted": {
			{see("x.yaml", a1), "", ""},
			{tail, "a=10.1.0.0/16", ""},
			{gone("x.yaml"), "a=10.1.0.0/16", ""},
			{settle, "", ""},
		},
		"a file is replaced slowly": {
			{see("x.yaml", a1), "", ""},
			{tail, "a=10.1.0.0/16", ""},
			{gone("x.yaml"), "a=10.1.0.0/16", ""},
			{pass(settleTime / 2), "a=10.1.0.0/16", ""},
			{see("x.yaml", ""), "a=10.1.0.0/16", ""},
			{pass(settleTime / 2), "a=10.1.0.0/16", ""},
			{see("x.yaml", a2), "a=10.1.0.0/16", ""},
			{tail, "a=10.11.0.0/16", ""},
		},
		"a file is emptied": {
			{see("x.yaml", a1), "", ""},
			{tail, "a=10.1.0.0/16", ""},
			{see("x.yaml", ""), "a=10.1.0.0/16", ""},
			{settle, "", ""},
		},
		"a version is invalid": {
			{see("x.yaml", a1), "", ""},
			{tail, "a=10.1.0.0/16", ""},
			{see("x.yaml", aBad), "a=10.1.0.0/16", ""},
			{settle, "a=10.1.0.0/16", `x.yaml document 1: IPPool a: .spec.cidr: is "10.1.0.1/16", which has bits set outside its mask; did you mean "10.1.0.0/16"?; its last valid version stays in force`},
			{see("x.yaml", b1+"---\n"+aBad), "a=10.1.0.0/16 b=10.2.0.0/16", "x.yaml document 2: IPPool a: .spec.cidr"},
			{pass(time.Hour), "a=10.1.0.0/16 b=10.2.0.0/16", "its last valid version stays in force"},
			{see("x.yaml", b1), "a=10.1.0.0/16 b=10.2.0.0/16", ""},
			{settle, "b=10.2.0.0/16", ""},
		},
		"a version does not decode": {
			{see("x.yaml", a1), "", ""},
			{tail, "a=10.1.0.0/16", ""},
			{see("x.yaml", strings.Replace(a1, "cidr", "cird", 1)), "a=10.1.0.0/16", ""},
			{settle, "a=10.1.0.0/16", `IPPool a: .spec.cird: is not a field of IPPool; did you mean "cidr"?; its last valid version stays in force`},
			{see("x.yaml", strings.Replace(a1, "/v3", "/v2", 1)), "a=10.1.0.0/16", ""},
			{settle, "a=10.1.0.0/16", `IPPool a: .apiVersion: is "projectcalico.org/v2"; must be "projectcalico.org/v3"; its last valid version stays in force`},
		},
		"a document is not YAML": {
			{see("x.yaml", a1+"---\n"+b1), "a=10.1.0.0/16", ""},
			{tail, "a=10.1.0.0/16 b=10.2.0.0/16", ""},
			{see("x.yaml", "a: [\n---\n"+b1), "a=10.1.0.0/16 b=10.2.0.0/16", "x.yaml document 1: File x.yaml: is not valid YAML: line "},
			{pass(time.Hour), "a=10.1.0.0/16 b=10.2.0.0/16", "is not valid YAML"},
			{see("x.yaml", "a: [\n---\n"+a2), "a=10.1.0.0/16 b=10.2.0.0/16", "is not valid YAML"},
			{pass(time.Hour), "a=10.11.0.0/16 b=10.2.0.0/16", "is not valid YAML"},
		},
		"a kind is mistyped": {
			{see("x.yaml", a1), "", ""},
			{tail, "a=10.1.0.0/16", ""},
			{see("x.yaml", strings.Replace(a1, "IPPool", "IPPol", 1)), "a=10.1.0.0/16", ""},
			{pass(time.Hour), "a=10.1.0.0/16", `IPPol a: .kind: is "IPPol", which is not known; did you mean "IPPool"?`},
		},
		"another kind has the same name": {
			{see("x.yaml", a1+"---\napiVersion: projectcalico.org/v3\nkind: HostEndpoint\nmetadata: {name: a}\n"), "a=10.1.0.0/16", ""},
			{tail, "a=10.1.0.0/16", "HostEndpoint a: .kind: is HostEndpoint, which is not acted on yet"},
			{see("x.yaml", "apiVersion: projectcalico.org/v3\nkind: HostEndpoint\nmetadata: {name: a}\n"), "a=10.1.0.0/16", "HostEndpoint"},
			{settle, "", "HostEndpoint"},
		},
		"an object is in two files": {
			{see("x.yaml", a1), "", ""},
			{see("w.yaml", a2), "", ""},
			{tail, "a=10.11.0.0/16", "x.yaml document 1: IPPool a: is not in force, because it stands in w.yaml document 1 too; remove one of them"},
			{gone("w.yaml"), "a=10.11.0.0/16", ""},
			{settle, "a=10.1.0.0/16", ""},
		},
		"an object is in one file twice": {
			{see("x.yaml", a1+"---\n"+a2), "a=10.1.0.0/16", ""},
			{tail, "a=10.1.0.0/16", "x.yaml document 2: IPPool a: stands in this file already; remove one of them"},
		},
		"an invalid one does not hide a valid one": {
			{see("x.yaml", a1), "", ""},
			{see("w.yaml", aBad), "", ""},
			{tail, "a=10.1.0.0/16", "w.yaml document 1: IPPool a: .spec.cidr"},
		},
		"an object moves to another file": {
			{see("x.yaml", a1), "", ""},
			{tail, "a=10.1.0.0/16", ""},
			{see("y.yaml", a1), "a=10.1.0.0/16", ""},
			{gone("x.yaml"), "a=10.1.0.0/16", ""},
			{tail, "a=10.1.0.0/16", ""},
			{settle, "a=10.1.0.0/16", ""},
		},
		"a file cannot be read": {
			{see("x.yaml", a1), "", ""},
			{tail, "a=10.1.0.0/16", ""},
			{func(c *clock) { c.unreadable("x.yaml", fmt.Errorf("permission denied"), c.now) }, "a=10.1.0.0/16", "x.yaml: File x.yaml: cannot be read: permission denied; what it held stays in force"},
			{pass(time.Hour), "a=10.1.0.0/16", "permission denied"},
			{see("x.yaml", a1), "a=10.1.0.0/16", ""},
		},
		"no newline at the end": {
			{see("x.yaml", strings.TrimSpace(a1)), "", ""},
			{tail, "", ""},
			{settle, "a=10.1.0.0/16", ""},
		},
		"JSON needs none": {
			{see("x.yaml", `{"apiVersion":"projectcalico.org/v3","kind":"IPPool","metadata":{"name":"a"},"spec":{"cidr":"10.1.0.0/16"}}`), "", ""},
			{tail, "a=10.1.0.0/16", ""},
		},
		"a block among the manifests": {
			{see("x.yaml", func() string { _, b := blockManifest(1, "n1"); return b }()), "", ""},
			{tail, "", "IPAMBlock 10-1-1-0-30: belongs in the folder ipam/blocks, where IPAM keeps its blocks"},
		},
		"a manifest among the blocks": {
			{see("ipam/blocks/x.yaml", a1), "", "IPPool a: does not belong in ipam/blocks, which is IPAM's own; move it to the manifests"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newClock()
			for i, st := range steps {
				st.do(c)
				s := c.build()
				if got := names(s); got != st.want {
					t.Fatalf("step %d: pools %q, want %q\n%s", i, got, st.want, problems(s))
				}
				if got := problems(s); !strings.Contains(got, st.problems) || (st.problems == "") != (got == "") {
					t.Fatalf("step %d: problems\n%s\nwant\n%s", i, got, st.problems)
				}
			}
		})
	}
}

// TestRandomWalk edits, breaks, cuts off and deletes files at random and compares, whenever
// all has settled, with a golden folder that sees the final files only, as far as those are
// well-formed; and while it has not settled, checks that nothing vanished too early.
func TestRandomWalk(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 7))
		c := newClock()
		files := map[string]string{}
		cidr := func(i int) string { return fmt.Sprintf("10.%d.0.0/16", i) }
		content := func() string {
			var docs []string
			for i := range 6 {
				if rng.IntN(2) == 0 {
					docs = append(docs, poolManifest(fmt.Sprintf("p%d", i), cidr(10*i+rng.IntN(10))))
				}
			}
			rng.Shuffle(len(docs), func(i, j int) { docs[i], docs[j] = docs[j], docs[i] })
			return strings.Join(docs, "---\n")
		}
		for range 40 {
			name := []string{"a.yaml", "b.yaml", "c.yaml"}[rng.IntN(3)]
			before := &model.Snapshot{}
			if c.next().IsZero() { // otherwise what another file lost may go meanwhile
				before = c.build()
			}
			whole := content()
			switch rng.IntN(6) {
			case 0:
				c.missing(name, c.now)
				delete(files, name)
			case 1: // written in pieces
				for n := 0; n < len(whole); n += 1 + rng.IntN(60) {
					c.see(name, whole[:n])
					c.pass(time.Duration(rng.IntN(int(tailTime) - 1)))
					missing(t, seed, before, c.build())
				}
				fallthrough
			default:
				c.see(name, whole)
				files[name] = whole
			case 2: // broken, then mended
				c.see(name, "a: [\n---\n"+whole)
				c.pass(time.Duration(rng.IntN(int(2 * time.Second))))
				missing(t, seed, before, c.build())
				c.see(name, whole)
				files[name] = whole
			}
			missing(t, seed, before, c.build())
			if rng.IntN(2) == 0 {
				c.pass(time.Duration(rng.IntN(int(settleTime))))
				continue
			}
			c.pass(settleTime)
			golden := newClock()
			for name, data := range files {
				golden.see(name, data)
			}
			golden.pass(settleTime)
			if got, want := c.build(), golden.build(); !reflect.DeepEqual(got, want) {
				t.Fatalf("seed %d: %s\n%s\nwant %s\n%s", seed, names(got), problems(got), names(want), problems(want))
			}
		}
	}
}

// missing fails when a pool of before is no more.
func missing(t *testing.T, seed uint64, before, after *model.Snapshot) {
	t.Helper()
	for _, p := range before.Pools {
		if !slices.ContainsFunc(after.Pools, func(q model.Pool) bool { return q.Name == p.Name }) {
			t.Fatalf("seed %d: pool %s vanished: %s, then %s", seed, p.Name, names(before), names(after))
		}
	}
}
