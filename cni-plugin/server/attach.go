package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/causeway-net/causeway/cni-plugin/veth"
	"github.com/causeway-net/causeway/internal/model"
)

// add attaches a pod. Each step is durable or visible in the kernel before the next one
// begins, so that a crash between any two leaves what a DEL, a GC or the same ADD again
// finds and puts right.
func (s *Server) add(ctx context.Context, r *request) (_ []byte, err error) {
	start := time.Now()
	if err := s.wirer.CheckNetNS(r.ns); err != nil {
		return nil, err
	}
	ask, mac, err := s.addressRequest(ctx, r)
	if err != nil {
		return nil, err
	}
	before, existed := s.IPAM.Endpoint(r.key)
	ep, err := s.IPAM.Assign(ctx, ask)
	if err != nil {
		return nil, fmt.Errorf("assigning an address: %w", err)
	}
	u := undo{s: s, ep: ep, owner: r.owner(), existed: existed}
	defer func() {
		if p := recover(); p != nil {
			u.run(ctx)
			panic(p)
		}
		if err != nil {
			err = errors.Join(err, u.run(ctx))
		}
	}()
	if len(ep.Addresses) == 0 {
		return nil, errors.New("assigning an address: got none")
	}
	if existed && before.HostInterface != "" && before.HostInterface != r.hostName() {
		// The same container under another pod name: its link has the old name.
		if err := s.wirer.Remove(before.HostInterface, r.owner()); err != nil {
			return nil, err
		}
	}
	spec := veth.Spec{HostName: r.hostName(), PodName: r.IfName, NetNS: r.ns, Owner: r.owner(), Addresses: ep.Addresses, MTU: r.conf.MTU, MAC: mac}
	if spec.MTU == 0 {
		spec.MTU = s.MTU()
	}
	u.hostName = spec.HostName
	link, err := s.wirer.Wire(spec)
	if err != nil {
		return nil, err
	}
	u.created = link.Created
	ep.HostInterface, ep.ContainerMAC, ep.MTU, ep.SettingsDigest = spec.HostName, link.MAC.String(), spec.MTU, r.conf.digest()
	if ep.NetNSInode, err = r.inode(); err != nil {
		return nil, err
	}
	u.ep = ep
	wired := time.Now()
	if err := s.IPAM.Wired(ctx, ep); err != nil {
		return nil, fmt.Errorf("recording the endpoint: %w", err)
	}
	u.attached = true
	if err := s.Dataplane.Attach(ctx, ep); err != nil {
		return nil, fmt.Errorf("route and rules of the pod: %w", err)
	}
	out, err := r.conf.print(result(r, ep, link))
	if err != nil {
		return nil, err
	}
	s.Log.Info("pod attached", "attachment", r.key.String(), "pod", r.pod(), "addresses", ep.Addresses, "link", ep.HostInterface,
		"took", time.Since(start), "tookToWire", wired.Sub(start))
	return out, nil
}

// addressRequest says what the pod, its namespace and its configuration ask for.
func (s *Server) addressRequest(ctx context.Context, r *request) (model.AddressRequest, net.HardwareAddr, error) {
	var of Workload
	if s.Workload != nil && r.args.pod != "" {
		var err error
		if of, err = s.Workload(ctx, r.args.namespace, r.args.pod, r.args.uid); err != nil {
			return model.AddressRequest{}, nil, fmt.Errorf("looking up pod %s: %w", r.pod(), err)
		}
	}
	ask, mac, err := r.conf.request(r.args, of)
	ask.Key, ask.Network = r.key, r.conf.Name
	ask.Namespace, ask.Pod, ask.PodUID, ask.NamespaceLabels = r.args.namespace, r.args.pod, cmp.Or(of.UID, r.args.uid), of.NamespaceLabels
	return ask, mac, err
}

// undo takes back what one ADD made: a link that it created, and the address unless the
// endpoint was there before.
type undo struct {
	s                 *Server
	ep                model.Endpoint
	owner             veth.Owner
	hostName          string // empty: no link yet
	existed           bool
	created, attached bool
}

