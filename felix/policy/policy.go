// Package policy owns what policies mean for this node: endpoints, namespaces, network
// sets, services, tiers and policies go in; the rules and sets that a packet filter needs for
// the local endpoints come out, as a Delta each time. It is pure and incremental: it
// knows no kernel, no clock and no goroutine, and a change costs what it touches (I8).
//
// How it keeps that promise: objects whom all selectors see alike are one group, and an index
// says which selectors match which groups (index.go). The subjects of all policies are
// kept up to date for local endpoints only; the selectors in rules for all endpoints, but only
// those of policies that select a local endpoint. Whatever a change reaches is marked and made
// again by Flush, which says what differs from what it said before.
package policy

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"

	"github.com/causeway-net/causeway/internal/model"
)

// Config says how an Engine works. Its zero value is good.
type Config struct {
	LogPrefix    string // of packets that a rule logs; default "calico-packet"
	LogPerMinute int    // packets that one rule logs a minute at most; default 60
	LogBurst     int    // and at once; default 10
	// FanLeast is how many chains in a row a Fan stands for at least. Default 16: a shorter one costs
	// a packet no less than the chains do.
	FanLeast int
}

// Engine computes the node's policy. It is not safe for concurrent use.
//
// Setters take an object's newest version and remember it, whether it changed or not; they
// keep nothing of the maps and slices they are given. What they change comes out of the
// next Flush.
type Engine struct {
	log      *LogOptions
	fanLeast int

	parents                parents
	peers, subjects, nodes *index

	tiers     map[string]*tier
	policies  map[model.PolicyID]*policy
	endpoints map[model.PolicyEndpointID]*endpoint
	netsets   map[model.NetworkSetID]*item
	nodeItems map[string]*item
	services  map[model.ServiceID]*service
	host      model.HostPolicy
	hostNew   bool

	byInterface map[string][]*endpoint // local ones, by ID; the first has the interface
	shown       map[string]*Endpoint   // by interface, as the backend has it
	sets        map[definition]*set
	seen        [2]bool // an address of the family was ever seen: before, selectors match none
	seenNew     bool

	dirtyPolicies   map[*policy]struct{}
	dirtyInterfaces map[string]struct{}
	dirtySets       map[*set]struct{}
	flushes         uint64
}

type tier struct {
	model.Tier
	builtin model.Tier // what it is without an object; no name: nothing
	gone    bool       // the object is gone, and policies in force are in it
	uses    int        // policies in force
}

// policy is what is known under one ID.
type policy struct {
	id model.PolicyID
	// now is the version in force, nil when there never was one. subject is its own in the
	// index.
	now     *compiled
	subject *sel
	locals  int // local endpoints that it holds for
	// waiting is a newer version whose tier is not there; problems say what is wrong
	// with the newest version.
	waiting  *compiled
	problems []model.Problem
	gone     bool // removed; the next Flush forgets it

	// As of the last Flush: used are the sets it counts as a user of, of the version shown.
	shown  *compiled // nil: not in the kernel
	used   []usedSet
	chains [2]*Chain
	asked  [2]asked // by chains
}

// usedSet is a set in one family.
type usedSet struct {
	set *set
	fam int
}

// endpoint is an endpoint in both indexes.
type endpoint struct {
	id       model.PolicyEndpointID
	iface    string // of a local one
	unknown  bool
	profiles bool           // of a host: they allow what no tier decides
	sources  []netip.Prefix // local ones
	item     item           // in peers
	here     *item          // in subjects; nil for remote ones
}

type service struct {
	endpoints []model.ServiceEndpoint // sorted, without duplicates
	known     bool
	sets      []*set
}

// New makes an Engine that knows nothing but the three tiers that are always there.
func New(cfg Config) *Engine {
	e := &Engine{
		log:      &LogOptions{Prefix: cmp.Or(cfg.LogPrefix, "calico-packet"), PerMinute: cmp.Or(cfg.LogPerMinute, 60), Burst: cmp.Or(cfg.LogBurst, 10)},
		fanLeast: cmp.Or(cfg.FanLeast, 16),
		parents:  parents{namespaces: map[string]*labelled{}, accounts: map[accountKey]*labelled{}},
		tiers:    map[string]*tier{}, policies: map[model.PolicyID]*policy{}, endpoints: map[model.PolicyEndpointID]*endpoint{},
		netsets: map[model.NetworkSetID]*item{}, nodeItems: map[string]*item{}, services: map[model.ServiceID]*service{},
		byInterface: map[string][]*endpoint{}, shown: map[string]*Endpoint{}, sets: map[definition]*set{},
		dirtyPolicies: map[*policy]struct{}{}, dirtyInterfaces: map[string]struct{}{}, dirtySets: map[*set]struct{}{},
	}
	e.peers = newIndex(&e.parents, e.peerMoved)
	e.nodes = newIndex(&e.parents, e.peerMoved)
	e.subjects = newIndex(&e.parents, e.subjectMoved)
	for _, t := range []model.Tier{
		{Name: model.TierAdmin, Order: 1000, DefaultAction: model.RulePass},
		{Name: model.TierDefault, Order: 1000000, DefaultAction: model.RuleDeny},
		{Name: model.TierBaseline, Order: 10000000, DefaultAction: model.RulePass},
	} {
		e.tiers[t.Name] = &tier{Tier: t, builtin: t}
	}
	return e
}

