package conntrack

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/causeway-net/causeway/felix/policy"
	"github.com/causeway-net/causeway/felix/trace"
	"github.com/causeway-net/causeway/internal/model"
)

// elsewhere stands for an interface that nobody needs to know more of than that it is no
// workload's.
const elsewhere = "*"

// routesLast is how long an answer of JudgeConfig.Route is believed.
const routesLast = time.Second

// Judge says by the rules of policy whether a flow may be, as if it began now, and which
// endpoints a change of the rules concerns. Its methods can be called from any goroutine.
type Judge struct {
	route func(netip.Addr) string

	mu    sync.Mutex // guards what follows
	prog  *policy.Program
	named map[policy.SetID]map[policy.ChainID]struct{} // the chains that name a set
	lost  bool                                         // prog is not what the kernel has

	// Made from prog's endpoints.
	owners  map[netip.Addr]string // interface of the workload with that address
	granted []netip.Prefix        // that workloads send from beside their addresses
	hosts   bool                  // there are host endpoints
	links   bool                  // and some on one interface alone

	routes map[netip.Addr]string // route's answers
	asked  time.Time             // when the first of them was given
}

// NewJudge makes a Judge of no rules at all. route says which interface the host reaches an
// address by, as Table.Route does; without it (nil) host endpoints on one interface, and what
// workloads send from addresses that are not theirs, have no say on flows.
func NewJudge(route func(netip.Addr) string) *Judge {
	j := &Judge{route: route}
	j.Reset()
	return j
}

// Reset forgets all rules; the next delta is of everything (policy.Engine.Whole).
func (j *Judge) Reset() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.prog, j.lost = policy.NewProgram(), false
	j.named = map[policy.SetID]map[policy.ChainID]struct{}{}
	j.owners, j.granted, j.hosts, j.links = map[netip.Addr]string{}, nil, false, false
	j.routes = map[netip.Addr]string{}
}

// Concern is whose flows are to be judged again.
type Concern struct {
	All   bool
	Addrs []netip.Addr // without All: of these endpoints; sorted
}

// Poke tells the Cutter, if there is anything to tell.
func (n Concern) Poke(c *Cutter) {
	switch {
	case n.All:
		c.Poke()
	case len(n.Addrs) > 0:
		c.Poke(n.Addrs...)
	}
}

// Apply takes a delta that stands in the kernel. After an error every flow is left as it is until
// Reset.
func (j *Judge) Apply(d *policy.Delta) (Concern, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.lost {
		return Concern{}, fmt.Errorf("connections cannot be judged: a delta before this one did not fit")
	}
	chains := map[policy.ChainID]struct{}{}
	for _, s := range d.ChangedSets {
		for id := range j.named[s.ID] {
			chains[id] = struct{}{}
		}
	}
	for i := range d.Chains {
		c := &d.Chains[i]
		if old, there := j.prog.Chains[c.ID]; !there || !old.Equal(c) {
			chains[c.ID] = struct{}{}
		}
		j.unname(c.ID)
	}
	for _, id := range d.GoneChains {
		j.unname(id)
	}
	links := map[string]struct{}{}
	var left []netip.Addr // addresses of those that went or changed
	for i := range d.Endpoints {
		e := &d.Endpoints[i]
		if old, there := j.prog.Endpoints[e.Interface]; !there || !old.Equal(e) {
			links[e.Interface] = struct{}{}
			left = append(left, old.Addresses...)
		}
	}
	for _, link := range d.GoneEndpoints {
		left = append(left, j.prog.Endpoints[link].Addresses...)
	}
	// What host endpoints that went had a say on is nobody's to find.
	hostGone := slices.ContainsFunc(d.GoneEndpoints, func(i string) bool { return j.prog.Endpoints[i].ID.Kind == model.EndpointHost })
	if err := j.prog.Apply(d); err != nil {
		j.lost = true
		return Concern{}, fmt.Errorf("connections cannot be judged: %w", err)
	}
	for i := range d.Chains {
		c := &d.Chains[i]
		for _, s := range c.Sets() {
			if j.named[s] == nil {
				j.named[s] = map[policy.ChainID]struct{}{}
			}
			j.named[s][c.ID] = struct{}{}
		}
	}
	if len(d.Endpoints)+len(d.GoneEndpoints) > 0 {
		j.index()
	}
	out := Concern{All: d.Host != nil || hostGone}
	for i, e := range j.prog.Endpoints {
		if _, changed := links[i]; !changed && !asks(&e, chains) {
			continue
		}
		if e.ID.Kind == model.EndpointHost || len(grants(&e)) > 0 {
			out.All = true
		}
		out.Addrs = append(out.Addrs, e.Addresses...)
	}
	for _, a := range left { // somebody else answers for it from now on
		if _, owned := j.owners[a]; owned || j.hosts {
			out.Addrs = append(out.Addrs, a)
		}
	}
	if out.All {
		out.Addrs = nil
	}
	slices.SortFunc(out.Addrs, netip.Addr.Compare)
	out.Addrs = slices.Compact(out.Addrs)
	return out, nil
}

