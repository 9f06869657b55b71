package policy

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/internal/selector"
)

// source says where a set's members come from.
type source uint8

const (
	fromSelector    source = iota // addresses and networks of what a selector matches
	fromPorts                     // a named port of the endpoints that a selector matches
	fromNodes                     // addresses of the nodes that a selector matches
	fromService                   // addresses behind a Service
	fromServicePort               // addresses and ports behind a Service
	fromNets                      // fixed prefixes
)

// definition is what defines a set's content. Sets of one definition are one.
type definition struct {
	source   source
	text     string // canonical selector, Service or prefixes
	port     string // name of the port
	protocol uint8  // of the port
	local    bool   // of local endpoints only
}

func (d definition) String() string {
	switch d.source {
	case fromPorts:
		where := ""
		if d.local {
			where = " here"
		}
		return fmt.Sprintf("port %s/%d of %s%s", d.port, d.protocol, d.text, where)
	case fromNodes:
		return "nodes " + d.text
	case fromService:
		return "service " + d.text
	case fromServicePort:
		return "service ports " + d.text
	case fromNets:
		return "nets " + d.text
	}
	return d.text
}

// set is one definition's members, in both families.
type set struct {
	definition
	uses     [2]int // by policies whose chains are in the kernel, by family
	selector *sel
	fam      [2]content
}

// content is a set's members of one family, and what the backend knows of them.
type content struct {
	live    map[Member]int // how many items have it
	pending map[Member]bool
	// lengths counts the live prefixes that are no single address, by length.
	lengths map[int]int
	widened bool // such a prefix came or went since the last Flush

	id    SetID // as the backend knows it; empty: not at all
	kind  SetKind
	shown map[Member]struct{} // kind SetNet: the members that the backend has
}

// wide reports whether a member is a network.
func wide(m Member) bool { return !m.Prefix.IsSingleIP() }

// change adds a member once more, or takes it away once.
func (f *content) change(m Member, in bool) {
	if f.live == nil {
		f.live = map[Member]int{}
	}
	n := f.live[m]
	if in {
		f.live[m] = n + 1
	} else if n > 1 {
		f.live[m] = n - 1
	} else {
		delete(f.live, m)
	}
	if in && n > 0 || !in && n > 1 {
		return
	}
	if wide(m) {
		f.widen(m.Prefix.Bits(), in)
	}
	if f.id == "" {
		return // told as a whole when it is
	}
	if was, there := f.pending[m]; there && was != in {
		delete(f.pending, m)
		return
	}
	if f.pending == nil {
		f.pending = map[Member]bool{}
	}
	f.pending[m] = in
}

func (f *content) widen(bits int, in bool) {
	if f.lengths == nil {
		f.lengths = map[int]int{}
	}
	f.widened = true
	if in {
		f.lengths[bits]++
	} else if f.lengths[bits]--; f.lengths[bits] == 0 {
		delete(f.lengths, bits)
	}
}

// covered reports whether a live network holds the single address.
func (f *content) covered(m Member) bool {
	for bits := range f.lengths {
		if up, err := m.Prefix.Addr().Prefix(bits); err == nil && bits < m.Prefix.Bits() && f.live[Member{Prefix: up}] > 0 {
			return true
		}
	}
	return false
}

// current lists the members as a backend is to have them, sorted.
func (f *content) current(kind SetKind) []Member {
	if kind == SetNet {
		nets := make([]netip.Prefix, 0, len(f.live))
		for m := range f.live {
			nets = append(nets, m.Prefix)
		}
		nets = outermost(nets)
		out := make([]Member, len(nets))
		for i, p := range nets {
			out[i].Prefix = p
		}
		return out
	}
	out := make([]Member, 0, len(f.live))
	for m := range f.live {
		out = append(out, m)
	}
	slices.SortFunc(out, Member.Compare)
	return out
}

// kind that the set must have for its members.
func (s *set) kindNow(i int) SetKind {
	switch {
	case s.source == fromPorts || s.source == fromServicePort:
		return SetIPPort
	case len(s.fam[i].lengths) > 0:
		return SetNet
	}
	return SetIP
}

var idEncoding = base32.NewEncoding("0123456789abcdefghijklmnopqrstuv").WithPadding(base32.NoPadding)

// newID names a set of this kind and family.
func (d definition) newID(kind SetKind, f Family) SetID {
	sum := sha256.Sum256([]byte(d.String()))
	return SetID(kindLetters[kind] + string('0'+byte(f)) + idEncoding.EncodeToString(sum[:])[:setIDLen-2])
}

// whole makes the set known to the backend, as a new one.
func (s *set) whole(i int) Set {
	f := &s.fam[i]
	f.kind = s.kindNow(i)
	f.id = s.newID(f.kind, families[i])
	f.pending, f.widened, f.shown = nil, false, nil
	out := Set{ID: f.id, Kind: f.kind, Family: families[i], Origin: s.String(), Members: f.current(f.kind)}
	if f.kind == SetNet {
		f.show(out.Members, nil)
	}
	return out
}

func (f *content) show(add, remove []Member) {
	if f.shown == nil {
		f.shown = make(map[Member]struct{}, len(add))
	}
	for _, m := range remove {
		delete(f.shown, m)
	}
	for _, m := range add {
		f.shown[m] = struct{}{}
	}
}

