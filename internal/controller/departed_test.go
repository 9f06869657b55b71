package controller

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/ipam"
	"github.com/causeway-net/causeway/ipam/kube"
	"github.com/causeway-net/causeway/ipam/manifest"
)

var t0 = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

// testBlock makes a block out of words, one for each slot: "-" is free, "n" is node n's
// stash, "n~" is the address of node n's VXLAN tunnel, "n/p" is pod p of node n given at t0, "n/p@1h" one given an hour after that, and
// "!x" has the handle x and no attributes.
func testBlock(owner string, words string) *ipam.Block {
	b := ipam.NewBlock(netip.MustParsePrefix("10.0.0.0/29"), owner, t0)
	if owner == "" {
		b.Affinity, b.ClaimTime = "", time.Time{}
	}
	for i, w := range strings.Fields(words) {
		node, pod, isPod := strings.Cut(w, "/")
		switch {
		case w == "-":
		case strings.HasPrefix(w, "!"):
			take(b, i, w[1:], nil)
		case strings.HasSuffix(w, "~"):
			node := strings.TrimSuffix(w, "~")
			take(b, i, ipam.TunnelHandle(model.TunnelVXLAN4, node), map[string]string{ipam.AttrNode: node, ipam.AttrType: "vxlanTunnelAddress"})
		case !isPod:
			take(b, i, ipam.StashPrefix+node, map[string]string{ipam.AttrNode: node})
		default:
			pod, after, _ := strings.Cut(pod, "@")
			d, _ := time.ParseDuration(after)
			take(b, i, "net."+pod, map[string]string{
				ipam.AttrNode: node, ipam.AttrPod: pod, ipam.AttrNamespace: "ns", ipam.AttrTimestamp: t0.Add(d).String(),
			})
		}
	}
	return b
}

// text is the reverse of testBlock, without times.
func text(b *ipam.Block) string {
	out := []string{b.Node() + ":"}
	for _, s := range b.Slots {
		switch {
		case s.Handle == "":
			out = append(out, "-")
		case s.Attrs == nil:
			out = append(out, "!"+s.Handle)
		case s.Attrs[ipam.AttrType] == "vxlanTunnelAddress":
			out = append(out, s.Attrs[ipam.AttrNode]+"~")
		case s.Attrs[ipam.AttrPod] == "":
			out = append(out, s.Attrs[ipam.AttrNode])
		default:
			out = append(out, s.Attrs[ipam.AttrNode]+"/"+s.Attrs[ipam.AttrPod])
		}
	}
	return strings.TrimRight(strings.Join(out, " "), " -")
}

func pods(specs ...string) claims {
	var list []corev1.Pod
	for _, s := range specs {
		name, ip, _ := strings.Cut(s, "=")
		p := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "ns"}, Status: corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: ip}}}}
		if strings.HasSuffix(ip, "!") {
			p.Status.PodIPs[0].IP, p.Status.Phase = strings.TrimSuffix(ip, "!"), corev1.PodSucceeded
		}
		list = append(list, p)
	}
	return claimsOf(list)
}

