package gobgp

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	api "github.com/osrg/gobgp/v3/api"
	"google.golang.org/protobuf/proto"

	"github.com/causeway-net/causeway/bgp"
	"github.com/causeway-net/causeway/internal/model"
)

// The export policy (DESIGN §4.9): what the node owns goes to every peer; what an eBGP peer told
// goes to internal peers only, so that a server is no transit; what a client told does not go to
// other route reflectors of the cluster; the rest is as BGP has it. Peers
// are told apart by neighbor sets. The set of internal peers is the one that allows: a peer that
// someone adds by hand gets no transit.
//
// The import policy: this node's own addresses are learned from nobody. What an eBGP peer tells
// of the address of another node on the same subnet is marked NO_ADVERTISE (RFC 1997) and so
// passed on to nobody: others on the subnet would send to the peer what is for the node. The mark
// stands on the path, and not only in the export policy, since GoBGP withdraws what was passed on
// before when the path changes, and not when the policy does. What came with that mark is not
// passed on either.

// classes are the neighbor sets, each sorted.
type classes struct {
	internal []string // sessions that may carry what eBGP peers told
	cluster  []string // route reflectors of our own cluster
	self     []string // nextHopMode Self
	keep     []string // nextHopMode Keep
	own      []string // addresses of this node
	near     []string // addresses of nodes on its subnets
}

func (c classes) equal(o classes) bool {
	return slices.Equal(c.internal, o.internal) && slices.Equal(c.cluster, o.cluster) && slices.Equal(c.self, o.self) && slices.Equal(c.keep, o.keep) &&
		slices.Equal(c.own, o.own) && slices.Equal(c.near, o.near)
}

func classify(s *bgp.Speaker) classes {
	var c classes
	for _, p := range s.Peers {
		h := host(p.Addr)
		if p.IBGP() {
			c.internal = append(c.internal, h)
		}
		if p.SameCluster {
			c.cluster = append(c.cluster, h)
		}
		switch p.NextHopMode {
		case model.NextHopSelf:
			c.self = append(c.self, h)
		case model.NextHopKeep:
			c.keep = append(c.keep, h)
		}
	}
	for _, a := range s.Own {
		c.own = append(c.own, host(a))
	}
	for _, a := range s.Near {
		c.near = append(c.near, host(a))
	}
	return c
}

// appliedPolicy is what stands in the speaker. GoBGP's policies keep pointing at the sets they
// were made with, so every change makes new sets and a new policy, under names with a higher
// generation, switches over in one step, and deletes the old ones.
type appliedPolicy struct {
	generation  int // 0: none yet
	classes     classes
	fingerprint string // of what the speaker showed right after the switch; empty: not to be trusted
}

const policyPrefix = "causeway-"

// nobody stands in every neighbor set: an empty one matches everybody.
const nobody = "0.0.0.0/32"

// noAdvertise is the community NO_ADVERTISE (RFC 1997).
const noAdvertise = "65535:65282"

func exportName(generation int) string { return fmt.Sprintf("%sexport-%d", policyPrefix, generation) }
func importName(generation int) string { return fmt.Sprintf("%simport-%d", policyPrefix, generation) }

// ofGeneration reports whether the policy or set of that name was made in the generation.
func ofGeneration(name string, generation int) bool {
	for _, p := range []string{exportName(generation), importName(generation)} {
		if name == p || strings.HasPrefix(name, p+"-") {
			return true
		}
	}
	return false
}

func importPolicy(generation int, c classes) (sets []*api.DefinedSet, policy *api.Policy) {
	name := importName(generation)
	policy = &api.Policy{Name: name}
	for _, s := range []struct {
		what   string
		of     []string
		typ    api.Conditions_RouteType
		action *api.Actions
	}{
		{"own", c.own, api.Conditions_ROUTE_TYPE_NONE, &api.Actions{RouteAction: api.RouteAction_REJECT}},
		{"near", c.near, api.Conditions_ROUTE_TYPE_EXTERNAL, &api.Actions{
			Community: &api.CommunityAction{Type: api.CommunityAction_ADD, Communities: []string{noAdvertise}},
		}},
	} {
		// A prefix set is of one family. An empty one would match nothing.
		families := map[string][]*api.Prefix{}
		for _, h := range s.of {
			p := netip.MustParsePrefix(h)
			f := "ipv4"
			if p.Addr().Is6() {
				f = "ipv6"
			}
			families[f] = append(families[f], &api.Prefix{IpPrefix: h, MaskLengthMin: uint32(p.Bits()), MaskLengthMax: uint32(p.Bits())})
		}
		for _, f := range slices.Sorted(maps.Keys(families)) {
			n := name + "-" + s.what + "-" + f
			sets = append(sets, &api.DefinedSet{DefinedType: api.DefinedType_PREFIX, Name: n, Prefixes: families[f]})
			policy.Statements = append(policy.Statements, &api.Statement{
				Name:       n,
				Conditions: &api.Conditions{PrefixSet: &api.MatchSet{Type: api.MatchSet_ANY, Name: n}, RouteType: s.typ},
				Actions:    s.action,
			})
		}
	}
	return sets, policy
}

