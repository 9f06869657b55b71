package controller

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/ipam"
	"github.com/causeway-net/causeway/ipam/manifest"
)

func testService(families string, annotations ...string) *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "ns", UID: "u", Annotations: map[string]string{}}}
	s.Spec.Type = corev1.ServiceTypeLoadBalancer
	for _, f := range families {
		s.Spec.IPFamilies = append(s.Spec.IPFamilies, corev1.IPFamily("IPv"+string(f)))
	}
	for _, a := range annotations {
		k, v, _ := strings.Cut(a, "=")
		s.Annotations["projectcalico.org/"+k] = v
	}
	return s
}

func lbPool(name, cidr string, size int) *v3.IPPool {
	return &v3.IPPool{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v3.IPPoolSpec{
		CIDR: cidr, BlockSize: size, NodeSelector: "all()", AllowedUses: []v3.IPPoolAllowedUse{v3.IPPoolAllowedUseLoadBalancer}}}
}

func parse(words string) []netip.Addr {
	var out []netip.Addr
	for _, w := range strings.Fields(words) {
		out = append(out, netip.MustParseAddr(w))
	}
	return out
}

func TestManaged(t *testing.T) {
	calico, other := "calico", "example.com/x"
	for name, tc := range map[string]struct {
		svc         *corev1.Service
		mode        string
		class       *string
		ours, asked bool
	}{
		"all":                       {testService("4"), assignAll, nil, true, false},
		"all, class calico":         {testService("4"), assignAll, &calico, true, true},
		"all, another class":        {testService("4"), assignAll, &other, false, false},
		"requested, silent":         {testService("4"), assignRequested, nil, false, false},
		"requested, class":          {testService("4"), assignRequested, &calico, true, true},
		"requested, annotation":     {testService("4", `ipv4pools=["p"]`), assignRequested, nil, true, true},
		"annotation, another class": {testService("4", `ipv4pools=["p"]`), assignRequested, &other, false, false},
	} {
		tc.svc.Spec.LoadBalancerClass = tc.class
		if ours, asked := managed(tc.svc, tc.mode); ours != tc.ours || asked != tc.asked {
			t.Errorf("%s: %v %v, want %v %v", name, ours, asked, tc.ours, tc.asked)
		}
	}
	s := testService("4")
	s.Spec.Type = corev1.ServiceTypeNodePort
	if ours, _ := managed(s, assignAll); ours {
		t.Error("a NodePort Service is managed")
	}
}

// TestHandle holds the handle to Calico's form: base64 of a SHA-256 sum, without what a
// name may not have.
func TestHandle(t *testing.T) {
	h := handleOf(testService("4"))
	if !strings.HasPrefix(h, "lb-") || strings.ContainsAny(h[3:], "-_.=") || len(h) > 63 || h == handleOf(&corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "ns", UID: "v"}}) {
		t.Errorf("handle %q", h)
	}
}

