package node

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/internal/nodeaddr"
	"github.com/causeway-net/causeway/internal/watch"
)

// TestDecide walks through the life of the condition. Each step says what the node can do and
// what somebody did to the condition; what is decided is applied at once.
func TestDecide(t *testing.T) {
	const (
		upNow   = "False CausewayIsUp"
		downNow = "True CausewayIsDown"
		cloud   = "True NoRouteCreated"
		silent  = ""
	)
	sick := errors.New("no BGP session is established")
	type step struct {
		at    time.Duration
		why   error
		set   string // by somebody else, before
		write string
	}
	for name, c := range map[string]struct {
		restarted bool
		before    string
		steps     []step
	}{
		"first start": {false, "", []step{
			{0, sick, "", downNow}, {time.Second, sick, "", silent}, {90 * time.Second, nil, "", upNow}, {91 * time.Second, nil, "", silent},
		}},
		"first start, well at once": {false, "", []step{{0, nil, "", upNow}}},
		"the node rebooted and still says up": {false, upNow, []step{
			{0, sick, "", downNow}, {time.Second, nil, "", upNow},
		}},
		"rolling update": {true, upNow, []step{
			{0, sick, "", silent}, {59 * time.Second, sick, "", silent}, {59500 * time.Millisecond, nil, "", silent}, {2 * time.Minute, sick, "", silent},
		}},
		"rolling update to a version that does not work": {true, upNow, []step{
			{0, sick, "", silent}, {61 * time.Second, sick, "", downNow}, {62 * time.Second, sick, "", silent},
		}},
		"restarted while down":          {true, downNow, []step{{0, sick, "", downNow}, {time.Second, nil, "", upNow}}},
		"restarted without a condition": {true, "", []step{{0, sick, "", downNow}}},
		"a short trouble, a long one": {false, "", []step{
			{0, nil, "", upNow}, {10 * time.Second, sick, "", silent}, {69 * time.Second, nil, "", silent},
			{70 * time.Second, sick, "", silent}, {130 * time.Second, sick, "", downNow}, {131 * time.Second, nil, "", upNow},
			{132 * time.Second, sick, "", silent},
		}},
		"cloud provider before us": {false, cloud, []step{{0, nil, "", upNow}}},
		"cloud provider fights": {false, "", []step{
			{0, nil, "", upNow}, {4 * time.Second, nil, cloud, silent}, {5 * time.Second, nil, "", upNow},
			{10 * time.Second, nil, cloud, silent}, {15 * time.Second, nil, "", upNow}, {25 * time.Second, nil, cloud, silent}, {35 * time.Second, nil, "", upNow},
		}},
		"removed by somebody": {false, "", []step{{0, nil, "", upNow}, {time.Second, nil, "-", upNow}}},
	} {
		t.Run(name, func(t *testing.T) {
			h := health{grace: time.Minute, restarted: c.restarted}
			parse := func(s string) *corev1.NodeCondition {
				f := strings.Fields(s)
				if len(f) != 2 {
					return nil
				}
				return &corev1.NodeCondition{Type: corev1.NodeNetworkUnavailable, Status: corev1.ConditionStatus(f[0]), Reason: f[1], Message: map[string]string{upNow: up.message, downNow: "earlier"}[s]}
			}
			have, start := parse(c.before), time.Unix(1e9, 0)
			for i, s := range c.steps {
				if s.set != "" {
					have = parse(s.set)
				}
				now := start.Add(s.at)
				want, contested := h.decide(now, s.why, have)
				got := silent
				if want != nil {
					got = fmt.Sprintf("%s %s", want.status, want.reason)
					have = &corev1.NodeCondition{Status: want.status, Reason: want.reason, Message: want.message}
					h.wrote(now, contested)
					if want.status == corev1.ConditionTrue && want.message != sick.Error() {
						t.Errorf("step %d: the message does not say why: %q", i, want.message)
					}
				}
				if got != s.write {
					t.Fatalf("step %d, after %v: wrote %q, want %q", i, s.at, got, s.write)
				}
			}
		})
	}
}

// TestReword: a reason that changes all the time costs a write now and then.
func TestReword(t *testing.T) {
	h, now, writes := health{grace: time.Minute}, time.Unix(1e9, 0), 0
	var have *corev1.NodeCondition
	for i := range 120 {
		want, contested := h.decide(now.Add(time.Duration(i)*time.Second), fmt.Errorf("attempt %d", i), have)
		if want != nil {
			writes++
			h.wrote(now.Add(time.Duration(i)*time.Second), contested)
			have = &corev1.NodeCondition{Status: want.status, Reason: want.reason, Message: want.message}
		}
	}
	if writes != 4 {
		t.Errorf("%d writes in two minutes, want 4", writes)
	}
}