func exportPolicy(generation int, c classes) (sets []*api.DefinedSet, policy *api.Policy) {
	name := exportName(generation)
	marked := name + "-no-advertise"
	sets = append(sets, &api.DefinedSet{DefinedType: api.DefinedType_COMMUNITY, Name: marked, List: []string{noAdvertise}})
	set := func(what string, list []string) string {
		n := name + "-" + what
		sets = append(sets, &api.DefinedSet{DefinedType: api.DefinedType_NEIGHBOR, Name: n, List: append([]string{nobody}, list...)})
		return n
	}
	match := func(t api.MatchSet_Type, set string) *api.MatchSet { return &api.MatchSet{Type: t, Name: set} }
	policy = &api.Policy{Name: name, Statements: []*api.Statement{
		{
			Name: name + "-no-transit",
			Conditions: &api.Conditions{
				NeighborSet: match(api.MatchSet_INVERT, set("internal", c.internal)),
				RouteType:   api.Conditions_ROUTE_TYPE_EXTERNAL,
			},
			Actions: &api.Actions{RouteAction: api.RouteAction_REJECT},
		}, {
			Name: marked,
			Conditions: &api.Conditions{
				CommunitySet: &api.MatchSet{Type: api.MatchSet_ANY, Name: marked},
				RouteType:    api.Conditions_ROUTE_TYPE_EXTERNAL,
			},
			Actions: &api.Actions{RouteAction: api.RouteAction_REJECT},
		}, {
			// GoBGP v3 reflects to a peer that is no client without ORIGINATOR_ID and
			// CLUSTER_LIST, so that the other reflector would not know to drop it.
			Name: name + "-no-reflection-within-the-cluster",
			Conditions: &api.Conditions{
				NeighborSet: match(api.MatchSet_ANY, set("cluster", c.cluster)),
				RouteType:   api.Conditions_ROUTE_TYPE_INTERNAL,
			},
			Actions: &api.Actions{RouteAction: api.RouteAction_REJECT},
		}, {
			Name:       name + "-next-hop-self",
			Conditions: &api.Conditions{NeighborSet: match(api.MatchSet_ANY, set("self", c.self))},
			Actions:    &api.Actions{Nexthop: &api.NexthopAction{Self: true}},
		}, {
			Name:       name + "-next-hop-keep",
			Conditions: &api.Conditions{NeighborSet: match(api.MatchSet_ANY, set("keep", c.keep))},
			Actions:    &api.Actions{Nexthop: &api.NexthopAction{Unchanged: true}},
		},
	}}
	return sets, policy
}