func TestDecide(t *testing.T) {
	manual := lbPool("manual", "10.3.0.0/24", 26)
	manual.Spec.AssignmentMode = v3.AssignmentManual
	off := lbPool("off", "10.4.0.0/24", 26)
	off.Spec.Disabled = true
	pods := &v3.IPPool{ObjectMeta: metav1.ObjectMeta{Name: "pods"}, Spec: v3.IPPoolSpec{CIDR: "10.9.0.0/24", NodeSelector: "all()"}}
	v := newView([]*v3.IPPool{lbPool("one", "10.1.0.0/24", 26), lbPool("two", "10.2.0.0/24", 26), lbPool("six", "fd00::/112", 122), manual, off, pods}, nil, nil)
	for name, tc := range map[string]struct {
		svc  *corev1.Service
		held string
		want string
	}{
		"new":                             {testService("4"), "", "want [one two]"},
		"two families":                    {testService("64"), "", "want [six] want [one two]"},
		"has it":                          {testService("4"), "10.1.0.5", "keep 10.1.0.5"},
		"has half":                        {testService("46"), "10.1.0.5", "keep 10.1.0.5 want [six]"},
		"has too many":                    {testService("4"), "10.1.0.5 10.1.0.6", "keep 10.1.0.5 drop 10.1.0.6"},
		"a family left":                   {testService("4"), "10.1.0.5 fd00::1", "keep 10.1.0.5 drop fd00::1"},
		"of a pool that was switched off": {testService("4"), "10.4.0.5", "keep 10.4.0.5"},
		"of a pool that is gone":          {testService("4"), "10.77.0.5", "keep 10.77.0.5"},
		"a pool by name":                  {testService("4", `ipv4pools=["two"]`), "", "want [two]"},
		"a pool by CIDR":                  {testService("4", `ipv4pools=["10.2.0.0/24"]`), "", "want [two]"},
		"a manual pool":                   {testService("4", `ipv4pools=["manual"]`), "", "want [manual]"},
		"another pool than it has":        {testService("4", `ipv4pools=["two"]`), "10.1.0.5", "want [two] drop 10.1.0.5"},
		"one of two pools exists":         {testService("4", `ipv4pools=["x","two"]`), "", "want [two]"},
		"no such pool":                    {testService("4", `ipv4pools=["x"]`), "", "problem x: no IPPool"},
		"a pool of pods":                  {testService("4", `ipv4pools=["pods"]`), "", "problem pods: no IPPool"},
		"a pool that is off":              {testService("4", `ipv4pools=["off"]`), "", "problem off: no IPPool"},
		"a pool of the other family":      {testService("4", `ipv4pools=["six"]`), "", "problem six: no IPPool"},
		"an address":                      {testService("4", `loadBalancerIPs=["10.3.0.9"]`), "", "want 10.3.0.9 [manual]"},
		"an address it has":               {testService("4", `loadBalancerIPs=["10.3.0.9"]`), "10.3.0.9", "keep 10.3.0.9"},
		"another address":                 {testService("4", `loadBalancerIPs=["10.3.0.9"]`), "10.1.0.5", "want 10.3.0.9 [manual] drop 10.1.0.5"},
		"an address of one family alone":  {testService("46", `loadBalancerIPs=["10.3.0.9"]`), "fd00::1", "want 10.3.0.9 [manual] drop fd00::1"},
		"an address outside":              {testService("4", `loadBalancerIPs=["192.0.2.1"]`), "", "problem address 192.0.2.1 is in no IPPool"},
		"an address of pods":              {testService("4", `loadBalancerIPs=["10.9.0.1"]`), "", "problem address 10.9.0.1 is in no IPPool"},
		"an address of another family":    {testService("4", `loadBalancerIPs=["fd00::9"]`), "", "problem annotation projectcalico.org/loadBalancerIPs: fd00::9 is an IPv6 address"},
		"two of one family":               {testService("4", `loadBalancerIPs=["10.1.0.1","10.1.0.2"]`), "10.1.0.5", "keep 10.1.0.5 problem annotation"},
		"no list":                         {testService("4", `ipv4pools=one`), "10.1.0.5", "keep 10.1.0.5 problem annotation"},
	} {
		p := decide(tc.svc, v, parse(tc.held))
		var got []string
		for _, a := range p.keep {
			got = append(got, "keep "+a.String())
		}
		for _, w := range p.wants {
			var names []string
			for _, q := range w.pools {
				names = append(names, q.Name)
			}
			s := "want"
			if w.addr.IsValid() {
				s += " " + w.addr.String()
			}
			got = append(got, fmt.Sprintf("%s %v", s, names))
		}
		for _, a := range p.drop {
			got = append(got, "drop "+a.String())
		}
		for _, x := range p.problems {
			got = append(got, "problem "+x)
		}
		if s := strings.Join(got, " "); !strings.HasPrefix(s, tc.want) || !strings.Contains(tc.want, "problem") && s != tc.want {
			t.Errorf("%s: %q, want %q", name, s, tc.want)
		}
	}
}

func TestForeign(t *testing.T) {
	v := newView([]*v3.IPPool{lbPool("one", "10.1.0.0/24", 26)}, nil, nil)
	for in, want := range map[string]bool{"": false, "10.1.0.7": false, "192.0.2.1": true, "lb.example.com": true} {
		s := testService("4")
		if in != "" {
			s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: in}}
		}
		if foreign(s, v) != want {
			t.Errorf("%q: %v", in, !want)
		}
	}
}

