package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/causeway-net/causeway/cni-plugin/veth"
	"github.com/causeway-net/causeway/cni-plugin/wire"
	"github.com/causeway-net/causeway/internal/model"
)

// codes are CHECK's for the parts of a link.
var codes = map[veth.Kind]uint{
	veth.HostLink: CodeHostLink, veth.PodLink: CodePodLink, veth.Address: CodeAddress,
	veth.PodRoute: CodeRoute, veth.Neighbour: CodeNeighbour, veth.Sysctl: CodeSysctl,
}

// differs is CHECK's answer when something is not as it was set up.
func differs(code uint, what ...string) error {
	return &wire.Error{Code: code, Msg: "the attachment is not as it was set up", Details: strings.Join(what, "; ")}
}

// check compares the attachment with the agent's record, with what ADD answered, and with
// the kernel on both sides of the link.
func (s *Server) check(ctx context.Context, r *request) error {
	prev := r.conf.prev
	if prev == nil {
		return invalid("prevResult: CHECK needs the result of ADD")
	}
	if err := s.wirer.CheckNetNS(r.ns); err != nil {
		return err
	}
	ep, ok := s.IPAM.Endpoint(r.key)
	if !ok || !ep.Wired() {
		return differs(CodeRecord, fmt.Sprintf("the agent has no record of attachment %s", r.key))
	}
	inode, err := r.inode()
	if err != nil {
		return err
	}
	record := checkRecord(r, ep, inode)
	record = append(record, checkPrev(r, ep, prev)...)
	if len(record) > 0 {
		return differs(CodeRecord, record...)
	}
	mac, err := net.ParseMAC(ep.ContainerMAC)
	if err != nil {
		return fmt.Errorf("record of attachment %s: containerMAC: %w", r.key, err)
	}
	found, err := s.wirer.Check(veth.Spec{
		HostName: ep.HostInterface, PodName: r.IfName, NetNS: r.ns, Owner: r.owner(), Addresses: ep.Addresses, MTU: ep.MTU, MAC: mac,
	}, routesOf(prev))
	if err != nil {
		return err
	}
	if len(found) > 0 {
		var what []string
		for _, d := range found {
			what = append(what, d.String())
		}
		return differs(codes[found[0].Kind], what...)
	}
	if err := s.Dataplane.Check(ctx, ep); err != nil {
		if ctx.Err() != nil {
			return err
		}
		return differs(CodeDataplane, err.Error())
	}
	return nil
}

// checkRecord compares the record with what this request says of the attachment.
func checkRecord(r *request, ep model.Endpoint, inode uint64) (what []string) {
	if ep.NetNSInode != inode {
		what = append(what, fmt.Sprintf("network namespace: is %d, want %d", inode, ep.NetNSInode))
	}
	if ep.Network != r.conf.Name {
		what = append(what, fmt.Sprintf("network: the record says %q, the network configuration %q", ep.Network, r.conf.Name))
	}
	if ep.SettingsDigest != r.conf.digest() {
		what = append(what, "network configuration: name or mtu has been changed since the pod was attached")
	}
	return what
}

// checkPrev compares the record with the chain's result: both ends of the link and each
// address must be in it.
func checkPrev(r *request, ep model.Endpoint, prev *current.Result) (what []string) {
	has := func(name string, sandboxed bool) bool {
		return slices.ContainsFunc(prev.Interfaces, func(i *current.Interface) bool {
			return i != nil && i.Name == name && (i.Sandbox != "") == sandboxed
		})
	}
	if !has(ep.HostInterface, false) {
		what = append(what, fmt.Sprintf("prevResult: host interface %s is missing", ep.HostInterface))
	}
	if !has(r.IfName, true) {
		what = append(what, fmt.Sprintf("prevResult: pod interface %s is missing", r.IfName))
	}
	for _, a := range ep.Addresses {
		if !slices.ContainsFunc(prev.IPs, func(ip *current.IPConfig) bool {
			return ip != nil && fromIPNet(ip.Address) == netip.PrefixFrom(a, a.BitLen())
		}) {
			what = append(what, fmt.Sprintf("prevResult: address %s is missing", a))
		}
	}
	return what
}

// routesOf returns those routes of the result that lead through our gateways; another
// plugin of the chain may have taken some away.
func routesOf(prev *current.Result) (out []veth.Route) {
	for _, route := range prev.Routes {
		gw, ok := netip.AddrFromSlice(route.GW)
		if gw = gw.Unmap(); ok && (gw == veth.GatewayIPv4 || gw == veth.GatewayIPv6) {
			out = append(out, veth.Route{Dst: fromIPNet(route.Dst), GW: gw})
		}
	}
	return out
}

// collect removes every attachment of the network that the runtime does not list. One
// that cannot be removed does not keep the others, and keeps its address.
func (s *Server) collect(ctx context.Context, r *request) error {
	if r.conf.ValidAttachments == nil {
		return invalid("cni.dev/valid-attachments: is missing; GC needs the list of attachments that still exist")
	}
	var valid []struct {
		ContainerID string `json:"containerID"`
		IfName      string `json:"ifname"`
	}
	if err := json.Unmarshal(r.conf.ValidAttachments, &valid); err != nil {
		return invalid("cni.dev/valid-attachments: want a list of {containerID, ifname}: %v", err)
	}
	var keep []model.AttachmentKey
	for i, v := range valid {
		if v.ContainerID == "" || v.IfName == "" {
			return invalid("cni.dev/valid-attachments[%d]: containerID and ifname are required", i)
		}
		keep = append(keep, model.AttachmentKey{ContainerID: v.ContainerID, IfName: v.IfName})
	}
	owned, err := s.wirer.Owned()
	if err != nil {
		return err
	}
	// The links go first, by their mark in the kernel: only then are addresses freed.
	var errs []error
	for name, owner := range owned {
		if owner.Network != r.conf.Name || slices.Contains(keep, owner.Key) {
			continue
		}
		err := s.wirer.Remove(name, owner)
		if ep, ok := s.IPAM.Endpoint(owner.Key); ok && err == nil {
			err = s.Dataplane.Detach(ctx, ep)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("attachment %s: %w", owner.Key, err))
			keep = append(keep, owner.Key)
			continue
		}
		s.Log.Info("stale link removed", "attachment", owner.Key.String(), "link", name)
	}
	freed, err := s.IPAM.Retain(ctx, r.conf.Name, keep)
	if err != nil {
		errs = append(errs, fmt.Errorf("releasing addresses: %w", err))
	}
	for _, ep := range freed {
		// Attachments without a link, whose routes may stand all the same.
		if err := s.Dataplane.Detach(ctx, ep); err != nil {
			errs = append(errs, fmt.Errorf("attachment %s: %w", ep.Key, err))
			continue
		}
		s.Log.Info("stale attachment released", "attachment", ep.Key.String(), "addresses", ep.Addresses)
	}
	return errors.Join(errs...)
}
