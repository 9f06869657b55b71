package cluster

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/causeway-net/causeway/test/cluster/internal/machine"
	"github.com/causeway-net/causeway/test/lab"
)

//go:embed fabric
var fabricFiles embed.FS

// place is where a machine is plugged in.
type place struct {
	name   string
	rack   int // 1 or 2; 0 for the control plane's
	v4, v6 netip.Prefix
	gw4    netip.Addr
	gw6    netip.Addr
}

func placeOf(name string, rack int, host string) place {
	return place{name: name, rack: rack,
		v4: netip.MustParsePrefix(fmt.Sprintf("172.30.%d.%s/24", rack, host)), gw4: netip.MustParseAddr(fmt.Sprintf("172.30.%d.1", rack)),
		v6: netip.MustParsePrefix(fmt.Sprintf("fd30:0:0:%d::%s/64", rack, host)), gw6: netip.MustParseAddr(fmt.Sprintf("fd30:0:0:%d::1", rack))}
}

// mac is the hardware address of the machine's interface, the same every time it is switched
// on: with another one its neighbours, who hold the old one, would not reach it for seconds
// (RFC 4861, section 7.3.3: 5 s and three probes).
func (p place) mac() net.HardwareAddr {
	sum := sha256.Sum256([]byte(p.name))
	return append(net.HardwareAddr{0x02}, sum[:5]...) // locally administered, of one station (IEEE 802)
}

// The address plan, as in fabric/fabric.clab.yml. Every cluster has the same: clusters
// do not meet.
var (
	controlPlane = placeOf("cp", 0, "10")
	plan         = []place{placeOf("node1", 1, "11"), placeOf("node2", 1, "12"), placeOf("node3", 2, "11"), placeOf("node4", 2, "12")}
)

// What pods and Services get, and who the others are.
const (
	PodCIDR4     = "10.244.0.0/16"
	PodCIDR6     = "fd44::/48"
	ServiceCIDR4 = "10.96.0.0/16"
	ServiceCIDR6 = "fd96::/112"
	DNSAddress   = "10.96.0.10" // of the cluster's DNS Service, where there is one
	NodeASN      = 64512
	// AgnhostImage is upstream's test image with a name that does not change, on every node.
	AgnhostImage = "docker.io/causeway-net/agnhost:test"
	// CoreDNSImage is there after `make conformance`.
	CoreDNSImage = "docker.io/causeway-net/coredns:test"
	// Outside is a host beyond the spine.
	OutsideV4, OutsideV6 = "172.31.0.10", "fd31::10"
)

func (c *Cluster) buildFabric(ctx context.Context) error {
	dir := filepath.Join(c.dir, "fabric")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	entries, err := fabricFiles.ReadDir("fabric")
	if err != nil {
		return err
	}
	for _, e := range entries {
		b, err := fabricFiles.ReadFile("fabric/" + e.Name())
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, e.Name()), b, 0o644); err != nil {
			return err
		}
	}
	t, err := lab.Load(filepath.Join(dir, "fabric.clab.yml"))
	if err != nil {
		return err
	}
	c.fabric, err = lab.Up(ctx, t, lab.Options{Name: c.cfg.Name, StateRoot: c.labRoot()})
	return err
}

// plug wires a machine to its rack's switch and gives it addresses and default routes.
func (c *Cluster) plug(m *machine.Machine, p place) error {
	err := func() error {
		swName := fmt.Sprintf("sw%d", p.rack)
		swNS, err := netns.GetFromPath(c.fabric.Node(swName).NetNS())
		if err != nil {
			return err
		}
		defer swNS.Close()
		ns, err := netns.GetFromPath(m.NetNS())
		if err != nil {
			return err
		}
		defer ns.Close()
		sw, err := netlink.NewHandleAt(swNS, unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer sw.Close()
		own, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer own.Close()
		// The kernel takes a dead machine's namespace apart in its own time; its cable
		// may still be there.
		if old, err := sw.LinkByName(p.name); err == nil {
			if err := sw.LinkDel(old); err != nil && !errors.Is(err, unix.ENODEV) {
				return err
			}
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = p.name, 1500
		if err := sw.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerTxQLen: -1, PeerName: "eth0", PeerMTU: 1500, PeerNamespace: netlink.NsFd(int(ns)), PeerHardwareAddr: p.mac()}); err != nil {
			return err
		}
		bridge, err := sw.LinkByName(swName)
		if err != nil {
			return err
		}
		port, err := sw.LinkByName(p.name)
		if err != nil {
			return err
		}
		if err := errors.Join(sw.LinkSetMaster(port, bridge), sw.LinkSetUp(port)); err != nil {
			return err
		}
		return configure(own, p)
	}()
	if err != nil {
		return fmt.Errorf("plug %s in: %w", p.name, err)
	}
	return nil
}

func configure(h *netlink.Handle, p place) error {
	for _, name := range []string{"lo", "eth0"} {
		l, err := h.LinkByName(name)
		if err == nil {
			err = h.LinkSetUp(l)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	eth0, err := h.LinkByName("eth0")
	if err != nil {
		return err
	}
	for _, a := range []netip.Prefix{p.v4, p.v6} {
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: a.Addr().AsSlice(), Mask: net.CIDRMask(a.Bits(), a.Addr().BitLen())}}
		if a.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := h.AddrAdd(eth0, addr); err != nil {
			return fmt.Errorf("address %s: %w", a, err)
		}
	}
	for _, gw := range []netip.Addr{p.gw4, p.gw6} {
		if err := h.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Gw: gw.AsSlice()}); err != nil {
			return fmt.Errorf("default route via %s: %w", gw, err)
		}
	}
	return nil
}

// Router is one of the fabric's FRR routers.
type Router struct {
	*lab.Node
}

// ToR returns the ToR of rack 1 or 2.
func (c *Cluster) ToR(rack int) Router { return Router{c.fabric.Node(fmt.Sprintf("tor%d", rack))} }

// Spine returns the router between the ToRs and Outside.
func (c *Cluster) Spine() Router { return Router{c.fabric.Node("spine")} }

// Vtysh runs FRR commands and returns what they print.
func (r Router) Vtysh(ctx context.Context, commands ...string) (string, error) {
	args := []string{"vtysh"}
	for _, line := range commands {
		args = append(args, "-c", line)
	}
	return r.Exec(ctx, args...)
}

// Session returns the state of the session with a neighbor ("Established", "Idle"), or
// "unknown" when there is none.
func (r Router) Session(ctx context.Context, neighbor netip.Addr) (string, error) {
	out, err := r.Vtysh(ctx, "show bgp neighbors json")
	if err != nil {
		return "", err
	}
	var all map[string]struct {
		BGPState string `json:"bgpState"`
	}
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		return "", fmt.Errorf("%s: show bgp neighbors: %w", r.Name(), err)
	}
	if s := all[neighbor.String()].BGPState; s != "" {
		return s, nil
	}
	return "unknown", nil
}

// Outside is the host beyond the spine. It is a traffic.Space.
func (c *Cluster) Outside() *lab.Node { return c.fabric.Node("outside") }