// applyPolicy makes the policy match the desired peers. A change of the sets bounces nothing:
// who is internal changes only with a new session, and whose next hop mode changed is sent the
// routes again.
func (l *life) applyPolicy(ctx context.Context, want *bgp.Speaker) error {
	c := classify(want)
	p := &l.policy
	drift := p.generation > 0 && p.fingerprint == ""
	if p.generation > 0 && !drift && p.classes.equal(c) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	// A failed attempt may have left sets and statements of its generation behind.
	p.generation++
	name := exportName(p.generation)
	sets, export := exportPolicy(p.generation, c)
	more, imports := importPolicy(p.generation, c)
	sets = append(sets, more...)
	for _, s := range sets {
		if _, err := l.client.AddDefinedSet(ctx, &api.AddDefinedSetRequest{DefinedSet: s, Replace: true}); err != nil {
			return fmt.Errorf("policy %s: AddDefinedSet: %w", name, err)
		}
	}
	for _, x := range []*api.Policy{export, imports} {
		if _, err := l.client.AddPolicy(ctx, &api.AddPolicyRequest{Policy: x}); err != nil {
			return fmt.Errorf("policy %s: AddPolicy: %w", x.Name, err)
		}
	}
	for _, a := range []*api.PolicyAssignment{
		{Name: "global", Direction: api.PolicyDirection_EXPORT, Policies: []*api.Policy{{Name: name}}, DefaultAction: api.RouteAction_ACCEPT},
		{Name: "global", Direction: api.PolicyDirection_IMPORT, Policies: []*api.Policy{{Name: imports.Name}}, DefaultAction: api.RouteAction_ACCEPT},
	} {
		if _, err := l.client.SetPolicyAssignment(ctx, &api.SetPolicyAssignmentRequest{Assignment: a}); err != nil {
			return fmt.Errorf("policy %s: SetPolicyAssignment: %w", name, err)
		}
	}
	old := p.classes
	p.classes = c
	err := l.sweepPolicies(ctx, p.generation)
	if p.fingerprint, _ = l.policyFingerprint(ctx); p.fingerprint == "" {
		err = errors.Join(err, fmt.Errorf("policy %s: it cannot be read back", name))
	}
	if drift {
		return errors.Join(err, l.resendAll(ctx))
	}
	return errors.Join(err, l.resend(ctx, old, c), l.reconsider(ctx, old, c))
}

