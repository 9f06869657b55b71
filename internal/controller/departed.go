package controller

import (
	"net/netip"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/causeway-net/causeway/ipam"
)

// Which addresses a node left behind. The blocks name nodes, and a name may be given
// again: whose an address is follows from when it was given.
//
//   - No Node bears the name: all addresses that the blocks give to it, and its blocks,
//     are left behind.
//   - A Node bears the name: its agent takes over the blocks and the stash marks of its
//     name, and what its journal knows; all that remains are addresses of pods that were
//     given before this Node object existed, and of which its agent can know nothing when
//     the journal is gone with the disk.
//
// Addresses of tunnels have no pod that could claim them. They are the name's, like the
// stash: an agent of that name, with or without a journal, finds them by their handle, and
// keeps or frees them. Where no Node bears the name they are left alone as long as pods are
// bound to it, which show that the machine may be up and using them.
//
// In both cases the grace time passes first (a kubelet that registers again, a machine that
// comes back), the second time of a Node that has been Ready all along, so that its agent
// had the time to release what it knows; and no pod may claim the address.

// skew is how far the clocks of a node and of the API server may be apart.
const skew = 10 * time.Second

// presence is what is known of a node's name.
type presence struct {
	exists     bool
	created    time.Time // of the Node that bears the name
	readySince time.Time // zero while it is not Ready
	goneSince  time.Time // when no Node was first seen to bear it
}

// due returns how long to wait before the sweep; 0 or less means now. known is false while
// there is no time yet to wait for: the Node is not Ready.
func (p presence) due(now time.Time, grace time.Duration) (wait time.Duration, known bool) {
	if !p.exists {
		return p.goneSince.Add(grace).Sub(now), true
	}
	if p.readySince.IsZero() {
		return 0, false
	}
	last := p.created
	if p.readySince.After(last) {
		last = p.readySince
	}
	return last.Add(grace).Sub(now), true
}

// claims is what the pods of a node claim at this moment.
type claims struct {
	addrs map[netip.Addr]bool
	pods  map[string]bool // namespace/name
}

// claimsOf reads them off the pods that are bound to the node. A pod that has run to its
// end claims nothing.
func claimsOf(pods []corev1.Pod) claims {
	c := claims{map[netip.Addr]bool{}, map[string]bool{}}
	for i := range pods {
		p := &pods[i]
		if p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
			continue
		}
		c.pods[p.Namespace+"/"+p.Name] = true
		for _, ip := range append([]corev1.PodIP{{IP: p.Status.PodIP}}, p.Status.PodIPs...) {
			if a, err := netip.ParseAddr(ip.IP); err == nil {
				c.addrs[a.Unmap()] = true
			}
		}
	}
	return c
}

// hold reports whether somebody may be using a slot that the node has.
func (c claims) hold(a netip.Addr, s ipam.Slot) bool {
	return c.addrs[a] || ownUse(s) && len(c.pods) > 0 || s.Attrs[ipam.AttrPod] != "" && c.pods[s.Attrs[ipam.AttrNamespace]+"/"+s.Attrs[ipam.AttrPod]]
}

// ownUse reports whether a node uses the address itself: it is that of a tunnel.
func ownUse(s ipam.Slot) bool {
	return s.Attrs[ipam.AttrPod] == "" && s.Attrs[ipam.AttrInterface] == "" && !strings.HasPrefix(s.Handle, ipam.StashPrefix)
}

// left reports whether a slot is one that the node left behind.
func left(s ipam.Slot, node string, p presence) bool {
	if s.Handle == "" || holderNode(s) != node {
		return false
	}
	if !p.exists {
		return true
	}
	if ownUse(s) || strings.HasPrefix(s.Handle, ipam.StashPrefix) {
		return false // the name's, whoever bears it
	}
	at, ok := timestamp(s.Attrs[ipam.AttrTimestamp])
	return ok && at.Before(p.created.Add(-skew))
}

// leftAny reports whether the node left anything in the block.
func leftAny(b *ipam.Block, node string, p presence) bool {
	if !p.exists && b.Node() == node {
		return true
	}
	for _, s := range b.Slots {
		if left(s, node, p) {
			return true
		}
	}
	return false
}

// timestamp reads the attribute of that name, which is time.Time's String, maybe with the
// reading of a monotonic clock behind it.
func timestamp(s string) (time.Time, bool) {
	s, _, _ = strings.Cut(s, " m=")
	t, err := time.Parse("2006-01-02 15:04:05.999999999 -0700 MST", s)
	return t, err == nil
}

// swept is what became of a block.
type swept struct {
	block    *ipam.Block // nil when nothing is to be changed
	released int
	held     int // left behind, and claimed by a pod
}

// sweep returns b without what the node left behind and nobody claims. A block of a node
// that is gone loses its owner and the stash, unless a pod there claims an address of it: as
// long as one lives, its node may be alive, tell of the block and give pods what is put by.
func sweep(b *ipam.Block, node string, p presence, c claims, now time.Time, cooldown time.Duration) swept {
	next := b.Clone()
	var out swept
	var lost []int
	for i, s := range b.Slots {
		switch {
		case !left(s, node, p):
		case c.hold(b.Addr(i), s):
			out.held++
		default:
			lost = append(lost, i)
		}
	}
	for _, i := range lost {
		if out.held > 0 && strings.HasPrefix(b.Slots[i].Handle, ipam.StashPrefix) {
			continue
		}
		free(next, i, now, cooldown)
		out.released++
	}
	disown := !p.exists && b.Node() == node && out.held == 0
	if disown {
		next.Affinity, next.ClaimTime = "", time.Time{}
	}
	if out.released > 0 || disown {
		out.block = next
	}
	return out
}