// peerMoved hears that an item begins or ceases to match a selector of rules.
func (e *Engine) peerMoved(s *sel, it *item, in bool) {
	for _, set := range s.sets {
		set.move(it, in)
		e.dirtySets[set] = struct{}{}
	}
}

// subjectMoved hears that a local endpoint begins or ceases to match a subject.
func (e *Engine) subjectMoved(s *sel, it *item, in bool) {
	for _, p := range s.policies {
		if p.now.holdsFor(it.endpoint) {
			e.count(p, in)
			e.dirtyInterfaces[it.endpoint.iface] = struct{}{}
		}
	}
}

func (e *Engine) count(p *policy, in bool) {
	if in {
		p.locals++
	} else {
		p.locals--
	}
	if p.locals == 0 || p.locals == 1 && in {
		e.dirtyPolicies[p] = struct{}{}
	}
}

// holdsFor says whether the policy holds for an endpoint that its subject matches.
func (c *compiled) holdsFor(ep *endpoint) bool {
	if ep.id.Kind == model.EndpointHost {
		return c.hostsToo
	}
	return c.layer == LayerFilter
}

// SetTier adds or changes a tier. Policies that waited for it come into force.
func (e *Engine) SetTier(t model.Tier) error {
	if t.DefaultAction != model.RuleDeny && t.DefaultAction != model.RulePass {
		return &Invalid{[]model.Problem{{Object: model.Object{Kind: "Tier", Name: t.Name}, Field: ".spec.defaultAction", Message: fmt.Sprintf("is %q; must be Deny or Pass", t.DefaultAction)}}}
	}
	if math.IsNaN(t.Order) {
		return &Invalid{[]model.Problem{{Object: model.Object{Kind: "Tier", Name: t.Name}, Field: ".spec.order", Message: "is not a number; must be one"}}}
	}
	have := e.tiers[t.Name]
	if have == nil {
		e.tiers[t.Name] = &tier{Tier: t}
		e.admit(t.Name)
		return nil
	}
	changed := have.Tier != t
	have.Tier = t
	if have.gone {
		have.gone = false
		e.admit(t.Name)
	}
	if changed && have.uses > 0 {
		e.allInterfaces()
	}
	return nil
}

// RemoveTier removes a tier. Policies in it stay in force as they are, and no other can
// come into it; the tiers that are always there go back to what they are without an object.
func (e *Engine) RemoveTier(name string) {
	t := e.tiers[name]
	switch {
	case t == nil:
	case t.builtin.Name != "":
		if t.Tier != t.builtin {
			t.Tier = t.builtin
			e.allInterfaces()
		}
	case t.uses > 0:
		t.gone = true
	default:
		delete(e.tiers, name)
	}
}

// admit brings policies into force that waited for the tier.
func (e *Engine) admit(name string) {
	for _, p := range e.policies {
		if w := p.waiting; w != nil && w.tier == name {
			p.waiting, p.problems = nil, nil
			e.enforce(p, w)
		}
	}
}

func (e *Engine) allInterfaces() {
	for i := range e.byInterface {
		e.dirtyInterfaces[i] = struct{}{}
	}
}

// SetPolicy adds or changes a policy. A version that is not valid (the error is then an
// *Invalid) changes nothing: the last valid one stays in force. A version whose tier is not there is
// such, too, but comes into force by itself when the tier does.
func (e *Engine) SetPolicy(m model.Policy) error {
	p := e.policies[m.ID]
	if p == nil {
		p = &policy{id: m.ID}
		e.policies[m.ID] = p
	}
	p.gone, p.waiting, p.problems = false, nil, nil
	c, err := compile(&m)
	if err != nil {
		var invalid *Invalid
		if errors.As(err, &invalid) {
			p.problems = invalid.Problems
		}
		return err
	}
	if t := e.tiers[c.tier]; t == nil || t.gone && (p.now == nil || p.now.tier != c.tier) {
		p.waiting = c
		p.problems = []model.Problem{{Object: m.ID.Object(), Field: ".spec.tier", Message: fmt.Sprintf("is %s, which is not there; must be the name of a Tier", c.tier)}}
		return &Invalid{p.problems}
	}
	e.enforce(p, c)
	return nil
}