// sweepPolicies deletes our policies and sets of other generations.
func (l *life) sweepPolicies(ctx context.Context, keep int) error {
	var errs []error
	var policies []*api.Policy
	s, err := l.client.ListPolicy(ctx, &api.ListPolicyRequest{})
	errs = append(errs, list(s, err, func(x *api.ListPolicyResponse) { policies = append(policies, x.Policy) }))
	for _, p := range policies {
		if strings.HasPrefix(p.Name, policyPrefix) && !ofGeneration(p.Name, keep) {
			_, err := l.client.DeletePolicy(ctx, &api.DeletePolicyRequest{Policy: &api.Policy{Name: p.Name}, All: true})
			errs = append(errs, err)
		}
	}
	var sets []*api.DefinedSet
	for _, t := range setTypes {
		d, err := l.client.ListDefinedSet(ctx, &api.ListDefinedSetRequest{DefinedType: t})
		errs = append(errs, list(d, err, func(x *api.ListDefinedSetResponse) { sets = append(sets, x.DefinedSet) }))
	}
	for _, x := range sets {
		if strings.HasPrefix(x.Name, policyPrefix) && !ofGeneration(x.Name, keep) {
			_, err := l.client.DeleteDefinedSet(ctx, &api.DeleteDefinedSetRequest{DefinedSet: &api.DefinedSet{DefinedType: x.DefinedType, Name: x.Name}, All: true})
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("old policies: %w", err)
	}
	return nil
}

// setTypes are the types of the sets that our policies use.
var setTypes = []api.DefinedType{api.DefinedType_NEIGHBOR, api.DefinedType_PREFIX, api.DefinedType_COMMUNITY}

// policyFingerprint is the text of all that has a say in what is exported and imported.
func (l *life) policyFingerprint(ctx context.Context) (string, error) {
	var b strings.Builder
	marshal := proto.MarshalOptions{Deterministic: true}
	put := func(m proto.Message) {
		x, _ := marshal.Marshal(m)
		b.Write(x)
	}
	a, err := l.client.ListPolicyAssignment(ctx, &api.ListPolicyAssignmentRequest{Name: "global"})
	err = list(a, err, func(x *api.ListPolicyAssignmentResponse) { put(x.Assignment) })
	if err != nil {
		return "", fmt.Errorf("ListPolicyAssignment: %w", err)
	}
	var sets []*api.DefinedSet
	for _, t := range setTypes {
		d, err := l.client.ListDefinedSet(ctx, &api.ListDefinedSetRequest{DefinedType: t})
		err = list(d, err, func(x *api.ListDefinedSetResponse) {
			if strings.HasPrefix(x.DefinedSet.Name, policyPrefix) {
				sets = append(sets, x.DefinedSet)
			}
		})
		if err != nil {
			return "", fmt.Errorf("ListDefinedSet: %w", err)
		}
	}
	slices.SortFunc(sets, func(a, b *api.DefinedSet) int { return strings.Compare(a.Name, b.Name) })
	for _, s := range sets {
		put(s)
	}
	return b.String(), nil
}

// observePolicy notices what someone else changed.
func (l *life) observePolicy(ctx context.Context) error {
	if l.policy.generation == 0 || l.policy.fingerprint == "" {
		return nil
	}
	f, err := l.policyFingerprint(ctx)
	if err != nil {
		return err
	}
	if f != l.policy.fingerprint {
		l.log.Warn("routing policy was changed behind the agent's back; mending that")
		l.policy.fingerprint = ""
	}
	return nil
}

// resend sends the routes again to the peers whose next hop mode changed.
func (l *life) resend(ctx context.Context, old, now classes) error {
	var errs []error
	for a := range l.peers {
		h := host(a)
		in := func(c classes) [2]bool { return [2]bool{slices.Contains(c.self, h), slices.Contains(c.keep, h)} }
		if in(old) != in(now) {
			errs = append(errs, l.softReset(ctx, a, api.ResetPeerRequest_OUT))
		}
	}
	return errors.Join(errs...)
}

// reconsider runs what peers told through the import policy again where it changed its mind
// about something that they told. That is rare: it needs a peer that announces a node's address.
func (l *life) reconsider(ctx context.Context, old, now classes) error {
	var again []netip.Addr
	if !slices.Equal(old.own, now.own) {
		again = sortedAddrs(l.peers)
	} else if told, err := l.tellers(ctx, symmetricDifference(old.near, now.near)); err != nil {
		return err
	} else {
		for _, a := range told {
			if p, ok := l.peers[a]; ok && !p.IBGP() {
				again = append(again, a)
			}
		}
	}
	var errs []error
	for _, a := range again {
		errs = append(errs, l.softReset(ctx, a, api.ResetPeerRequest_IN))
	}
	return errors.Join(errs...)
}

// tellers returns the peers that have a path to one of the prefixes in the speaker's table.
func (l *life) tellers(ctx context.Context, prefixes []string) ([]netip.Addr, error) {
	lookups := map[bool][]*api.TableLookupPrefix{}
	for _, p := range prefixes {
		v6 := netip.MustParsePrefix(p).Addr().Is6()
		lookups[v6] = append(lookups[v6], &api.TableLookupPrefix{Prefix: p})
	}
	found := map[netip.Addr]struct{}{}
	for v6, ask := range lookups {
		s, err := l.client.ListPath(ctx, &api.ListPathRequest{TableType: api.TableType_GLOBAL, Family: familyOf(v6), Prefixes: ask})
		err = list(s, err, func(x *api.ListPathResponse) {
			for _, p := range x.Destination.GetPaths() {
				if a, err := netip.ParseAddr(p.NeighborIp); err == nil {
					found[a.Unmap()] = struct{}{}
				}
			}
		})
		if err != nil {
			return nil, fmt.Errorf("ListPath: %w", err)
		}
	}
	return sortedAddrs(found), nil
}

// symmetricDifference lists what stands in one of two lists.
func symmetricDifference(a, b []string) []string {
	in := map[string]int{}
	for _, s := range a {
		in[s]++
	}
	for _, s := range b {
		in[s]--
	}
	maps.DeleteFunc(in, func(_ string, n int) bool { return n == 0 })
	return slices.Sorted(maps.Keys(in))
}

// resendAll repairs what a foreign policy may have done. A soft reset does not withdraw what
// should not have been sent, so sessions that may have been made a transit are reset hard.
func (l *life) resendAll(ctx context.Context) error {
	external := 0
	for _, p := range l.peers {
		if !p.IBGP() {
			external++
		}
	}
	var errs []error
	for a, p := range l.peers {
		if p.IBGP() || external < 2 {
			errs = append(errs, l.softReset(ctx, a, api.ResetPeerRequest_BOTH))
			continue
		}
		if _, err := l.client.ResetPeer(ctx, &api.ResetPeerRequest{Address: a.String(), Communication: "routing policy restored"}); err != nil {
			errs = append(errs, fmt.Errorf("peer %s: ResetPeer: %w", a, err))
		}
	}
	return errors.Join(errs...)
}

func (l *life) softReset(ctx context.Context, a netip.Addr, d api.ResetPeerRequest_SoftResetDirection) error {
	if _, err := l.client.ResetPeer(ctx, &api.ResetPeerRequest{Address: a.String(), Soft: true, Direction: d}); err != nil {
		return fmt.Errorf("peer %s: ResetPeer: %w", a, err)
	}
	return nil
}