func TestAddresses(t *testing.T) {
	const a4, a6 = watch.AnnotationIPv4Address, watch.AnnotationIPv6Address
	held := map[string]string{"10.0.0.1": "10.0.0.1/24", "10.0.0.2": "10.0.0.2/32", "fd00::1": "fd00::1/64", "10.0.0.9": ""}
	subnet := func(a netip.Addr) (netip.Prefix, error) {
		switch p, ok := held[a.String()]; {
		case !ok:
			return netip.Prefix{}, fmt.Errorf("no link of this node has address %s", a)
		case p == "":
			return netip.Prefix{}, nil
		default:
			return netip.MustParsePrefix(p), nil
		}
	}
	type notes = map[string]string
	for name, c := range map[string]struct {
		methods     string // of both families; empty: kubernetes-internal-ip
		found       string // of IPv4
		internal    []string
		annotations notes
		want        []string
		writes      []string // "annotation value", with "moved" when it did
		err         string
	}{
		"first":                {internal: []string{"10.0.0.1"}, want: []string{"10.0.0.1/24"}, writes: []string{a4 + " 10.0.0.1/24"}},
		"dual stack":           {internal: []string{"fd00::1", "10.0.0.1", "10.0.0.2"}, want: []string{"10.0.0.1/24", "fd00::1/64"}, writes: []string{a4 + " 10.0.0.1/24", a6 + " fd00::1/64"}},
		"as it should be":      {internal: []string{"10.0.0.1"}, annotations: notes{a4: "10.0.0.1/24"}, want: []string{"10.0.0.1/24"}},
		"the length was wrong": {internal: []string{"10.0.0.1"}, annotations: notes{a4: "10.0.0.1"}, want: []string{"10.0.0.1/24"}, writes: []string{a4 + " 10.0.0.1/24"}},
		"moved":                {internal: []string{"10.0.0.2"}, annotations: notes{a4: "10.0.0.1/24"}, want: []string{"10.0.0.2/32"}, writes: []string{a4 + " 10.0.0.2/32 moved"}},
		"moved to nowhere":     {internal: []string{"192.0.2.7"}, annotations: notes{a4: "10.0.0.1/24"}, want: []string{"10.0.0.1/24"}, err: "192.0.2.7: no link"},
		"links not read yet":   {internal: []string{"10.0.0.9"}},
		"no InternalIP yet":    {annotations: notes{a4: "10.0.0.1/24"}, want: []string{"10.0.0.1/24"}},
		"unusable ones":        {internal: []string{"127.0.0.1", "169.254.1.1", "fe80::1", "nonsense", "10.0.0.1"}, want: []string{"10.0.0.1/24"}, writes: []string{a4 + " 10.0.0.1/24"}},
		"nonsense before":      {internal: []string{"10.0.0.1"}, annotations: notes{a4: "x"}, want: []string{"10.0.0.1/24"}, writes: []string{a4 + " 10.0.0.1/24 moved"}},
		"by hand":              {internal: []string{"10.0.0.1"}, annotations: notes{a4: "192.0.2.7/24"}, want: []string{"10.0.0.1/24"}, writes: []string{a4 + " 10.0.0.1/24 moved"}},

		"found":                    {methods: "first-found", found: "10.1.0.1/16", internal: []string{"10.0.0.1"}, want: []string{"10.1.0.1/16"}, writes: []string{a4 + " 10.1.0.1/16"}},
		"found another":            {methods: "first-found", found: "10.1.0.1/16", annotations: notes{a4: "10.0.0.1/24"}, want: []string{"10.1.0.1/16"}, writes: []string{a4 + " 10.1.0.1/16 moved"}},
		"found what stands":        {methods: "first-found", found: "10.1.0.1/16", annotations: notes{a4: "10.1.0.1/16"}, want: []string{"10.1.0.1/16"}},
		"nothing found":            {methods: "first-found", internal: []string{"10.0.0.1"}, annotations: notes{a4: "10.1.0.1/16"}, want: []string{"10.1.0.1/16"}},
		"nothing found, nor known": {methods: "first-found", internal: []string{"10.0.0.1"}},
		"found, not asked for":     {found: "10.1.0.1/16", internal: []string{"10.0.0.1"}, want: []string{"10.0.0.1/24"}, writes: []string{a4 + " 10.0.0.1/24"}},

		"none":                    {methods: "none", found: "10.1.0.1/16", internal: []string{"10.0.0.1"}, writes: []string{a4 + " none"}},
		"none any more":           {methods: "none", internal: []string{"10.0.0.1"}, annotations: notes{a4: "10.0.0.1/24"}, writes: []string{a4 + " none moved"}},
		"none, as it stands":      {methods: "none", internal: []string{"10.0.0.1"}, annotations: notes{a4: "none"}},
		"none, nor an InternalIP": {methods: "none", annotations: notes{a4: "10.0.0.1/24", a6: ""}, writes: []string{a4 + "  moved"}},
		"none before":             {internal: []string{"10.0.0.1"}, annotations: notes{a4: "none"}, want: []string{"10.0.0.1/24"}, writes: []string{a4 + " 10.0.0.1/24 moved"}},
	} {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", Annotations: c.annotations}}
		n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: "10.0.0.2"}, {Type: corev1.NodeExternalIP, Address: "10.0.0.2"}}
		for _, a := range c.internal {
			n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
		}
		method, err := nodeaddr.Parse(c.methods, false)
		if err != nil {
			t.Fatal(err)
		}
		var found [2]netip.Prefix
		if c.found != "" {
			found[0] = netip.MustParsePrefix(c.found)
		}
		got, changes, errs := addresses(n, [2]nodeaddr.Method{method, method}, found, subnet)
		var want, writes []string
		for _, p := range got {
			want = append(want, p.String())
		}
		for _, ch := range changes {
			s := ch.annotation + " " + ch.now
			if ch.moved() {
				s += " moved"
			}
			writes = append(writes, s)
		}
		if !slices.Equal(want, c.want) || !slices.Equal(writes, c.writes) {
			t.Errorf("%s: %v, writes %v; want %v, writes %v", name, want, writes, c.want, c.writes)
		}
		if err := errors.Join(errs...); (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %v, want %q", name, err, c.err)
		}
	}
}

