package threeracks

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/test/lab"
	"github.com/causeway-net/causeway/test/topology/operator"
	"github.com/causeway-net/causeway/test/topology/scenario"
)

// encap is what a pool asks for: a tunnel, and when it is used.
type encap struct {
	tunnel model.Tunnel
	when   string // "Never", "CrossSubnet", "Always"
}

// mode is what the two pools ask for.
type mode struct {
	name   string
	v4, v6 encap
}

var (
	never       = mode{"Never", encap{0, "Never"}, encap{0, "Never"}}
	vxlanCross  = mode{"VXLAN CrossSubnet", encap{model.TunnelVXLAN4, "CrossSubnet"}, encap{model.TunnelVXLAN6, "CrossSubnet"}}
	vxlanAlways = mode{"VXLAN Always", encap{model.TunnelVXLAN4, "Always"}, encap{model.TunnelVXLAN6, "Always"}}
	vxlan4      = mode{"VXLAN Always, IPv4", encap{model.TunnelVXLAN4, "Always"}, encap{0, "Never"}}
	ipipCross   = mode{"IPIP CrossSubnet", encap{model.TunnelIPIP, "CrossSubnet"}, encap{0, "Never"}}
	ipipAlways  = mode{"IPIP Always", encap{model.TunnelIPIP, "Always"}, encap{0, "Never"}}
)

func (m mode) of(v6 bool) encap {
	if v6 {
		return m.v6
	}
	return m.v4
}

// needsIPIP reports whether the mode runs only on a kernel that has it.
func (m mode) needsIPIP() bool { return m.v4.when != "Never" && m.v4.tunnel == model.TunnelIPIP }

// wants are the tunnels that a node has.
func (m mode) wants() (out []model.Tunnel) {
	for _, v6 := range families {
		if e := m.of(v6); e.when != "Never" {
			out = append(out, e.tunnel)
		}
	}
	return out
}

// mtu is that of new pods behind an uplink.
func (m mode) mtu(uplink int) int {
	out := uplink
	for _, t := range m.wants() {
		out = min(out, uplink-t.Overhead())
	}
	return out
}

// through reports whether packets from a node to a pod on another are encapsulated.
func (m mode) through(from, to *lab.Node, v6 bool) bool {
	e := m.of(v6)
	return from != to && (e.when == "Always" || e.when == "CrossSubnet" && rackOf(from) != rackOf(to))
}

// pools are the manifests of the two pools.
func (m mode) pools(nat bool) string {
	var out []string
	for _, v6 := range families {
		name, cidr, size := "pods-ipv4", "10.244.0.0/16", 26
		if v6 {
			name, cidr, size = "pods-ipv6", "fd00:10:244::/64", 122
		}
		ipip, vxlan := "Never", "Never"
		if e := m.of(v6); e.tunnel == model.TunnelIPIP {
			ipip = e.when
		} else {
			vxlan = e.when
		}
		out = append(out, fmt.Sprintf("apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: %s}\nspec:\n  cidr: %s\n  blockSize: %d\n"+
			"  ipipMode: %s\n  vxlanMode: %s\n  natOutgoing: %t\n  nodeSelector: all()\n", name, cidr, size, ipip, vxlan, nat))
	}
	return strings.Join(out, "---\n")
}

// set writes the mode's pools.
func (f *fabric) set(t *testing.T, m mode) {
	t.Helper()
	f.manifests().Write(t, "pools.yaml", m.pools(false))
}

// settle waits until every node is as the mode wants it, and has nothing else.
func (f *fabric) settle(t *testing.T, m mode) {
	t.Helper()
	ctx := scenario.Context(t, 2*time.Minute)
	blocks := f.blocks(t)
	for _, n := range f.Agents() {
		scenario.Eventually(t, 20*time.Second, n.Name()+" is as "+m.name+" wants it", func() error { return f.right(ctx, n, m, blocks) })
	}
}

// switchTo changes the mode and waits until it is in force everywhere.
func (f *fabric) switchTo(t *testing.T, m mode) {
	t.Helper()
	f.set(t, m)
	f.settle(t, m)
}

// block is whose a prefix is: a block's, or that of an address lent out of one.
type block struct {
	cidr  netip.Prefix
	owner string
}

// blocks are those of the two pools.
func (f *fabric) blocks(t *testing.T) []block {
	t.Helper()
	all, err := operator.Blocks(f.Fabric)
	if err != nil {
		t.Fatal(err)
	}
	var out []block
	for _, b := range all {
		owner := ""
		if b.Spec.Affinity != nil {
			owner = strings.TrimPrefix(*b.Spec.Affinity, "host:")
		}
		if f.Node(owner) == nil {
			t.Fatalf("block %s is nobody's: affinity %q", b.Spec.CIDR, owner)
		}
		out = append(out, block{netip.MustParsePrefix(b.Spec.CIDR), owner})
	}
	return out
}

