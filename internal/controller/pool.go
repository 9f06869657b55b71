package controller

import (
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v3 "github.com/causeway-net/causeway/api/v3"
)

// Conditions of an IPPool. Allocatable is Calico's, Exhausted is ours.
const (
	conditionAllocatable = "Allocatable"
	conditionExhausted   = "Exhausted"

	reasonNoFreeAddress = "NoFreeAddress"
	reasonFreeAddresses = "FreeAddresses"
)

// poolFinalizer keeps a pool that is deleted until no block of it is left, as Calico does
// and under Calico's name: its addresses are still in use, and how they are reached
// (encapsulation, NAT, export) is the pool's to say.
const poolFinalizer = "projectcalico.org/ippool-finalizer"

func prefix(s string) (netip.Prefix, bool) {
	p, err := netip.ParsePrefix(s)
	return p.Masked(), err == nil
}

// usage says how much of a pool is in use.
type usage struct {
	tally
	blocks    int // claimed
	bits      int // 2 to the power of bits addresses are in the pool
	blockBits int // and 2 to the power of blockBits in a block
}

func powerOfTwo(n int) string {
	if n < 63 {
		return strconv.FormatInt(1<<n, 10)
	}
	return "2^" + strconv.Itoa(n)
}

// capacity is how many addresses the pool has.
func (u usage) capacity() float64 { return math.Ldexp(1, u.bits) }

// exhausted reports that nothing is left to be claimed or to be given.
func (u usage) exhausted() bool {
	n := u.bits - u.blockBits
	return n < 62 && u.blocks >= 1<<n && u.free+u.resting == 0
}

func (u usage) String() string {
	return fmt.Sprintf("%d of %s addresses in use, %d more put by on nodes, %d resting and %d free in claimed blocks; %d of %s blocks claimed",
		u.inUse, powerOfTwo(u.bits), u.stash, u.resting, u.free, u.blocks, powerOfTwo(u.bits-u.blockBits))
}

// conditions returns what is to be said of a pool.
func conditions(s standing, u usage, generation int64) []metav1.Condition {
	allocatable := metav1.Condition{Type: conditionAllocatable, Status: metav1.ConditionFalse, Reason: s.reason, Message: s.message, ObservedGeneration: generation}
	if s.reason == reasonOK {
		allocatable.Status = metav1.ConditionTrue
	}
	exhausted := metav1.Condition{Type: conditionExhausted, Status: metav1.ConditionFalse, Reason: reasonFreeAddresses, Message: u.String(), ObservedGeneration: generation}
	if u.exhausted() {
		exhausted.Status, exhausted.Reason = metav1.ConditionTrue, reasonNoFreeAddress
	}
	return []metav1.Condition{allocatable, exhausted}
}

// merge puts the wanted conditions among those that the object has, and reports whether
// anything but a message of the condition Exhausted changed (urgent), and whether that did
// (numbers). Others' conditions stay.
func merge(have, want []metav1.Condition, now time.Time) (out []metav1.Condition, urgent, numbers bool) {
	out = append(out, have...)
	for _, w := range want {
		w.LastTransitionTime = metav1.NewTime(now)
		at := -1
		for i := range out {
			if out[i].Type == w.Type {
				at = i
			}
		}
		if at < 0 {
			out, urgent = append(out, w), true
			continue
		}
		h := out[at]
		if h.Status == w.Status {
			w.LastTransitionTime = h.LastTransitionTime
		}
		switch {
		case h.Status != w.Status || h.Reason != w.Reason || h.ObservedGeneration != w.ObservedGeneration || h.Message != w.Message && w.Type != conditionExhausted:
			urgent = true
		case h.Message != w.Message:
			numbers = true
		}
		out[at] = w
	}
	return out, urgent, numbers
}

// report is what was last said of a pool, and when.
type report struct {
	at    time.Time
	usage usage
	known bool // usage is what the object says; not so before this leader's first report
}

// due returns how long a report has to wait, or that there is nothing to report: the
// numbers are worth it when they differ by a hundredth of the pool, or when the pool
// became empty or was empty.
func (r report) due(u usage, urgent, numbers bool, now time.Time, interval time.Duration) (wait time.Duration, ok bool) {
	moved := math.Abs(float64(u.inUse-r.usage.inUse)) >= u.capacity()/100 && u.inUse != r.usage.inUse
	crossed := (u.inUse == 0) != (r.usage.inUse == 0)
	if !urgent && (!numbers || r.known && !moved && !crossed) {
		return 0, false
	}
	return max(0, r.at.Add(interval).Sub(now)), true
}

// finalizers returns the finalizers that a pool is to have, and whether they differ from
// those it has. A pool in force gets ours; one that is being deleted loses it when no block
// is left; one that is not in force has none, since the blocks in its CIDR are another
// pool's.
func finalizers(p *v3.IPPool, s standing, blocks int) (out []string, changed bool) {
	has := false
	for _, f := range p.Finalizers {
		if f == poolFinalizer {
			has = true
		} else {
			out = append(out, f)
		}
	}
	want := has && s.inForce && blocks > 0
	if p.DeletionTimestamp == nil {
		want = s.inForce
	}
	if want {
		out = append(out, poolFinalizer)
	}
	return out, want != has
}