// TestTunnelChanges: what an end does not say is removed, what stands is left, and nothing is
// touched before the ends are known.
func TestTunnelChanges(t *testing.T) {
	const note = "projectcalico.org/"
	a := netip.MustParseAddr
	ends := [model.Tunnels]model.TunnelEnd{
		model.TunnelIPIP:   {Addr: a("10.244.0.1"), MAC: "66:00:00:00:00:01"}, // which no IPIP device has
		model.TunnelVXLAN4: {Addr: a("10.244.0.2"), MAC: "66:00:00:00:00:02"},
		model.TunnelVXLAN6: {Addr: a("fd00::3"), MAC: "66:00:00:00:00:03"},
	}
	all := map[string]string{
		note + "IPv4IPIPTunnelAddr":   "10.244.0.1",
		note + "IPv4VXLANTunnelAddr":  "10.244.0.2",
		note + "VXLANTunnelMACAddr":   "66:00:00:00:00:02",
		note + "IPv6VXLANTunnelAddr":  "fd00::3",
		note + "VXLANTunnelMACAddrV6": "66:00:00:00:00:03",
	}
	n := func(annotations map[string]string) *corev1.Node {
		return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", Annotations: annotations}}
	}
	body := func(changes []change) string {
		b, err := mergePatch(changes)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	if got := tunnelChanges(n(all), nil); got != nil {
		t.Errorf("before the ends are known: %v", got)
	}
	if got := tunnelChanges(n(all), &ends); got != nil {
		t.Errorf("as it should be: %v", got)
	}
	if got, want := body(tunnelChanges(n(nil), &ends)), `{"metadata":{"annotations":{"projectcalico.org/IPv4IPIPTunnelAddr":"10.244.0.1","projectcalico.org/IPv4VXLANTunnelAddr":"10.244.0.2","projectcalico.org/IPv6VXLANTunnelAddr":"fd00::3","projectcalico.org/VXLANTunnelMACAddr":"66:00:00:00:00:02","projectcalico.org/VXLANTunnelMACAddrV6":"66:00:00:00:00:03"}}}`; got != want {
		t.Errorf("first: %s", got)
	}
	ends = [model.Tunnels]model.TunnelEnd{model.TunnelVXLAN4: {Addr: a("10.244.0.9"), MAC: "66:00:00:00:00:02"}}
	if got, want := body(tunnelChanges(n(all), &ends)), `{"metadata":{"annotations":{"projectcalico.org/IPv4IPIPTunnelAddr":null,"projectcalico.org/IPv4VXLANTunnelAddr":"10.244.0.9","projectcalico.org/IPv6VXLANTunnelAddr":null,"projectcalico.org/VXLANTunnelMACAddrV6":null}}}`; got != want {
		t.Errorf("one tunnel is left: %s", got)
	}
	if got, want := body(tunnelChanges(n(map[string]string{note + "VXLANTunnelMACAddrV6": ""}), new([model.Tunnels]model.TunnelEnd))), `{"metadata":{"annotations":{"projectcalico.org/VXLANTunnelMACAddrV6":null}}}`; got != want {
		t.Errorf("an empty annotation: %s", got)
	}
}
