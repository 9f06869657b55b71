package watch

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/internal/model"
)

// Sourced is an object and where it was read.
type Sourced struct {
	*Object
	Source string // model.Problem.Source
}

// Input is what Build makes a snapshot of.
type Input struct {
	// Objects in force. No two have the same Key; those that are invalid only
	// contribute their Problems.
	Objects []Sourced
	// Problems that the source found itself.
	Problems []model.Problem
	// Others are blocks of which no Object is known; none has the CIDR of one that is.
	Others []OtherBlock
	// BlocksPending: blocks that are needed may be there and are not known yet.
	BlocksPending bool
	// Unread are Secrets, by name, that objects refer to and of which nothing is known.
	Unread map[string]Unread

	// held are passwords that were read before and were in force.
	held map[passwordKey]string
}

// OtherBlock is what is known of a block without reading it in full.
type OtherBlock struct {
	model.Block
	Claimed time.Time // creation of the object
}

// Unread says why a Secret is not known.
type Unread struct {
	Why string
	// Lasting: it takes somebody's hand to change that, as when reading is forbidden. When
	// not, the password may have been in force until a moment ago, and what its peer told
	// proves nothing stale.
	Lasting bool
}

// Build makes the snapshot of all objects. It is deterministic: neither the order of the
// objects nor what was built before matters. Revision is left 0.
func Build(in Input, opt Options) *model.Snapshot {
	s, _ := buildWith(in, opt)
	return s
}

