package admission_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/internal/node"
	"github.com/causeway-net/causeway/internal/nodeaddr"
)

// TestReporter runs the part of an agent that writes its Node, with the agent's rights: all
// that it says of addresses and tunnels passes the policies, replaces what somebody wrote by
// hand, and is taken back.
func TestReporter(t *testing.T) {
	c := setUp(t)
	nodes := c.admin.Core.CoreV1().Nodes()
	admin := func(patch string, sub ...string) {
		t.Helper()
		_, err := nodes.Patch(t.Context(), own, mergePatch, []byte(patch), metav1.PatchOptions{}, sub...)
		must(t, err)
	}
	admin(`{"metadata":{"annotations":{"projectcalico.org/IPv4Address":"198.51.100.7/24","projectcalico.org/IPv6Address":"2001:db8::7/64","projectcalico.org/ASNumber":"64512","projectcalico.org/IPv4IPIPTunnelAddr":"10.1.1.1"}}}`)
	admin(`{"status":{"addresses":[{"type":"InternalIP","address":"192.0.2.1"},{"type":"InternalIP","address":"2001:db8::1"}]}}`, "status")

	firstFound, err := nodeaddr.Parse("first-found", true)
	must(t, err)
	r, err := node.New(node.Config{
		Clients: c.agent, Node: own, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), Ready: func() error { return nil },
		Subnet: func(a netip.Addr) (netip.Prefix, error) {
			if a == netip.MustParseAddr("192.0.2.1") {
				return netip.PrefixFrom(a, 24), nil
			}
			return netip.Prefix{}, errors.New("no link of this node has address " + a.String())
		},
		IPv6: firstFound,
	})
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	defer func() {
		cancel()
		must(t, <-ended)
	}()

	// annotations are those of projectcalico.org, as "name=value ...".
	annotations := func() string {
		t.Helper()
		n, err := nodes.Get(t.Context(), own, metav1.GetOptions{})
		must(t, err)
		var out []string
		for _, k := range slices.Sorted(maps.Keys(n.Annotations)) {
			if name, ok := strings.CutPrefix(k, "projectcalico.org/"); ok {
				out = append(out, name+"="+n.Annotations[k])
			}
		}
		return strings.Join(out, " ")
	}
	until := func(want string, is func() string) {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			have := is()
			if strings.Contains(have, want) {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("not within 30 s:\n%s\nwant\n%s\nstatus %+v", have, want, r.Status())
			}
		}
	}
	is := func(want string) { t.Helper(); until("<"+want+">", func() string { return "<" + annotations() + ">" }) }

	// By hand against the InternalIP: the InternalIP wins. Nothing was found yet for IPv6, nor
	// are the tunnels known: what stands stays.
	is("ASNumber=64512 IPv4Address=192.0.2.1/24 IPv4IPIPTunnelAddr=10.1.1.1 IPv6Address=2001:db8::7/64")
	until("The node's address changed from 198.51.100.7/24 to 192.0.2.1/24 (its InternalIP)", func() string { return events(t, c, own) })
	r.SetAddresses(netip.MustParsePrefix("203.0.113.1/24"), netip.MustParsePrefix("2001:db8:1::1/64"))
	is("ASNumber=64512 IPv4Address=192.0.2.1/24 IPv4IPIPTunnelAddr=10.1.1.1 IPv6Address=2001:db8:1::1/64")
	until("from 2001:db8::7/64 to 2001:db8:1::1/64 (autodetection method first-found)", func() string { return events(t, c, own) })
	if got := r.Status().AddressChanges; got != 2 {
		t.Errorf("%d changes of the address counted, want 2", got)
	}

	a := netip.MustParseAddr
	r.SetTunnels([model.Tunnels]model.TunnelEnd{
		model.TunnelIPIP:   {Addr: a("10.244.0.1")},
		model.TunnelVXLAN4: {Addr: a("10.244.0.2"), MAC: "66:00:00:00:00:02"},
		model.TunnelVXLAN6: {Addr: a("fd00::3"), MAC: "66:00:00:00:00:03"},
	})
	is("ASNumber=64512 IPv4Address=192.0.2.1/24 IPv4IPIPTunnelAddr=10.244.0.1 IPv4VXLANTunnelAddr=10.244.0.2 IPv6Address=2001:db8:1::1/64 IPv6VXLANTunnelAddr=fd00::3 VXLANTunnelMACAddr=66:00:00:00:00:02 VXLANTunnelMACAddrV6=66:00:00:00:00:03")
	// Somebody removes one and changes another one.
	admin(`{"metadata":{"annotations":{"projectcalico.org/IPv4VXLANTunnelAddr":null,"projectcalico.org/IPv4IPIPTunnelAddr":"10.244.0.66"}}}`)
	is("ASNumber=64512 IPv4Address=192.0.2.1/24 IPv4IPIPTunnelAddr=10.244.0.1 IPv4VXLANTunnelAddr=10.244.0.2 IPv6Address=2001:db8:1::1/64 IPv6VXLANTunnelAddr=fd00::3 VXLANTunnelMACAddr=66:00:00:00:00:02 VXLANTunnelMACAddrV6=66:00:00:00:00:03")
	r.SetTunnels([model.Tunnels]model.TunnelEnd{model.TunnelVXLAN4: {Addr: a("10.244.0.2"), MAC: "66:00:00:00:00:02"}})
	is("ASNumber=64512 IPv4Address=192.0.2.1/24 IPv4VXLANTunnelAddr=10.244.0.2 IPv6Address=2001:db8:1::1/64 VXLANTunnelMACAddr=66:00:00:00:00:02")

	cancel()
	must(t, <-ended)
	ended <- nil
	done, err := node.Clear(t.Context(), c.agent, own)
	must(t, err)
	is("ASNumber=64512")
	if !slices.ContainsFunc(done, func(s string) bool { return strings.Contains(s, "VXLANTunnelMACAddr") }) {
		t.Errorf("Clear does not say what it did: %q", done)
	}
}

// events are the notes of those about a Node.
func events(t *testing.T, c *cluster, name string) string {
	t.Helper()
	list, err := c.admin.Core.EventsV1().Events("").List(t.Context(), metav1.ListOptions{})
	must(t, err)
	var out []string
	for _, e := range list.Items {
		if e.Regarding.Kind == "Node" && e.Regarding.Name == name && e.Type == corev1.EventTypeWarning {
			out = append(out, fmt.Sprintf("%s: %s", e.Reason, e.Note))
		}
	}
	return strings.Join(out, "\n")
}
