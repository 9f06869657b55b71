package controller

import (
	"maps"
	"slices"
	"time"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/internal/watch"
)

// view is what the pools and the configuration of IPAM mean together. It is immutable.
type view struct {
	snap        *model.Snapshot
	pools       []model.Pool // in force, sorted by name
	terminating map[string]bool
	standing    map[string]standing // of every pool, in force or not
}

// Reasons of the condition Allocatable: Calico's, and Invalid, which is ours.
const (
	reasonOK          = "OK"
	reasonDisabled    = "PoolDisabled"
	reasonTerminating = "Terminating"
	reasonOverlap     = "CIDROverlap"
	reasonInvalid     = "Invalid"
)

// standing says whether a pool gives addresses.
type standing struct {
	reason, message string
	inForce         bool // it is valid and wins over those that it overlaps
}

// newView decides as the agents do, with their own code: internal/watch says which objects
// are valid and which of two pools that overlap is in force.
func newView(pools []*v3.IPPool, config []*v3.IPAMConfiguration, reservations []*v3.IPReservation) *view {
	v := &view{terminating: map[string]bool{}, standing: map[string]standing{}}
	var in watch.Input
	add := func(o *watch.Object) { in.Objects = append(in.Objects, watch.Sourced{Object: o}) }
	for _, p := range pools {
		add(watch.Check(p, watch.Options{}))
	}
	for _, c := range config {
		add(watch.Check(c, watch.Options{}))
	}
	for _, r := range reservations {
		add(watch.Check(r, watch.Options{}))
	}
	v.snap = watch.Build(in, watch.Options{})
	v.pools = v.snap.Pools
	valid := map[string]bool{}
	for _, o := range in.Objects {
		if o.Key.Kind == v3.KindIPPool {
			valid[o.Key.Name] = o.Valid()
		}
	}
	for _, p := range pools {
		if p.DeletionTimestamp != nil {
			v.terminating[p.Name] = true
		}
		v.standing[p.Name] = v.stand(p, valid[p.Name])
	}
	return v
}

func (v *view) stand(p *v3.IPPool, valid bool) standing {
	s := standing{inForce: v.pool(p.Name) != nil}
	switch {
	case !valid:
		s.reason, s.message = reasonInvalid, v.problem(p.Name)
	case p.DeletionTimestamp != nil:
		s.reason, s.message = reasonTerminating, "The pool is being deleted; it goes when no block of it is left."
	case !s.inForce:
		s.reason, s.message = reasonOverlap, v.problem(p.Name)
	case p.Spec.Disabled:
		s.reason, s.message = reasonDisabled, ".spec.disabled is true; addresses in use live on."
	default:
		s.reason, s.message = reasonOK, "The pool gives addresses."
	}
	return s
}

// problem returns what keeps a pool from being in force.
func (v *view) problem(name string) string {
	for _, p := range v.snap.Problems {
		if p.Object.Kind == v3.KindIPPool && p.Object.Name == name && !p.Ignored {
			return p.Field + " " + p.Message
		}
	}
	return "The pool is not in force."
}

// pool returns a pool in force, or nil.
func (v *view) pool(name string) *model.Pool {
	i := slices.IndexFunc(v.pools, func(p model.Pool) bool { return p.Name == name })
	if i < 0 {
		return nil
	}
	return &v.pools[i]
}

// gives reports whether new addresses may be taken from a pool in force.
func (v *view) gives(p *model.Pool) bool { return !p.Disabled && !v.terminating[p.Name] }

func (v *view) cooldown() time.Duration { return v.snap.IPAM.Cooldown }

// differs returns the names of pools whose standing is not what it was in o.
func (v *view) differs(o *view) []string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(v.standing)) {
		if o == nil || o.standing[name] != v.standing[name] {
			out = append(out, name)
		}
	}
	return out
}
