package tunnel

import (
	"fmt"
	"net/netip"
	"slices"
)

// Status is a device as it stands.
type Status struct {
	Device string `json:"device"` // the link's name
	Wanted bool   `json:"wanted"`
	Up     bool   `json:"up"`
	MTU    int    `json:"mtu,omitempty"` // bytes, in the kernel; 0: there is no link
	Addr   string `json:"addr,omitempty"`
	Local  string `json:"local,omitempty"` // VXLAN: where outer packets come from
	VNI    int    `json:"vni,omitempty"`
	Port   int    `json:"port,omitempty"`
	// Peers have both their entries in the kernel; PeersWanted should. IPIP has none.
	Peers       int `json:"peers"`
	PeersWanted int `json:"peersWanted"`
	// Errors name the object and what would be right; at most 100.
	Errors     []string `json:"errors,omitempty"`
	ErrorCount int      `json:"errorCount"`
}

// statusMost bounds the errors of a Status; the count tells the rest.
const statusMost = 100

// Status tells of every device that is wanted, and of those that stay although they are not:
// kept (Keep), or impossible to remove.
func (d *Devices) Status() []Status {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.status)
}

// status sums a device up after a round.
func (dev *device) status(errs []error) Status {
	s := Status{Device: dev.kind.Device(), Wanted: dev.want != nil, ErrorCount: len(errs)}
	for _, e := range errs[:min(len(errs), statusMost)] {
		s.Errors = append(s.Errors, e.Error())
	}
	if l := dev.got.link; l != nil && l.kind == linkKind(dev.kind) {
		s.Up, s.MTU, s.VNI, s.Port = l.up, l.mtu, l.vxlan.vni, l.vxlan.port
		if l.vxlan.local.IsValid() {
			s.Local = l.vxlan.local.String()
		}
	}
	if dev.want == nil {
		return s
	}
	if a := dev.want.addr; a.IsValid() {
		if _, ok := dev.got.addrs[netip.PrefixFrom(a, a.BitLen())]; ok {
			s.Addr = a.String()
		}
	}
	s.PeersWanted = len(dev.want.peers)
	for _, p := range dev.want.peers {
		if dev.got.fdb[p.mac] == (fdbEntry{dst: p.underlay}) && dev.got.neigh[p.addr] == (neighEntry{mac: p.mac}) {
			s.Peers++
		}
	}
	return s
}

// counts is what one round wrote, for the log.
type counts struct {
	made, removed bool
	settings      int // of the link, its addresses and sysctls
	set, deleted  int // FDB entries and neighbours
}

func (c *counts) count(o *op) {
	switch o.verb {
	case linkAdd:
		c.made = true
	case linkDel:
		c.removed = true
	case fdbSet, neighSet:
		c.set++
	case fdbDel, neighDel:
		c.deleted++
	default:
		c.settings++
	}
}

func (c *counts) changed() bool { return *c != counts{} }

func (c *counts) attrs() []any {
	out := []any{"settings", c.settings, "entriesSet", c.set, "entriesDeleted", c.deleted}
	switch {
	case c.made && c.removed:
		out = append(out, "link", "made anew")
	case c.made:
		out = append(out, "link", "made")
	case c.removed:
		out = append(out, "link", "removed")
	}
	return out
}

func (s Status) String() string {
	return fmt.Sprintf("%s up=%t mtu=%d peers=%d/%d", s.Device, s.Up, s.MTU, s.Peers, s.PeersWanted)
}