func TestFirstGap(t *testing.T) {
	for name, tc := range map[string]struct {
		pool  string
		size  int
		taken []netip.Prefix
		want  string
	}{
		"empty":                {"10.0.0.0/24", 26, nil, "10.0.0.0/26"},
		"one":                  {"10.0.0.0/24", 26, nets("10.0.0.0/26"), "10.0.0.64/26"},
		"a gap":                {"10.0.0.0/24", 26, nets("10.0.0.128/26", "10.0.0.0/26"), "10.0.0.64/26"},
		"smaller ones":         {"10.0.0.0/24", 26, nets("10.0.0.3/32", "10.0.0.64/30"), "10.0.0.128/26"},
		"a larger one":         {"10.0.0.0/24", 26, nets("10.0.0.0/25"), "10.0.0.128/26"},
		"nested":               {"10.0.0.0/24", 26, nets("10.0.0.0/25", "10.0.0.0/30", "10.0.0.64/28"), "10.0.0.128/26"},
		"larger than the pool": {"10.0.0.0/24", 26, nets("10.0.0.0/8"), ""},
		"full":                 {"10.0.0.0/25", 26, nets("10.0.0.0/26", "10.0.0.64/26"), ""},
		"the end of the world": {"255.255.255.0/24", 25, nets("255.255.255.0/24"), ""},
		"the last block":       {"255.255.255.0/24", 25, nets("255.255.255.0/25"), "255.255.255.128/25"},
		"a large one of IPv6":  {"fd00::/48", 122, nets("fd00::/64"), "fd00:0:0:1::/122"},
		"a small one in IPv6":  {"fd00::/48", 122, nets("fd00::5/128"), "fd00::40/122"},
		"elsewhere":            {"10.0.0.0/24", 26, nets("10.1.0.0/26", "9.0.0.0/8"), "10.0.0.0/26"},
		"the very end of IPv6": {"ffff:ffff:ffff:ffff:ffff:ffff:ffff:ff00/120", 122, nets("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ff00/120"), ""},
	} {
		got, ok := firstGap(netip.MustParsePrefix(tc.pool), tc.size, tc.taken)
		if ok != (tc.want != "") || ok && got.String() != tc.want {
			t.Errorf("%s: %s %v, want %q", name, got, ok, tc.want)
		}
	}
}

// TestChooseWalk gives and takes addresses at random and holds the choice against a slow
// model: an address is given exactly when one is free, and never twice.
func TestChooseWalk(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	v := newView([]*v3.IPPool{lbPool("p", "10.0.0.0/27", 29)}, nil,
		[]*v3.IPReservation{{ObjectMeta: metav1.ObjectMeta{Name: "r"}, Spec: v3.IPReservationSpec{ReservedCIDRs: []string{"10.0.0.8/29", "10.0.0.17/32"}}}})
	const usable = 32 - 8 - 1
	l := newLedger(discard, t0.UTC, func(_, _ *entry) {})
	holds := map[netip.Addr]bool{}
	store := func(b *ipam.Block) { l.put(manifest.ToV3(b, 0)) }
	for step := range 3000 {
		w := want{family: corev1.IPv4Protocol, pools: []*model.Pool{v.pool("p")}}
		if rng.IntN(3) == 0 {
			w.addr = netip.AddrFrom4([4]byte{10, 0, 0, byte(rng.IntN(32))})
		}
		if rng.IntN(5) < 3 {
			c, err := choose(w, v, l.all(), t0)
			switch {
			case w.addr.IsValid():
				if can := !holds[w.addr] && !reserved(v.snap.Reservations, w.addr); can != (err == nil) {
					t.Fatalf("step %d: %s: %v; held %v", step, w.addr, err, holds[w.addr])
				}
			case (err == nil) != (len(holds) < usable):
				t.Fatalf("step %d: %v with %d of %d held", step, err, len(holds), usable)
			}
			if err != nil {
				continue
			}
			if holds[c.addr] || reserved(v.snap.Reservations, c.addr) || w.addr.IsValid() && c.addr != w.addr {
				t.Fatalf("step %d: %s was given", step, c.addr)
			}
			holds[c.addr] = true
			b := ipam.NewBlock(c.cidr, "", t0)
			b.Affinity = loadBalancerAffinity
			if c.entry != nil {
				b = c.entry.block.Clone()
			}
			take(b, b.Ordinal(c.addr), "lb-x", map[string]string{attrService: "s"})
			store(b)
			continue
		}
		all := slices.Collect(func(yield func(netip.Addr) bool) {
			for a := range holds {
				if !yield(a) {
					return
				}
			}
		})
		if len(all) == 0 {
			continue
		}
		a := all[rng.IntN(len(all))]
		delete(holds, a)
		for _, e := range l.all() {
			if e.cidr.Contains(a) {
				b := e.block.Clone()
				free(b, b.Ordinal(a), t0, 0)
				if used(b) == 0 {
					l.drop(e.obj)
				} else {
					store(b)
				}
			}
		}
	}
}