func TestSweep(t *testing.T) {
	gone := presence{goneSince: t0}
	reborn := presence{exists: true, created: t0.Add(30 * time.Minute), readySince: t0.Add(31 * time.Minute)}
	for name, tc := range map[string]struct {
		owner, slots string
		p            presence
		c            claims
		want         string // empty: unchanged
		held         int
	}{
		"a block of a node that is gone":                    {"a", "a a/p -", gone, claims{}, ":", 0},
		"an empty one":                                      {"a", "", gone, claims{}, ":", 0},
		"one with an address of a living node":              {"a", "a/p b/q b", gone, claims{}, ": - b/q b", 0},
		"borrowed in the block of a living node":            {"b", "a/p b/q a", gone, claims{}, "b: - b/q", 0},
		"a pod that lives on, by address":                   {"a", "a/p a/q", gone, pods("other=10.0.0.1"), "a: - a/q", 1},
		"a pod that lives on, by name, without address yet": {"a", "a/p a/q", gone, pods("q="), "a: - a/q", 1},
		"a pod that has run to its end":                     {"a", "a/p", gone, pods("p=10.0.0.0!"), ":", 0},
		"a pod that lives on, and the stash of its node":    {"a", "a a/p a/q", gone, pods("p="), "a: a a/p", 1},
		"all of them live on":                               {"a", "a/p", gone, pods("p=10.0.0.0"), "", 1},
		"an address without a holder that we know":          {"a", "!windows-reserved a/p", gone, claims{}, ": !windows-reserved", 0},
		"a tunnel":                                      {"a", "a~ a a/p", gone, claims{}, ":", 0},
		"a borrowed tunnel":                             {"b", "a~ b~ b/q", gone, claims{}, "b: - b~ b/q", 0},
		"a tunnel of a machine that may be up":          {"a", "a~ a a/p", gone, pods("q="), "a: a~ a", 1},
		"a tunnel of a machine whose pods have all run": {"a", "a~", gone, pods("q=!"), ":", 0},
		"came back: its tunnel":                         {"a", "a~ a/p", reborn, claims{}, "a: a~", 0},
		"came back: its borrowed tunnel":                {"b", "a~ b~ a/p", reborn, claims{}, "b: a~ b~", 0},
		"nothing of it":                                 {"b", "b b/q -", gone, claims{}, "", 0},
		"came back: blocks and stash are its own":       {"a", "a -", reborn, claims{}, "", 0},
		"came back: a pod of before":                    {"a", "a/p a/q@40m", reborn, claims{}, "a: - a/q", 0},
		"came back: borrowed before":                    {"b", "a/p b/q", reborn, claims{}, "b: - b/q", 0},
		"came back: a pod of before that lives on":      {"a", "a/p", reborn, pods("p="), "", 1},
		"came back: given while clocks may differ":      {"a", "a/p@29m55s", reborn, claims{}, "", 0},
	} {
		b := testBlock(tc.owner, tc.slots)
		was := text(b)
		got := sweep(b, "a", tc.p, tc.c, t0.Add(time.Hour), 0)
		if text(b) != was {
			t.Errorf("%s: the block itself was changed", name)
		}
		out := ""
		if got.block != nil {
			out = text(got.block)
			if err := got.block.Check(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		if out != tc.want || got.held != tc.held {
			t.Errorf("%s: %q with %d held, want %q with %d", name, out, got.held, tc.want, tc.held)
		}
		if leftAny(b, "a", tc.p) != (tc.want != "" || tc.held > 0) {
			t.Errorf("%s: leftAny says %v", name, leftAny(b, "a", tc.p))
		}
	}
}

func TestPresenceDue(t *testing.T) {
	now := t0.Add(time.Hour)
	for name, tc := range map[string]struct {
		p     presence
		wait  time.Duration
		known bool
	}{
		"just gone":             {presence{goneSince: now}, 5 * time.Minute, true},
		"long gone":             {presence{goneSince: t0}, -55 * time.Minute, true},
		"back, not ready":       {presence{exists: true, created: t0}, 0, false},
		"back, ready of late":   {presence{exists: true, created: t0, readySince: now.Add(-time.Minute)}, 4 * time.Minute, true},
		"back, created of late": {presence{exists: true, created: now, readySince: t0}, 5 * time.Minute, true},
		"back for long":         {presence{exists: true, created: t0, readySince: t0}, -55 * time.Minute, true},
	} {
		if wait, known := tc.p.due(now, 5*time.Minute); wait != tc.wait || known != tc.known {
			t.Errorf("%s: %s %v, want %s %v", name, wait, known, tc.wait, tc.known)
		}
	}
}

func TestTimestamp(t *testing.T) {
	for text, want := range map[string]bool{
		"2026-05-01 12:00:00.123 +0000 UTC":               true,
		"2026-05-01 12:00:00 +0000 UTC":                   true,
		"2026-05-01 12:00:00.5 +0000 UTC m=+12.345678901": true,
		"2026-05-01 14:00:00.5 +0200 CEST":                true,
		"":                                                false,
		"yesterday":                                       false,
	} {
		if at, ok := timestamp(text); ok != want || ok && at.Unix() != t0.Unix() {
			t.Errorf("%q: %s, %v", text, at, ok)
		}
	}
}

// TestSweepWalk sweeps random blocks and checks what must hold whatever is in them: no
// address of a living node or of a claimed one is freed, and all that is left goes.
func TestSweepWalk(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	pick := func(s ...string) string { return s[rng.IntN(len(s))] }
	for range 5000 {
		var words, live []string
		for i := range 8 {
			w := pick("-", "a", "b", "a~", "b~", "a/p", "b/q", "a/r@2h", "!x")
			if strings.Contains(w, "/") {
				node, pod, _ := strings.Cut(w, "/")
				pod, at, _ := strings.Cut(pod, "@")
				w = fmt.Sprintf("%s/%s%d", node, pod, i)
				if at != "" {
					w += "@" + at
				}
				if rng.IntN(3) == 0 {
					live = append(live, fmt.Sprintf("%s%d=%s", pod, i, pick("", fmt.Sprintf("10.0.0.%d", i))))
				}
			}
			words = append(words, w)
		}
		b := testBlock(pick("a", "b", "c", ""), strings.Join(words, " "))
		p := presence{exists: rng.IntN(2) == 0, created: t0.Add(time.Hour)}
		c := pods(live...)
		got := sweep(b, "a", p, c, t0.Add(3*time.Hour), time.Duration(rng.IntN(2))*time.Minute)
		next := got.block
		if next == nil {
			next = b
		}
		if err := next.Check(); err != nil {
			t.Fatal(err)
		}
		for i, s := range b.Slots {
			freed := s.Handle != "" && next.Slots[i].Handle == ""
			mine := holderNode(s) == "a" && !c.hold(b.Addr(i), s) && (got.held == 0 || !strings.HasPrefix(s.Handle, ipam.StashPrefix))
			switch {
			case freed && !mine:
				t.Fatalf("slot %d (%s) of %q was freed; pods %v", i, words[i], words, live)
			case mine && !p.exists && !freed:
				t.Fatalf("slot %d (%s) of %q was left; pods %v", i, words[i], words, live)
			case !freed && s.Handle != next.Slots[i].Handle:
				t.Fatalf("slot %d (%s) of %q changed hands", i, words[i], words)
			}
		}
		if again := sweep(next, "a", p, c, t0.Add(4*time.Hour), 0); again.released != 0 {
			t.Fatalf("%q: a second sweep freed %d more", words, again.released)
		}
		if b.Affinity != next.Affinity && (p.exists || got.held > 0 || b.Node() != "a") {
			t.Fatalf("%q: affinity %q became %q", words, b.Affinity, next.Affinity)
		}
	}
}

// TestCompose checks what a write of ours does to the parts of a block that we do not know.
func TestCompose(t *testing.T) {
	b := testBlock("a", "a/p b/q -")
	old := manifest.ToV3(b, 41)
	old.Labels = map[string]string{"x": "y", kube.BorrowerLabel("b"): "", kube.BorrowerLabel("c"): ""}
	old.Annotations = map[string]string{"k": "v"}
	old.ResourceVersion, old.Spec.StrictAffinity = "7", true
	old.Spec.SequenceNumberForAllocation = map[string]uint64{"0": 3, "1": 4}
	next := b.Clone()
	free(next, 0, t0, 0)
	take(next, 2, "h", map[string]string{ipam.AttrNode: "a"})
	got := compose(old, next)
	switch {
	case got.Spec.SequenceNumber != 42 || !got.Spec.StrictAffinity || got.ResourceVersion != "7" || got.Annotations["k"] != "v" || got.Labels["x"] != "y":
		t.Errorf("lost: %+v", got)
	case fmt.Sprint(got.Spec.SequenceNumberForAllocation) != "map[1:4 2:42]":
		t.Errorf("sequenceNumberForAllocation: %v", got.Spec.SequenceNumberForAllocation)
	}
	if _, ok := got.Labels[kube.BorrowerLabel("b")]; !ok {
		t.Error("the label of a borrower is gone")
	}
	if _, ok := got.Labels[kube.BorrowerLabel("c")]; ok {
		t.Error("the label of one that borrows nothing is left")
	}
	back, err := manifest.FromV3(got)
	if err != nil || !back.Equal(next) {
		t.Errorf("it says %s (%v), want %s", text(back), err, text(next))
	}
	if old.Spec.SequenceNumber != 41 || len(old.Labels) != 3 {
		t.Error("the old object was changed")
	}
}

func TestLedger(t *testing.T) {
	var log []string
	l := newLedger(discard, time.Now, func(old, now *entry) {
		say := func(e *entry) string {
			if e == nil {
				return "-"
			}
			return e.obj.ResourceVersion
		}
		log = append(log, say(old)+">"+say(now))
	})
	o := func(rv string, b *ipam.Block) *v3.IPAMBlock {
		x := manifest.ToV3(b, 0)
		x.ResourceVersion, x.UID = rv, "u"
		return x
	}
	l.put(o("5", testBlock("a", "a/p b/q")))
	if len(l.ofNode("b")) != 1 || len(l.ofNode("a")) != 1 || len(l.nodes()) != 2 {
		t.Errorf("nodes %v", l.nodes())
	}
	l.written(o("9", testBlock("a", "a/p")))
	l.put(o("7", testBlock("a", "a/p b/q"))) // the watch is behind our own write
	if len(l.ofNode("b")) != 0 {
		t.Error("an older version took a newer one's place")
	}
	broken := o("10", testBlock("a", ""))
	broken.Spec.Unallocated = []int{99}
	l.put(broken)
	if e := l.all()[0]; e.block != nil || !e.cidr.IsValid() || len(l.nodes()) != 0 {
		t.Errorf("a block that makes no sense: %+v", e)
	}
	l.drop(broken)
	if got := strings.Join(log, " "); got != "->5 5>9 9>10 10>-" {
		t.Errorf("changes: %s", got)
	}
}