// Trace says what the rules that stand in the kernel do with a packet.
func (j *Judge) Trace(p trace.Packet) trace.Result {
	j.mu.Lock()
	defer j.mu.Unlock()
	return trace.Trace(j.prog, p)
}

// Verdict judges a flow; a Cutter calls it. A flow of which neither end is a workload of
// this node is one that the host sends on, or its own: if no host endpoint forbids it, it
// passes, so that none stays cut that nothing forbids. To clear what a workload that is gone left
// behind does no harm: nobody is there, and whoever gets its address has the rest forgotten.
func (j *Judge) Verdict(f *Flow) Verdict {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.lost {
		return Leave
	}
	in, out := j.side(f.Source.Addr(), f.FromHost), j.side(f.Destination.Addr(), f.ToHost)
	if j.gone(in) || j.gone(out) {
		return Leave
	}
	p := trace.Packet{
		Src: f.Source.Addr(), Dst: f.Destination.Addr(), SrcPort: f.Source.Port(), DstPort: f.Destination.Port(),
		Protocol: f.Protocol, ICMPType: f.ICMPType, ICMPCode: f.ICMPCode, In: in, Out: out,
	}
	if f.First != f.Destination {
		p.FirstDst, p.FirstDstPort = f.First.Addr(), f.First.Port()
	}
	if trace.Allowed(j.prog, p) {
		return Pass
	}
	return Cut
}

// side says by which interface the host reaches an end of a flow.
func (j *Judge) side(a netip.Addr, host bool) string {
	if link, owned := j.owners[a]; owned {
		return link
	}
	if host {
		return ""
	}
	if j.route == nil || !j.links && !slices.ContainsFunc(j.granted, func(n netip.Prefix) bool { return n.Contains(a) }) {
		return elsewhere
	}
	if time.Since(j.asked) > routesLast {
		j.asked, j.routes = time.Now(), map[netip.Addr]string{}
	}
	link, known := j.routes[a]
	if !known {
		link = cmp.Or(j.route(a), elsewhere)
		j.routes[a] = link
	}
	return link
}

// gone reports whether an interface is that of a workload without rules.
func (j *Judge) gone(link string) bool {
	_, there := j.prog.Endpoints[link]
	return !there && strings.HasPrefix(link, trace.WorkloadPrefix)
}

func (j *Judge) unname(id policy.ChainID) {
	old, there := j.prog.Chains[id]
	if !there {
		return
	}
	for _, s := range old.Sets() {
		delete(j.named[s], id)
		if len(j.named[s]) == 0 {
			delete(j.named, s)
		}
	}
}

func (j *Judge) index() {
	clear(j.owners)
	j.granted, j.hosts, j.links = nil, false, false
	for link, e := range j.prog.Endpoints {
		if e.ID.Kind == model.EndpointHost {
			j.hosts = true
			j.links = j.links || link != elsewhere
			continue
		}
		for _, a := range e.Addresses {
			if other, twice := j.owners[a]; !twice || link < other {
				j.owners[a] = link
			}
		}
		j.granted = append(j.granted, grants(&e)...)
	}
}

// grants are what a workload may send from beside its addresses.
func grants(e *policy.Endpoint) []netip.Prefix {
	var out []netip.Prefix
	for _, n := range e.Sources {
		if !n.IsSingleIP() || !slices.Contains(e.Addresses, n.Addr()) {
			out = append(out, n)
		}
	}
	return out
}

// asks reports whether one of the chains has a say on packets of the endpoint.
func asks(e *policy.Endpoint, chains map[policy.ChainID]struct{}) bool {
	if len(chains) == 0 {
		return false
	}
	for _, path := range e.Paths() {
		for _, tier := range path.Tiers {
			for _, id := range tier.Chains {
				if _, ok := chains[id]; ok {
					return true
				}
			}
		}
	}
	return false
}