// run works though ctx has ended. The address is freed only when nothing bears it.
func (u *undo) run(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	if u.hostName != "" && (u.created || !u.existed) {
		if err := u.s.wirer.Remove(u.hostName, u.owner); err != nil {
			return fmt.Errorf("undoing: %w", err)
		}
	}
	if u.attached && !u.existed {
		if err := u.s.Dataplane.Detach(ctx, u.ep); err != nil {
			return fmt.Errorf("undoing: route and rules of the pod: %w", err)
		}
	}
	if u.existed {
		return nil
	}
	if _, err := u.s.IPAM.Release(ctx, u.ep.Key.ContainerID, u.ep.Key.IfName); err != nil {
		return fmt.Errorf("undoing: releasing the address: %w", err)
	}
	return nil
}

// result is what ADD answers: what came before this plugin in the chain, and the pod's
// link with its addresses.
func result(r *request, ep model.Endpoint, link veth.Link) *current.Result {
	res := &current.Result{CNIVersion: current.ImplementedSpecVersion, DNS: r.conf.DNS}
	if p := r.conf.prev; p != nil {
		res.Interfaces, res.IPs, res.Routes = p.Interfaces, p.IPs, p.Routes
		if !p.DNS.IsEmpty() {
			res.DNS = p.DNS
		}
	}
	res.Interfaces = append(res.Interfaces,
		&current.Interface{Name: ep.HostInterface, Mac: veth.HostMAC.String(), Mtu: ep.MTU},
		&current.Interface{Name: r.IfName, Mac: ep.ContainerMAC, Mtu: ep.MTU, Sandbox: r.NetNS})
	for _, a := range ep.Addresses {
		res.IPs = append(res.IPs, &current.IPConfig{Interface: current.Int(len(res.Interfaces) - 1), Address: ipNet(netip.PrefixFrom(a, a.BitLen())), Gateway: gateway(a).AsSlice()})
	}
	for _, route := range link.Routes {
		res.Routes = append(res.Routes, &types.Route{Dst: ipNet(route.Dst), GW: route.GW.AsSlice()})
	}
	return res
}

func gateway(a netip.Addr) netip.Addr {
	if a.Is4() {
		return veth.GatewayIPv4
	}
	return veth.GatewayIPv6
}

func ipNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// fromIPNet is the inverse of ipNet.
func fromIPNet(n net.IPNet) netip.Prefix {
	a, _ := netip.AddrFromSlice(n.IP)
	bits, size := n.Mask.Size()
	if size == 32 {
		a = a.Unmap()
	}
	return netip.PrefixFrom(a, bits)
}

// del detaches a pod. It needs neither its namespace nor a record nor a result, and it
// succeeds when nothing is left to do. The address is freed last: while a link bears it
// nobody else may have it (I1).
func (s *Server) del(ctx context.Context, r *request) error {
	ep, known := s.IPAM.Endpoint(r.key)
	names := []string{r.hostName()}
	if known && ep.HostInterface != "" && !slices.Contains(names, ep.HostInterface) {
		names = append(names, ep.HostInterface)
	}
	owner := r.owner()
	if known && ep.Network != "" {
		owner.Network = ep.Network // the configuration may have been renamed since
	}
	for _, name := range names {
		if err := s.wirer.Remove(name, owner); err != nil {
			return err
		}
	}
	// The dataplane may know a pod that the journal lost.
	ep.Key = r.key
	if err := s.Dataplane.Detach(ctx, ep); err != nil {
		return fmt.Errorf("removing route and rules of the pod: %w", err)
	}
	freed, err := s.IPAM.Release(ctx, r.ContainerID, r.IfName)
	if err != nil {
		return fmt.Errorf("releasing the address: %w", err)
	}
	if len(freed) > 0 {
		s.Log.Info("pod detached", "attachment", r.key.String(), "pod", r.pod(), "addresses", ep.Addresses)
	}
	return nil
}
