package tunnel

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/causeway-net/causeway/internal/model"
)

// fakeKernel does what rtnetlink would, refuses what it would refuse, notifies, and counts.
type fakeKernel struct {
	mu     sync.Mutex
	noIPIP bool
	links  map[string]*fakeLink
	next   int
	ops    []string // what was written, as command lines
	reads  int      // of addresses and peers: those whose cost grows
	refuse func(*op) error

	// Notifications, from listen on; those before read is called wait, as in a socket.
	listening bool
	waiting   []func()
	in        *inbox
	poke      func()
	closed    chan struct{}
}

type fakeLink struct {
	linkState
	sysctls map[string]string
	addrs   map[netip.Prefix]string
	fdb     map[mac][]fdbEntry
	neigh   map[netip.Addr]neighEntry
}

func newFakeKernel() *fakeKernel {
	return &fakeKernel{links: map[string]*fakeLink{}, next: 2}
}

func (f *fakeKernel) read(in *inbox, poke func()) error {
	f.mu.Lock()
	f.in, f.poke = in, poke
	for _, tell := range f.waiting {
		tell()
	}
	f.waiting = nil
	f.mu.Unlock()
	<-f.closed
	return nil
}

func (f *fakeKernel) listen() (notices, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.listening, f.in, f.waiting, f.closed = true, nil, nil, make(chan struct{})
	return f, nil
}

// close ends the notifications.
func (f *fakeKernel) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.listening = false
	close(f.closed)
}

// fakeSeam is f as a kernel: closing it does not end the notifications.
type fakeSeam struct{ *fakeKernel }

func (fakeSeam) close() {}

func (f *fakeKernel) notify(typ uint16, body []byte) {
	tell := func() {
		if f.in.put(typ, body) {
			f.poke()
		}
	}
	switch {
	case !f.listening:
	case f.in == nil:
		f.waiting = append(f.waiting, tell)
	default:
		tell()
	}
}

func attr(typ uint16, data []byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(unix.SizeofNlAttr+len(data)))
	b = append(binary.NativeEndian.AppendUint16(b, typ), data...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

func (f *fakeKernel) tellLink(typ uint16, l *fakeLink, name string) {
	b := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(b[4:], uint32(l.index))
	f.notify(typ, append(b, attr(unix.IFLA_IFNAME, append([]byte(name), 0))...))
}

func (f *fakeKernel) tellAddr(l *fakeLink) {
	b := make([]byte, unix.SizeofIfAddrmsg)
	binary.NativeEndian.PutUint32(b[4:], uint32(l.index))
	f.notify(unix.RTM_NEWADDR, b)
}

func (f *fakeKernel) tellNeigh(typ uint16, l *fakeLink, bridge bool, dst netip.Addr, m mac) {
	b := make([]byte, unix.SizeofNdMsg)
	b[0] = unix.AF_INET6
	if dst.Is4() {
		b[0] = unix.AF_INET
	}
	if bridge {
		b[0], b[10] = unix.AF_BRIDGE, unix.NTF_SELF
	}
	binary.NativeEndian.PutUint32(b[4:], uint32(l.index))
	binary.NativeEndian.PutUint16(b[8:], unix.NUD_PERMANENT)
	b = append(b, attr(netlink.NDA_LLADDR, m[:])...)
	if bridge { // as older kernels do: once without what it is about
		f.notify(typ, b)
	}
	b = append(b, attr(netlink.NDA_DST, dst.AsSlice())...)
	f.notify(typ, append(b, attr(netlink.NDA_CACHEINFO, make([]byte, 16))...))
}

func (f *fakeKernel) byIndex(o *op) (*fakeLink, error) {
	if l := f.links[o.kind.Device()]; l != nil && l.index == o.index {
		return l, nil
	}
	return nil, unix.ENODEV
}

func (f *fakeKernel) link(name string) (*linkState, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := f.links[name]
	if l == nil {
		return nil, nil
	}
	s := l.linkState
	return &s, nil
}

func (f *fakeKernel) find(index int) *fakeLink {
	for _, l := range f.links {
		if l.index == index {
			return l
		}
	}
	return &fakeLink{}
}

func (f *fakeKernel) addrs(index int) (map[netip.Prefix]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reads++
	out := map[netip.Prefix]string{}
	maps.Copy(out, f.find(index).addrs)
	return out, nil
}

func (f *fakeKernel) peers(index int) (map[mac]fdbEntry, map[netip.Addr]neighEntry, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reads++
	fdb, neigh := map[mac]fdbEntry{}, map[netip.Addr]neighEntry{}
	l := f.find(index)
	for m, list := range l.fdb {
		e := list[0]
		e.odd = e.odd || len(list) > 1
		fdb[m] = e
	}
	maps.Copy(neigh, l.neigh)
	return fdb, neigh, nil
}

// split takes the link's name out of a sysctl's.
func split(name string) (link string) {
	parts := strings.Split(name, "/")
	return parts[len(parts)-2]
}

func (f *fakeKernel) sysctl(name string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if l := f.links[split(name)]; l != nil {
		return l.sysctls[name]
	}
	return ""
}

func (f *fakeKernel) do(o *op) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ops = append(f.ops, o.String())
	if f.refuse != nil {
		if err := f.refuse(o); err != nil {
			return err
		}
	}
	return f.write(o)
}

// harm is a write by somebody else, to whatever has the device's name.
func (f *fakeKernel) harm(o op) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if l := f.links[o.kind.Device()]; l != nil {
		o.index = l.index
	}
	_ = f.write(&o)
}

