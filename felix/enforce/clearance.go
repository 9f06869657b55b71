package enforce

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/causeway-net/causeway/internal/model"
)

// clearance knows which addresses are clear: of none of them is there a connection of anybody but the
// pod that has it now, if one has. An address of this node's blocks becomes clear with its whole
// block, which costs one walk over the table of connections, and stays so: until a pod is
// attached nothing leads to it but the block's blackhole, so that no connection of it is
// confirmed (nf_conntrack_confirm comes after routing). It ceases to be clear when its pod goes,
// and when somebody else turns out to have it. What outsiders send in its name, if their network lets
// them, the Cutter judges when the pod's rules stand, as all that concerns a pod that is new.
//
// It keeps blocks and their exceptions, never the addresses of a block: one can have 2^64.
type clearance struct {
	of      map[model.AttachmentKey][]netip.Addr
	holders map[netip.Addr]model.AttachmentKey // of attached pods
	blocks  map[netip.Prefix]*block            // of this node
	single  map[netip.Addr]struct{}            // of those that pods have, clear and in no block that is
	leaving map[netip.Addr]struct{}            // not clear, and to be made so
}

// block is one of this node's.
type block struct {
	clear bool
	// but are addresses that are not clear, nor become so by the walk that may be going on.
	but map[netip.Addr]struct{}
}

func newClearance() *clearance {
	return &clearance{
		of: map[model.AttachmentKey][]netip.Addr{}, holders: map[netip.Addr]model.AttachmentKey{}, blocks: map[netip.Prefix]*block{},
		single: map[netip.Addr]struct{}{}, leaving: map[netip.Addr]struct{}{},
	}
}

// isClear reports whether nothing is left of who had the address before.
func (c *clearance) isClear(a netip.Addr) bool {
	if _, is := c.single[a]; is {
		return true
	}
	for p, b := range c.blocks {
		if _, not := b.but[a]; b.clear && !not && p.Contains(a) {
			return true
		}
	}
	return false
}

// clear notes that the addresses are. One of no block that is clear remains so only while a pod has it:
// after that nothing keeps others from it.
func (c *clearance) clear(addrs []netip.Addr) {
	for _, a := range addrs {
		covered := false
		for p, b := range c.blocks {
			if p.Contains(a) {
				delete(b.but, a)
				covered = covered || b.clear
			}
		}
		if _, held := c.holders[a]; held && !covered {
			c.single[a] = struct{}{}
		}
	}
}

// soil notes that an address is not clear.
func (c *clearance) soil(a netip.Addr) {
	delete(c.single, a)
	for p, b := range c.blocks {
		if p.Contains(a) {
			b.but[a] = struct{}{}
		}
	}
}

// dirty are those that are not clear.
func (c *clearance) dirty(addrs []netip.Addr) []netip.Addr {
	return slices.DeleteFunc(slices.Clone(addrs), c.isClear)
}

// attach gives a pod its addresses, and those that it had and has no more to nobody.
func (c *clearance) attach(key model.AttachmentKey, addrs []netip.Addr) {
	for _, a := range c.of[key] {
		if !slices.Contains(addrs, a) {
			c.leave(key, a)
		}
	}
	c.of[key] = slices.Clone(addrs)
	for _, a := range addrs {
		if holder, held := c.holders[a]; held && holder != key {
			c.soil(a)
		}
		c.holders[a] = key
		delete(c.leaving, a)
	}
}

// detach takes a pod's addresses away. One that another pod has by now is that one's.
func (c *clearance) detach(key model.AttachmentKey, addrs []netip.Addr) {
	for _, a := range slices.Concat(c.of[key], addrs) {
		c.leave(key, a)
	}
	delete(c.of, key)
}

func (c *clearance) leave(key model.AttachmentKey, a netip.Addr) {
	if holder, held := c.holders[a]; held && holder != key {
		return
	}
	delete(c.holders, a)
	c.soil(a)
	c.leaving[a] = struct{}{}
}

// taken notes that others than pods of this node have addresses, unless pods have them.
func (c *clearance) taken(addrs []netip.Addr) {
	for _, a := range addrs {
		if _, held := c.holders[a]; !held {
			c.soil(a)
		}
	}
}

// setBlocks says which blocks this node has.
func (c *clearance) setBlocks(now []netip.Prefix) {
	for p := range c.blocks {
		if slices.Contains(now, p) {
			continue
		}
		// A pod outlives its block.
		for a := range c.holders {
			if p.Contains(a) && c.isClear(a) {
				c.single[a] = struct{}{}
			}
		}
		delete(c.blocks, p)
	}
	for _, p := range now {
		if c.blocks[p] == nil {
			c.blocks[p] = &block{but: map[netip.Addr]struct{}{}}
		}
	}
}

// sweep takes those that left.
func (c *clearance) sweep() []netip.Addr {
	leaving := slices.Collect(maps.Keys(c.leaving))
	clear(c.leaving)
	return leaving
}

// walk is one over the table of connections that makes blocks clear.
type walk struct {
	blocks map[netip.Prefix]*block
	held   map[netip.Addr]struct{} // by pods that are attached, or being so, when it begins
	taken  map[netip.Addr]struct{} // by others; found by it
}

// waiting are the blocks that are not clear.
func (c *clearance) waiting() map[netip.Prefix]*block {
	out := map[netip.Prefix]*block{}
	for p, b := range c.blocks {
		if !b.clear {
			out[p] = b
		}
	}
	return out
}

// begin makes the walk of blocks; those that went meanwhile are left out.
func (c *clearance) begin(blocks map[netip.Prefix]*block) *walk {
	w := &walk{blocks: map[netip.Prefix]*block{}, held: map[netip.Addr]struct{}{}, taken: map[netip.Addr]struct{}{}}
	for p, b := range blocks {
		if c.blocks[p] == b {
			w.blocks[p] = b
		}
	}
	for a := range c.holders {
		w.held[a] = struct{}{}
	}
	return w
}

// end takes in what a walk has done. What was attached when it began it left alone: that is clear
// if it was so before. What left since then is among the exceptions, where detach put it.
func (c *clearance) end(w *walk) {
	for p, b := range w.blocks {
		if c.blocks[p] != b { // it went meanwhile, and may have come back
			continue
		}
		for a := range w.held {
			if _, is := c.single[a]; p.Contains(a) && !is {
				b.but[a] = struct{}{}
			}
		}
		for a := range w.taken {
			if p.Contains(a) {
				b.but[a] = struct{}{}
			}
		}
		b.clear = true
		maps.DeleteFunc(c.single, func(a netip.Addr, _ struct{}) bool { return p.Contains(a) })
	}
}