// buildWith is Build; it also returns the passwords that are in force.
func buildWith(in Input, opt Options) (*model.Snapshot, map[passwordKey]string) {
	b := builder{Input: in, opt: opt, s: &model.Snapshot{IPAM: defaultIPAM}, secrets: map[string]secret{}, passwords: map[passwordKey]string{}}
	b.s.Problems = slices.Clone(in.Problems)
	b.sortIn()
	b.pools()
	b.addresses()
	b.s.Blocks = b.blocks()
	s := b.s
	s.BlocksKnown = !in.BlocksPending
	slices.SortFunc(s.Nodes, func(a, b model.Node) int { return cmp.Compare(a.Name, b.Name) })
	b.tunnels()
	b.bgp()
	b.peers()
	b.s.Felix = b.felix()

	slices.SortFunc(s.Pools, func(a, b model.Pool) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(s.Peers, func(a, b model.BGPPeer) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(s.Reservations, comparePrefix)
	s.Reservations = slices.Compact(s.Reservations)
	slices.SortFunc(s.Problems, compareProblem)
	s.Problems = slices.Compact(s.Problems)
	return s, b.passwords
}

type builder struct {
	Input
	opt     Options
	s       *model.Snapshot
	secrets map[string]secret // of the secret namespace, by name
	// passwords are those in force, to be held when they cannot be read any more.
	passwords map[passwordKey]string

	nodeObjects, poolObjects, peerObjects, configs, blockObjects, felixConfigs []Sourced
}

// sortIn puts each object into its place and collects the problems of all.
func (b *builder) sortIn() {
	for _, o := range b.Objects {
		for _, p := range o.Problems {
			p.Source = o.Source
			b.s.Problems = append(b.s.Problems, p)
		}
		switch v := o.value.(type) {
		case model.Node:
			b.s.Nodes = append(b.s.Nodes, v)
			b.nodeObjects = append(b.nodeObjects, o)
		case secret:
			if o.Key.Namespace == b.opt.secretNamespace() {
				b.secrets[o.Key.Name] = v
			}
		case model.Pool:
			b.poolObjects = append(b.poolObjects, o)
		case bgpConfiguration:
			b.configs = append(b.configs, o)
		case felixConfiguration:
			b.felixConfigs = append(b.felixConfigs, o)
		case bgpPeer:
			b.peerObjects = append(b.peerObjects, o)
		case model.IPAMConfig:
			b.s.IPAM = v
		case []netip.Prefix:
			b.s.Reservations = append(b.s.Reservations, v...)
		case block:
			b.blockObjects = append(b.blockObjects, o)
		}
	}
}

// problem notes that o is not in force (or, if ignored, that one field of it is not).
func (b *builder) problem(o Sourced, ignored bool, field, format string, args ...any) {
	b.s.Problems = append(b.s.Problems, model.Problem{
		Object: o.Key, Source: o.Source, Field: field, Message: fmt.Sprintf(format, args...), Ignored: ignored,
	})
}

// pools puts the pools in force: of those that overlap, the one created first; of those
// created together, the first by name.
func (b *builder) pools() {
	slices.SortFunc(b.poolObjects, func(x, y Sourced) int { return cmp.Compare(x.Key.Name, y.Key.Name) })
	cidr := func(o Sourced) netip.Prefix { return o.value.(model.Pool).CIDR }
	// Files do not tell which of two pools was there first. The one that holds more blocks
	// is in use, and of two that hold the same the wider one leaves none without a pool.
	blocks := map[string]int{}
	for _, o := range b.poolObjects {
		if b.opt.OwnBlocks {
			break // another node would count otherwise, and decide otherwise
		}
		if slices.ContainsFunc(b.poolObjects, func(x Sourced) bool { return x.Key != o.Key && cidr(x).Overlaps(cidr(o)) }) {
			for _, x := range b.blockObjects {
				if c := x.value.(block).CIDR; c.Bits() >= cidr(o).Bits() && cidr(o).Contains(c.Addr()) {
					blocks[o.Key.Name]++
				}
			}
		}
	}
	slices.SortStableFunc(b.poolObjects, func(x, y Sourced) int {
		if c := cmp.Or(x.created.Compare(y.created), cmp.Compare(blocks[y.Key.Name], blocks[x.Key.Name])); c != 0 || blocks[x.Key.Name] == 0 {
			return c
		}
		return cmp.Compare(cidr(x).Bits(), cidr(y).Bits())
	})
	for _, o := range b.poolObjects {
		p := o.value.(model.Pool)
		i := slices.IndexFunc(b.s.Pools, func(q model.Pool) bool { return q.CIDR.Overlaps(p.CIDR) })
		if i >= 0 {
			q := &b.s.Pools[i]
			b.problem(o, false, ".spec.cidr", "is %q, which overlaps %q of IPPool %s, which was created earlier, holds more blocks or comes first by name; pools must not overlap", p.CIDR, q.CIDR, q.Name)
			continue
		}
		b.s.Pools = append(b.s.Pools, p)
	}
}

// addresses looks at what nodes have in common with each other and with the pools. An
// address of two nodes is reported at all but the first of them by name, with whom the
// others have their session. One in a pool is reserved: no pod must ever get it.
func (b *builder) addresses() {
	slices.SortFunc(b.nodeObjects, func(x, y Sourced) int { return cmp.Compare(x.Key.Name, y.Key.Name) })
	owners := map[netip.Addr]string{}
	for _, o := range b.nodeObjects {
		n := o.value.(model.Node)
		for _, p := range []netip.Prefix{n.IPv4, n.IPv6} {
			a := p.Addr()
			if !a.IsValid() {
				continue
			}
			if first, taken := owners[a]; taken {
				b.problem(o, true, "", "has the address %s, which is that of Node %s too; each needs its own, or sessions with both will fail", a, first)
				continue
			}
			owners[a] = n.Name
			if slices.ContainsFunc(b.s.Pools, func(q model.Pool) bool { return q.CIDR.Contains(a) }) {
				b.s.Reservations = append(b.s.Reservations, netip.PrefixFrom(a, a.BitLen()))
			}
		}
	}
}

// claim is a block as it goes into the snapshot.
type claim struct {
	OtherBlock
	o Sourced // what it was read from; its Object is nil if it was not read in full
}

// blocks returns the blocks sorted. Of blocks that overlap, which only someone's hand can
// bring about, the one claimed first is in force, so that an address has one owner.
func (b *builder) blocks() []model.Block {
	claims := make([]claim, 0, len(b.blockObjects)+len(b.Others))
	for _, o := range b.blockObjects {
		if v := o.value.(block); !v.deleted {
			claims = append(claims, claim{OtherBlock{v.Block, v.claimed}, o})
		}
	}
	for _, x := range b.Others {
		claims = append(claims, claim{OtherBlock: x})
	}
	slices.SortFunc(claims, func(x, y claim) int { return comparePrefix(x.CIDR, y.CIDR) })
	out := make([]model.Block, 0, len(claims))
	for len(claims) > 0 {
		// Sorted as they are, all blocks that overlap the first one follow it.
		n := 1
		for n < len(claims) && claims[0].CIDR.Overlaps(claims[n].CIDR) {
			n++
		}
		if n == 1 {
			out = append(out, claims[0].Block)
		} else {
			out = append(out, b.firstClaims(claims[:n])...)
		}
		claims = claims[n:]
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

func (b *builder) firstClaims(claims []claim) []model.Block {
	byClaim := slices.SortedFunc(slices.Values(claims), func(x, y claim) int {
		return cmp.Or(x.Claimed.Compare(y.Claimed), cmp.Compare(v3.BlockName(x.CIDR), v3.BlockName(y.CIDR)))
	})
	var out []model.Block
	for _, v := range byClaim {
		i := slices.IndexFunc(out, func(other model.Block) bool { return other.CIDR.Overlaps(v.CIDR) })
		if i >= 0 {
			if v.o.Object == nil {
				v.o.Object = &Object{Key: model.Object{Kind: v3.KindIPAMBlock, Name: v3.BlockName(v.CIDR)}}
			}
			b.problem(v.o, false, ".spec.cidr", "is %q, which overlaps the block %s, claimed earlier; delete the one that no pod uses", v.CIDR, out[i].CIDR)
			continue
		}
		out = append(out, v.Block)
	}
	slices.SortFunc(out, func(x, y model.Block) int { return comparePrefix(x.CIDR, y.CIDR) })
	return out
}

// BlocksNeeded reports whether routes come from blocks, so that those of all nodes are
// needed: while some pool's vxlanMode is not Never.
func BlocksNeeded(objects []Sourced) bool {
	return slices.ContainsFunc(objects, func(o Sourced) bool {
		p, ok := o.value.(model.Pool)
		return ok && p.VXLANMode != model.EncapNever
	})
}

// tunnels lets each node have ends of tunnels of its own: one that a node before it by name
// has, too, is none of its.
func (b *builder) tunnels() {
	for t := range model.Tunnel(model.Tunnels) {
		addrs, macs := map[netip.Addr]string{}, map[string]string{}
		for i := range b.s.Nodes { // in the order of nodeObjects: by name
			n, end := &b.s.Nodes[i], &b.s.Nodes[i].Tunnels[t]
			if first, taken := addrs[end.Addr]; taken && end.Addr.IsValid() {
				b.problem(b.nodeObjects[i], true, annotation(tunnelAnnotations[t].addr), "is %q, the address of Node %s, too; each node needs its own", end.Addr, first)
				end.Addr = netip.Addr{}
			}
			if first, taken := macs[end.MAC]; taken && end.MAC != "" {
				b.problem(b.nodeObjects[i], true, annotation(tunnelAnnotations[t].mac), "is %q, the Ethernet address of Node %s, too; each node needs its own", end.MAC, first)
				end.MAC = ""
			}
			addrs[end.Addr], macs[end.MAC] = n.Name, n.Name
		}
	}
}

// bgp merges the default configuration with this node's.
func (b *builder) bgp() {
	cfg := &b.s.BGP
	*cfg = model.BGPConfig{
		ASN: DefaultASN, Mesh: true, ListenPort: DefaultListenPort,
		RoutePriority4: DefaultRoutePriority, RoutePriority6: DefaultRoutePriority,
	}
	key := model.Object{Kind: v3.KindBGPConfiguration, Name: defaultConfiguration}
	byNode := map[string]Sourced{}
	for _, o := range b.configs {
		byNode[o.value.(bgpConfiguration).node] = o
	}
	if o, ok := byNode[""]; ok {
		v := o.value.(bgpConfiguration)
		*cfg = v.config
		cfg.PrefixCommunities = v.prefixes
		if v.password != nil {
			password, err := b.password(o, v.password)
			if err != nil {
				cfg.Mesh = false
				b.problem(o, false, v.password.field, "%v; the node mesh stays down without its password", err)
			}
			cfg.MeshPassword = password
		}
	} else if i := slices.IndexFunc(b.s.Problems, func(p model.Problem) bool { return p.Object == key && !p.Ignored }); i >= 0 {
		// What the broken object wants is unknown: it may be a password, no mesh, another AS.
		cfg.Mesh, cfg.Unknown = false, true
		b.s.Problems = append(b.s.Problems, model.Problem{
			Object: key, Source: b.s.Problems[i].Source, Field: ".spec.nodeToNodeMeshEnabled",
			Message: "the node mesh stays down until a version of this object is valid",
		})
	}
	for i := range b.s.Nodes {
		n := &b.s.Nodes[i]
		n.ListenPort = cfg.ListenPort
		if o, ok := byNode[n.Name]; ok {
			n.ListenPort = cmp.Or(o.value.(bgpConfiguration).config.ListenPort, n.ListenPort)
		}
	}
	if o, ok := byNode[b.opt.Node]; ok && b.opt.Node != "" {
		v := o.value.(bgpConfiguration)
		cfg.ListenPort = cmp.Or(v.config.ListenPort, cfg.ListenPort)
		if v.prefixes != nil {
			cfg.PrefixCommunities = v.prefixes
		}
	}
}

// password reads a password that o refers to. One that was in force stays so when it is
// gone, cannot be read or is not valid any more: a session is not ended because something
// could not be looked up, and never goes on without its password. Unknown is set when there
// was none and it may be there all the same.
func (b *builder) password(o Sourced, r *passwordRef) (string, error) {
	password, err := r.resolve(b.secrets, b.Unread, b.opt.secretNamespace())
	key := passwordKey{r.name, r.key}
	if password != "" {
		b.passwords[key] = password
		return password, nil
	}
	if held, ok := b.held[key]; ok {
		if err == nil {
			err = fmt.Errorf("the key %q of the Secret %s/%s, which is optional, is gone", r.key, b.opt.secretNamespace(), r.name)
		}
		b.problem(o, true, r.field, "%v; the password that was read before stays in force until this agent restarts, or until nothing refers to it", err)
		b.passwords[key] = held
		return held, nil
	}
	if u, unread := b.Unread[r.name]; unread && err != nil && !u.Lasting {
		b.s.BGP.Unknown = true
	}
	return password, err
}

// peers puts the peers in force whose passwords are there. Those with a password that are
// no business of this node are left out: it has no need of their Secrets.
func (b *builder) peers() {
	self := b.s.Node(b.opt.Node)
	for _, o := range b.peerObjects {
		v := o.value.(bgpPeer)
		v.Created = o.created
		if r := v.password; r != nil {
			if !v.concerns(self) {
				continue
			}
			password, err := b.password(o, r)
			if err != nil {
				b.problem(o, false, r.field, "%v; the peer stays down without its password", err)
				continue
			}
			v.Password = password
		}
		b.s.Peers = append(b.s.Peers, v.BGPPeer)
	}
}

// comparePrefix orders by address, then the shorter prefix first.
func comparePrefix(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

func compareProblem(a, b model.Problem) int {
	return cmp.Or(
		cmp.Compare(a.Object.Kind, b.Object.Kind),
		cmp.Compare(a.Object.Namespace, b.Object.Namespace),
		cmp.Compare(a.Object.Name, b.Object.Name),
		cmp.Compare(a.Source, b.Source),
		cmp.Compare(a.Field, b.Field),
		cmp.Compare(a.Message, b.Message),
	)
}