func (f *fakeKernel) write(o *op) error {
	name := o.kind.Device()
	if o.verb == linkAdd {
		return f.addLink(o, name)
	}
	if o.verb == sysctl {
		l := f.links[split(o.name)]
		if l == nil || l.sysctls[o.name] == "" {
			return &os.PathError{Op: "open", Path: o.name, Err: unix.ENOENT}
		}
		l.sysctls[o.name] = o.value
		return nil
	}
	l, err := f.byIndex(o)
	if err != nil {
		return err
	}
	switch o.verb {
	case linkDel:
		if l.kind == "ipip" {
			return nil // the fallback device stays
		}
		delete(f.links, name)
		f.tellLink(unix.RTM_DELLINK, l, name)
		return nil
	case linkAlias:
		l.alias = o.value
	case linkMTU:
		if o.mtu < 68 {
			return unix.EINVAL
		}
		l.mtu = o.mtu
	case linkMAC:
		l.mac = o.mac
	case linkUp:
		l.up = true
	case linkDown:
		l.up = false
		for a, e := range l.neigh {
			delete(l.neigh, a)
			f.tellNeigh(unix.RTM_DELNEIGH, l, false, a, e.mac)
		}
		maps.DeleteFunc(l.addrs, func(p netip.Prefix, _ string) bool { return p.Addr().Is6() })
	case offload:
		l.offload = o.on
	case addrAdd:
		if _, ok := l.addrs[o.prefix]; ok {
			return unix.EEXIST
		}
		if o.prefix.Addr().Is6() && l.sysctls["net/ipv6/conf/"+name+"/disable_ipv6"] == "1" {
			return unix.EACCES
		}
		l.addrs[o.prefix] = o.label
		f.tellAddr(l)
		return nil
	case addrDel:
		if _, ok := l.addrs[o.prefix]; !ok {
			return unix.EADDRNOTAVAIL
		}
		delete(l.addrs, o.prefix)
		f.tellAddr(l)
		return nil
	default:
		return f.writePeer(o, l)
	}
	f.tellLink(unix.RTM_NEWLINK, l, name)
	return nil
}

func (f *fakeKernel) addLink(o *op, name string) error {
	if f.links[name] != nil {
		return unix.EEXIST
	}
	if o.kind == model.TunnelIPIP && f.noIPIP {
		return unix.EOPNOTSUPP
	}
	for _, l := range f.links {
		if v := l.vxlan; o.kind != model.TunnelIPIP && v.vni == o.vxlan.vni && v.port == o.vxlan.port && v.local.Is4() == o.vxlan.local.Is4() {
			return unix.EEXIST
		}
	}
	l := &fakeLink{
		linkState: linkState{index: f.next, kind: linkKind(o.kind), mtu: o.mtu, mac: o.mac, vxlan: o.vxlan, offload: o.kind != model.TunnelIPIP},
		sysctls:   map[string]string{}, addrs: map[netip.Prefix]string{}, fdb: map[mac][]fdbEntry{}, neigh: map[netip.Addr]neighEntry{},
	}
	f.next++
	for _, k := range []model.Tunnel{o.kind, model.TunnelVXLAN4, model.TunnelVXLAN6} { // every link has the sysctls of both families
		for _, s := range sysctls(k) {
			l.sysctls[strings.Replace(s.name, k.Device(), name, 1)] = map[bool]string{true: "1", false: "0"}[s.value == "0"]
		}
	}
	f.links[name] = l
	f.tellLink(unix.RTM_NEWLINK, l, name)
	return nil
}

func (f *fakeKernel) writePeer(o *op, l *fakeLink) error {
	switch o.verb {
	case fdbSet:
		if l.kind != "vxlan" {
			return unix.EOPNOTSUPP
		}
		if o.addr.Is4() != l.vxlan.local.Is4() {
			return unix.EAFNOSUPPORT
		}
		l.fdb[o.mac] = []fdbEntry{{dst: o.addr}}
		f.tellNeigh(unix.RTM_NEWNEIGH, l, true, o.addr, o.mac)
	case fdbDel:
		list, ok := l.fdb[o.mac]
		if !ok {
			return unix.ENOENT
		}
		delete(l.fdb, o.mac)
		f.tellNeigh(unix.RTM_DELNEIGH, l, true, list[0].dst, o.mac)
	case neighSet:
		l.neigh[o.addr] = neighEntry{mac: o.mac}
		f.tellNeigh(unix.RTM_NEWNEIGH, l, false, o.addr, o.mac)
	case neighDel:
		e, ok := l.neigh[o.addr]
		if !ok {
			return unix.ENOENT
		}
		delete(l.neigh, o.addr)
		f.tellNeigh(unix.RTM_DELNEIGH, l, false, o.addr, e.mac)
	default:
		return fmt.Errorf("unknown op %s", o)
	}
	return nil
}

// dump lists everything of our devices, one thing a line.
func (f *fakeKernel) dump() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for name, l := range f.links {
		out = append(out, linkLine(name, &l.linkState))
		for a, label := range l.addrs {
			out = append(out, addrLine(name, a, label))
		}
		for m, list := range l.fdb {
			for _, e := range list {
				out = append(out, fdbLine(name, m, e.dst))
			}
		}
		for a, e := range l.neigh {
			out = append(out, neighLine(name, a, e.mac))
		}
		for k := range model.Tunnel(kinds) {
			for _, s := range sysctls(k) {
				if k.Device() == name {
					out = append(out, "sysctl "+s.name+"="+l.sysctls[s.name])
				}
			}
		}
	}
	slices.Sort(out)
	return out
}