// right returns nil when the kernel of n has exactly what m asks for: devices, routes,
// neighbours, FDB entries, sets and rules.
func (f *fabric) right(ctx context.Context, n *lab.Node, m mode, blocks []block) error {
	err := n.Do(func() error {
		devices, err := rightDevices(n, m)
		if err != nil {
			return err
		}
		if err := f.rightRoutes(n, m, blocks, devices); err != nil {
			return err
		}
		if err := f.rightPeers(n, m, devices); err != nil {
			return err
		}
		return rightSets(m)
	})
	if err == nil {
		err = rightRules(ctx, n, m)
	}
	if err != nil {
		return fmt.Errorf("%s, %s: %w", n, m.name, err)
	}
	return nil
}

// retry repeats a dump that was interrupted.
func retry[T any](list func() (T, error)) (out T, err error) {
	for range 20 {
		if out, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) && !errors.Is(err, unix.EINTR) {
			return out, err
		}
	}
	return out, err
}

// rightDevices also returns the names of all links by index.
func rightDevices(n *lab.Node, m mode) (map[int]string, error) {
	links, err := retry(netlink.LinkList)
	if err != nil {
		return nil, err
	}
	names, byName := map[int]string{}, map[string]netlink.Link{}
	for _, l := range links {
		names[l.Attrs().Index], byName[l.Attrs().Name] = l.Attrs().Name, l
	}
	uplink := byName["eth1"].Attrs().MTU
	for i := range model.Tunnels {
		t := model.Tunnel(i)
		l, wanted := byName[t.Device()], slices.Contains(m.wants(), t)
		switch {
		case l == nil && !wanted:
		case l == nil:
			return nil, fmt.Errorf("there is no %s", t.Device())
		case wanted:
			if l.Attrs().Flags&net.FlagUp == 0 || l.Attrs().MTU != uplink-t.Overhead() {
				return nil, fmt.Errorf("%s: flags %s, MTU %d, want up and %d", t.Device(), l.Attrs().Flags, l.Attrs().MTU, uplink-t.Overhead())
			}
		case t != model.TunnelIPIP:
			return nil, fmt.Errorf("%s is there", t.Device())
		default: // the kernel never deletes tunl0
			addrs, err := retry(func() ([]netlink.Addr, error) { return netlink.AddrList(l, netlink.FAMILY_ALL) })
			if err != nil || len(addrs) > 0 || l.Attrs().Flags&net.FlagUp != 0 {
				return nil, fmt.Errorf("tunl0 is left with flags %s and %v, %v", l.Attrs().Flags, addrs, err)
			}
		}
	}
	return names, nil
}

// rightRoutes looks at every route of ours: those to pods of others lead to their owner, by
// the tunnel or not.
func (f *fabric) rightRoutes(n *lab.Node, m mode, blocks []block, devices map[int]string) error {
	for _, v6 := range families {
		routes, err := retry(func() ([]netlink.Route, error) {
			return netlink.RouteListFiltered(map[bool]int{false: unix.AF_INET, true: unix.AF_INET6}[v6],
				&netlink.Route{Protocol: 82, Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return err
		}
		have := map[netip.Prefix]string{}
		for _, r := range routes {
			addr, _ := netip.AddrFromSlice(r.Dst.IP)
			bits, _ := r.Dst.Mask.Size()
			have[netip.PrefixFrom(addr.Unmap(), bits)] += routeText(r, devices)
		}
		for _, b := range blocks {
			if b.cidr.Addr().Is6() != v6 {
				continue
			}
			want := f.wantRoute(n, f.Node(b.owner), m, v6)
			if have[b.cidr] != want {
				return fmt.Errorf("route to %s of %s is %q, want %q", b.cidr, b.owner, have[b.cidr], want)
			}
			delete(have, b.cidr)
		}
		for p, r := range have {
			if !p.IsSingleIP() || !strings.Contains(r, " dev cali") {
				return fmt.Errorf("a route too many: %s%s", p, r)
			}
		}
	}
	return nil
}

func routeText(r netlink.Route, devices map[int]string) string {
	if r.Type == unix.RTN_BLACKHOLE {
		return "blackhole"
	}
	text := ""
	for _, h := range append([]*netlink.NexthopInfo{{LinkIndex: r.LinkIndex, Gw: r.Gw}}, r.MultiPath...) {
		if h.LinkIndex != 0 {
			text += fmt.Sprintf(" via %s dev %s", h.Gw, devices[h.LinkIndex])
		}
	}
	return text
}

func (f *fabric) wantRoute(n, owner *lab.Node, m mode, v6 bool) string {
	to := addressOf(owner, v6)
	switch {
	case n == owner:
		return "blackhole"
	case m.through(n, owner, v6):
		return fmt.Sprintf(" via %s dev %s", tunnelHop(owner, m.of(v6).tunnel), m.of(v6).tunnel.Device())
	case rackOf(n) == rackOf(owner):
		return fmt.Sprintf(" via %s dev eth1", to)
	default: // learned, and resolved through the default route
		return fmt.Sprintf(" via %s dev eth1", gatewayOf(n, v6))
	}
}

// tunnelHop is what routes through a tunnel lead to: the other node's address, and for VXLAN
// over IPv6 the link-local address of its device, which no route can hide (RFC 4291,
// appendix A).
func tunnelHop(n *lab.Node, t model.Tunnel) netip.Addr {
	if t != model.TunnelVXLAN6 {
		return addressOf(n, false)
	}
	m := t.MAC(n.Name())
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]})
}