// RemovePolicy removes a policy with all its versions.
func (e *Engine) RemovePolicy(id model.PolicyID) {
	p := e.policies[id]
	if p == nil {
		return
	}
	p.gone, p.waiting, p.problems = true, nil, nil
	e.dirtyPolicies[p] = struct{}{}
	if p.now != nil {
		e.enforce(p, nil)
	}
}

// enforce puts a version in force, nil for none.
func (e *Engine) enforce(p *policy, c *compiled) {
	was := p.now
	e.dirtyPolicies[p] = struct{}{}
	if c != nil && was != nil && was.placedLike(c) {
		p.now = c
		return
	}
	if c != nil {
		e.tiers[c.tier].uses++ // before the old version is let go: it may be the last that holds on to the same tier
	}
	if was != nil {
		e.leave(p)
		e.release(was.tier)
	}
	if p.now = c; c == nil {
		return
	}
	p.subject = e.subjects.sel(c.subject)
	p.subject.policies = append(p.subject.policies, p)
	for g := range p.subject.groups {
		for _, it := range g.items {
			e.subjectOf(p, it, true)
		}
	}
}

// leave takes the version in force away from the endpoints.
func (e *Engine) leave(p *policy) {
	s := p.subject
	for g := range s.groups {
		for _, it := range g.items {
			e.subjectOf(p, it, false)
		}
	}
	p.subject = nil
	if s.policies = slices.DeleteFunc(s.policies, func(o *policy) bool { return o == p }); len(s.policies) == 0 {
		e.subjects.drop(s)
	}
}

func (e *Engine) subjectOf(p *policy, it *item, in bool) {
	if p.now.holdsFor(it.endpoint) {
		e.count(p, in)
		e.dirtyInterfaces[it.endpoint.iface] = struct{}{}
	}
}

// release counts one policy less in the tier.
func (e *Engine) release(name string) {
	t := e.tiers[name]
	if t.uses--; t.uses == 0 && t.gone {
		delete(e.tiers, name)
	}
}

// placedLike reports whether endpoints ask both in the same place.
func (c *compiled) placedLike(o *compiled) bool {
	return c.tier == o.tier && c.order == o.order && c.holds == o.holds && c.layer == o.layer && c.forward == o.forward &&
		c.staged == o.staged && c.hostsToo == o.hostsToo && c.subject.String() == o.subject.String()
}

// SetHost sets what holds for every host endpoint of the node.
func (e *Engine) SetHost(h model.HostPolicy) {
	h.FailsafeIn, h.FailsafeOut = slices.Clone(h.FailsafeIn), slices.Clone(h.FailsafeOut)
	if slices.Equal(h.FailsafeIn, e.host.FailsafeIn) && slices.Equal(h.FailsafeOut, e.host.FailsafeOut) && h.EndpointToHost == e.host.EndpointToHost {
		return
	}
	e.host, e.hostNew = h, true
}

// NeedsRemotePods reports whether a policy in force here, as of the last Flush, selects pods
// that may be anywhere. Until those are known the policy's sets lack them.
func (e *Engine) NeedsRemotePods() bool {
	for _, p := range e.policies {
		if p.shown != nil && p.shown.remotePods {
			return true
		}
	}
	return false
}

// Problems lists what is not in force and what is not acted on, by object and field.
func (e *Engine) Problems() []model.Problem {
	var out []model.Problem
	for id, p := range e.policies {
		out = append(out, p.problems...)
		if p.now == nil {
			continue
		}
		out = append(out, p.now.notes...)
		if e.tiers[p.now.tier].gone {
			out = append(out, model.Problem{Object: id.Object(), Field: ".spec.tier", Message: fmt.Sprintf("is %s, which is gone; the policy stays in force as it was. Must be the name of a Tier", p.now.tier), Ignored: true})
		}
	}
	for i, of := range e.byInterface {
		for _, ep := range of[1:] {
			kind := "Pod"
			if ep.id.Kind == model.EndpointHost {
				kind = "HostEndpoint"
			}
			out = append(out, model.Problem{Object: model.Object{Kind: kind, Namespace: ep.id.Namespace, Name: ep.id.Name}, Field: ".spec.interfaceName",
				Message: fmt.Sprintf("is %s, which %s has; must be an interface that no other endpoint has", i, of[0].id)})
		}
	}
	slices.SortFunc(out, func(a, b model.Problem) int {
		return cmp.Or(strings.Compare(a.Object.Kind, b.Object.Kind), strings.Compare(a.Object.Namespace, b.Object.Namespace),
			strings.Compare(a.Object.Name, b.Object.Name), strings.Compare(a.Field, b.Field), strings.Compare(a.Message, b.Message))
	})
	return out
}