// changes says what the backend does not know yet of a set whose kind is as it was.
func (s *set) changes(i int) SetChange {
	f := &s.fam[i]
	out := SetChange{ID: f.id, Kind: f.kind, Family: families[i]}
	switch {
	case f.kind == SetNet && f.widened:
		now := f.current(SetNet)
		for _, m := range now {
			if _, there := f.shown[m]; !there {
				out.Add = append(out.Add, m)
			}
		}
		stays := make(map[Member]struct{}, len(now))
		for _, m := range now {
			stays[m] = struct{}{}
		}
		for m := range f.shown {
			if _, there := stays[m]; !there {
				out.Remove = append(out.Remove, m)
			}
		}
	case f.kind == SetNet:
		for m, in := range f.pending {
			if f.covered(m) {
				continue
			}
			if in {
				out.Add = append(out.Add, m)
			} else {
				out.Remove = append(out.Remove, m)
			}
		}
	default:
		for m, in := range f.pending {
			if in {
				out.Add = append(out.Add, m)
			} else {
				out.Remove = append(out.Remove, m)
			}
		}
	}
	f.pending, f.widened = nil, false
	if f.kind == SetNet {
		f.show(out.Add, out.Remove)
	}
	slices.SortFunc(out.Add, Member.Compare)
	slices.SortFunc(out.Remove, Member.Compare)
	return out
}

// move adds what the item has to the set, or takes it away.
func (s *set) move(it *item, in bool) {
	if s.source != fromPorts {
		for _, p := range it.prefixes {
			s.fam[famIndex(p.Addr())].change(Member{Prefix: p}, in)
		}
		return
	}
	if s.local && !it.local {
		return
	}
	for _, port := range it.ports {
		if port.Name != s.port || port.Protocol != s.protocol {
			continue
		}
		for _, p := range it.prefixes {
			s.fam[famIndex(p.Addr())].change(Member{Prefix: p, Protocol: port.Protocol, Port: port.Port}, in)
		}
	}
}

func famIndex(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// netsText is the definition's text of fixed prefixes, and netsOf their list.
func netsText(nets []netip.Prefix) string {
	var b strings.Builder
	for i, p := range nets {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(p.String())
	}
	return b.String()
}

func netsOf(text string) []netip.Prefix {
	var out []netip.Prefix
	for _, f := range strings.Fields(text) {
		out = append(out, netip.MustParsePrefix(f))
	}
	return out
}

// use counts one more user of a set, which is made if need be.
func (e *Engine) use(u setUse) *set {
	s := e.sets[u.form.definition]
	if s == nil {
		s = &set{definition: u.form.definition}
		e.sets[s.definition] = s
		e.fill(s, u.form.selector)
	}
	if s.uses[u.fam]++; s.uses[u.fam] == 1 {
		e.dirtySets[s] = struct{}{}
	}
	return s
}

// unuse counts one user less. Sets without users go with the next Flush.
func (e *Engine) unuse(s *set, fam int) {
	if s.uses[fam]--; s.uses[fam] == 0 {
		e.dirtySets[s] = struct{}{}
	}
}

// retire makes the set of one family unknown to the backend.
func (f *content) retire() (id SetID) {
	id = f.id
	f.id, f.pending, f.widened, f.shown = "", nil, false, nil
	return id
}

func (e *Engine) fill(s *set, parsed *selector.Selector) {
	switch s.source {
	case fromNets:
		for _, p := range members(netsOf(s.text)) {
			s.fam[famIndex(p.Addr())].change(Member{Prefix: p}, true)
		}
	case fromService, fromServicePort:
		ns, name, _ := strings.Cut(s.text, "/")
		v := e.service(model.ServiceID{Namespace: ns, Name: name})
		v.sets = append(v.sets, s)
		for _, ep := range v.endpoints {
			s.moveService(ep, true)
		}
	default:
		s.selector = e.indexOf(s.source).sel(parsed)
		s.selector.sets = append(s.selector.sets, s)
		for g := range s.selector.groups {
			for _, it := range g.items {
				s.move(it, true)
			}
		}
	}
}

// forget takes a set without users out of all that refers to it.
func (e *Engine) forget(s *set) {
	delete(e.sets, s.definition)
	switch {
	case s.selector != nil:
		of := slices.DeleteFunc(s.selector.sets, func(o *set) bool { return o == s })
		if s.selector.sets = of; len(of) == 0 {
			e.indexOf(s.source).drop(s.selector)
		}
	case s.source == fromService || s.source == fromServicePort:
		ns, name, _ := strings.Cut(s.text, "/")
		id := model.ServiceID{Namespace: ns, Name: name}
		v := e.service(id)
		v.sets = slices.DeleteFunc(v.sets, func(o *set) bool { return o == s })
		e.pruneService(id)
	}
}

func (e *Engine) indexOf(src source) *index {
	if src == fromNodes {
		return e.nodes
	}
	return e.peers
}

func (s *set) moveService(ep model.ServiceEndpoint, in bool) {
	m := Member{Prefix: netip.PrefixFrom(ep.Addr, ep.Addr.BitLen())}
	if s.source == fromServicePort {
		if ep.Port == 0 {
			return
		}
		m.Protocol, m.Port = ep.Protocol, ep.Port
	}
	s.fam[famIndex(ep.Addr)].change(m, in)
}