// rightPeers looks at the VXLAN devices' FDB entries and neighbours: one for each other node.
func (f *fabric) rightPeers(n *lab.Node, m mode, devices map[int]string) error {
	for _, v6 := range families {
		e := m.of(v6)
		if e.when == "Never" || e.tunnel == model.TunnelIPIP {
			continue // a device that is not there has none
		}
		var underlay, hops []string
		for _, o := range f.Agents() {
			if o != n {
				underlay, hops = append(underlay, addressOf(o, v6).String()), append(hops, tunnelHop(o, e.tunnel).String())
			}
		}
		index := 0
		for i, name := range devices {
			if name == e.tunnel.Device() {
				index = i
			}
		}
		for _, c := range []struct {
			what   string
			family int
			want   []string
		}{{"FDB entries", unix.AF_BRIDGE, underlay}, {"neighbours", map[bool]int{false: unix.AF_INET, true: unix.AF_INET6}[v6], hops}} {
			neighs, err := retry(func() ([]netlink.Neigh, error) { return netlink.NeighList(index, c.family) })
			if err != nil {
				return err
			}
			var have []string
			for _, h := range neighs {
				if h.State&unix.NUD_PERMANENT != 0 {
					have = append(have, h.IP.String())
				} else if c.family == unix.AF_BRIDGE || h.State&unix.NUD_NOARP == 0 {
					return fmt.Errorf("%s has learned %s at %s", e.tunnel.Device(), h.IP, h.HardwareAddr)
				}
			}
			slices.Sort(have)
			slices.Sort(c.want)
			if !slices.Equal(have, c.want) {
				return fmt.Errorf("%s of %s: %v, want %v", c.what, e.tunnel.Device(), have, c.want)
			}
		}
	}
	return nil
}

// guarded reports whether the mode has a tunnel over a family.
func (m mode) guarded(v6 bool) bool { return m.of(v6).when != "Never" }

func rightSets(m mode) error {
	sets, err := netlink.IpsetListAll()
	if err != nil {
		return fmt.Errorf("sets: %w", err)
	}
	var have, want []string
	for _, s := range sets {
		if !strings.HasSuffix(s.SetName, "all-hosts-net") { // policy's
			continue
		}
		have = append(have, fmt.Sprintf("%s with %d", s.SetName, len(s.Entries)))
	}
	for _, v6 := range families {
		if m.guarded(v6) { // the five others
			want = append(want, map[bool]string{false: "cali40all-hosts-net with 5", true: "cali60all-hosts-net with 5"}[v6])
		}
	}
	slices.Sort(have)
	if !slices.Equal(have, want) {
		return fmt.Errorf("sets %v, want %v", have, want)
	}
	return nil
}

func rightRules(ctx context.Context, n *lab.Node, m mode) error {
	for _, v6 := range families {
		out, err := n.Exec(ctx, map[bool]string{false: "iptables-save", true: "ip6tables-save"}[v6], "-t", "raw")
		if err != nil {
			return err
		}
		if strings.Contains(out, "-A cali-encap-guard") != m.guarded(v6) {
			return fmt.Errorf("rules that guard, want some: %t:\n%s", m.guarded(v6), out)
		}
	}
	return nil
}

// inMode changes to the mode and looks at its packets; then the topology's mode is back.
func (f *fabric) inMode(t *testing.T, m mode) {
	if m.needsIPIP() && !f.ipip {
		t.Logf("%s is not tried: this kernel has no IPIP; it is in the machine of make test-vm", m.name)
		return
	}
	f.switchTo(t, m)
	f.talk(t, m, f.Pods...)
	pods := f.addPods(t, "new", lab.PodOptions{}, "n1a", "n1b", "n2a")
	f.seenOnTheWire(t, m, pods[0], pods[1], pods[2])
	for _, p := range pods {
		if got := mtuOf(t, p); got != m.mtu(1500) {
			t.Errorf("pod %s has MTU %d, want %d", p, got, m.mtu(1500))
		}
	}
	f.fullPath(t, m, pods[0], pods[1], pods[2])
	deletePods(t, pods)
}

// mtuOf is the MTU of a pod's link.
func mtuOf(t *testing.T, p *lab.Pod) int {
	t.Helper()
	var out int
	err := p.Do(func() error {
		l, err := netlink.LinkByName(p.IfName)
		if err == nil {
			out = l.Attrs().MTU
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
