package controller

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/internal/blockroutes"
	"github.com/causeway-net/causeway/internal/kubeapi"
	"github.com/causeway-net/causeway/ipam"
	"github.com/causeway-net/causeway/ipam/kube"
	"github.com/causeway-net/causeway/ipam/manifest"
)

// loadBalancerAffinity is the affinity of blocks whose addresses Services get, as Calico
// has it.
const loadBalancerAffinity = "virtual:load-balancer"

// free frees slot i. With a cooldown it rests from now on.
func free(b *ipam.Block, i int, now time.Time, cooldown time.Duration) {
	b.Slots[i] = ipam.Slot{}
	if cooldown > 0 {
		b.Slots[i].ReleasedAt = now
	}
	b.Unallocated = append(b.Unallocated, i)
}

// resting reports whether a free slot may not be given yet.
func resting(s ipam.Slot, cooldown time.Duration, now time.Time) bool {
	return cooldown > 0 && !s.ReleasedAt.IsZero() && s.ReleasedAt.Add(cooldown).After(now)
}

// take gives the free slot i to a handle.
func take(b *ipam.Block, i int, handle string, attrs map[string]string) {
	b.Slots[i] = ipam.Slot{Handle: handle, Attrs: attrs}
	b.Unallocated = slices.DeleteFunc(b.Unallocated, func(n int) bool { return n == i })
}

// restsUntil returns when the last of the block's free addresses has rested; the zero time
// when none has to.
func restsUntil(b *ipam.Block, cooldown time.Duration) time.Time {
	var last time.Time
	for _, i := range b.Unallocated {
		if at := b.Slots[i].ReleasedAt; !at.IsZero() && at.Add(cooldown).After(last) {
			last = at.Add(cooldown)
		}
	}
	return last
}

// used returns how many addresses have a holder.
func used(b *ipam.Block) int { return len(b.Slots) - len(b.Unallocated) }

// holderNode returns the node that holds a slot, or "".
func holderNode(s ipam.Slot) string {
	if node, ok := strings.CutPrefix(s.Handle, ipam.StashPrefix); ok {
		return node
	}
	if s.Handle == "" {
		return ""
	}
	return s.Attrs[ipam.AttrNode]
}

// compose returns old with the content of b: what b does not know of stays as it is.
func compose(old *v3.IPAMBlock, b *ipam.Block) *v3.IPAMBlock {
	out := old.DeepCopy()
	seq := old.Spec.SequenceNumber + 1
	spec := &manifest.ToV3(b, seq).Spec
	out.Spec.Affinity, out.Spec.AffinityClaimTime = spec.Affinity, spec.AffinityClaimTime
	out.Spec.Allocations, out.Spec.Unallocated, out.Spec.Attributes = spec.Allocations, spec.Unallocated, spec.Attributes
	out.Spec.SequenceNumber = seq
	// Calico's: at which change of the block an address was given.
	seqs := map[string]uint64{}
	for i, s := range b.Slots {
		k := strconv.Itoa(i)
		was, ok := old.Spec.SequenceNumberForAllocation[k]
		switch {
		case s.Handle == "":
		case i < len(old.Spec.Allocations) && old.Spec.Allocations[i] == nil:
			seqs[k] = seq
		case ok:
			seqs[k] = was
		}
	}
	out.Spec.SequenceNumberForAllocation = nil
	if len(seqs) > 0 {
		out.Spec.SequenceNumberForAllocation = seqs
	}
	out.Annotations = blockroutes.Note(out.Annotations, b.CIDR, &out.Spec, old.Generation+1)
	relabel(out, b)
	return out
}

// relabel takes away the labels of borrowers that hold nothing in the block any more. It
// adds none: the borrower writes its own.
func relabel(o *v3.IPAMBlock, b *ipam.Block) {
	hold := map[string]bool{}
	for _, s := range b.Slots {
		if node := holderNode(s); node != "" && node != b.Node() {
			hold[kube.BorrowerLabel(node)] = true
		}
	}
	maps.DeleteFunc(o.Labels, func(k, _ string) bool { return strings.HasPrefix(k, kube.BorrowerPrefix) && !hold[k] })
}

// blockClient writes blocks.
type blockClient struct {
	res kubeapi.Resource[*v3.IPAMBlock, *v3.IPAMBlockList]
}

func newBlockClient(c *kubeapi.Clients) blockClient {
	return blockClient{kubeapi.NewResource[v3.IPAMBlock, v3.IPAMBlockList](c.V3, "ipamblocks", "")}
}

// update replaces the block that old is a version of: an error of kind Conflict when it is
// not the newest.
func (c blockClient) update(ctx context.Context, old *v3.IPAMBlock, b *ipam.Block) (*v3.IPAMBlock, error) {
	ctx, cancel := context.WithTimeout(ctx, kubeapi.RequestTimeout)
	defer cancel()
	o, err := c.res.Update(ctx, compose(old, b), metav1.UpdateOptions{})
	if err != nil {
		return nil, fmt.Errorf("write block %s: %w", b.CIDR, err)
	}
	return o, nil
}

// create claims a block.
func (c blockClient) create(ctx context.Context, b *ipam.Block) (*v3.IPAMBlock, error) {
	ctx, cancel := context.WithTimeout(ctx, kubeapi.RequestTimeout)
	defer cancel()
	made := manifest.ToV3(b, 0)
	made.Annotations = blockroutes.Note(nil, b.CIDR, &made.Spec, 1)
	o, err := c.res.Create(ctx, made, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("claim block %s: %w", b.CIDR, err)
	}
	return o, nil
}

// remove deletes exactly this version of the block.
func (c blockClient) remove(ctx context.Context, o *v3.IPAMBlock) error {
	ctx, cancel := context.WithTimeout(ctx, kubeapi.RequestTimeout)
	defer cancel()
	uid, rv := o.UID, o.ResourceVersion
	err := c.res.Delete(ctx, o.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid, ResourceVersion: &rv}})
	if err != nil {
		return fmt.Errorf("delete block %s: %w", o.Spec.CIDR, err)
	}
	return nil
}

// tally counts the addresses of a block, or of all blocks of a pool.
type tally struct {
	inUse   int // of pods, tunnels and Services
	stash   int // put by by nodes
	free    int // to be had
	resting int // released, and not yet to be had again
}

func (t *tally) add(o tally, sign int) {
	t.inUse += sign * o.inUse
	t.stash += sign * o.stash
	t.free += sign * o.free
	t.resting += sign * o.resting
}

func count(b *ipam.Block) tally {
	var t tally
	for _, s := range b.Slots {
		switch {
		case strings.HasPrefix(s.Handle, ipam.StashPrefix):
			t.stash++
		case s.Handle != "":
			t.inUse++
		case !s.ReleasedAt.IsZero():
			t.resting++
		default:
			t.free++
		}
	}
	return t
}

// reserved reports whether an address stands in one of the prefixes.
func reserved(in []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(in, func(p netip.Prefix) bool { return p.Contains(a) })
}
