package ipam

import (
	"hash/fnv"
	"iter"
	"math/bits"
	"net/netip"
	"slices"
)

// u128 is an unsigned number as wide as an IPv6 address.
type u128 struct{ hi, lo uint64 }

func toU128(a netip.Addr) u128 {
	if a.Is4() {
		b := a.As4()
		return u128{lo: uint64(b[0])<<24 | uint64(b[1])<<16 | uint64(b[2])<<8 | uint64(b[3])}
	}
	b := a.As16()
	var u u128
	for i := range 8 {
		u.hi = u.hi<<8 | uint64(b[i])
		u.lo = u.lo<<8 | uint64(b[i+8])
	}
	return u
}

func addrOf(u u128, v4 bool) netip.Addr {
	if v4 {
		return netip.AddrFrom4([4]byte{byte(u.lo >> 24), byte(u.lo >> 16), byte(u.lo >> 8), byte(u.lo)})
	}
	var b [16]byte
	for i := range 8 {
		b[i] = byte(u.hi >> (56 - 8*i))
		b[i+8] = byte(u.lo >> (56 - 8*i))
	}
	return netip.AddrFrom16(b)
}

func (u u128) add(o u128) u128 {
	lo, c := bits.Add64(u.lo, o.lo, 0)
	hi, _ := bits.Add64(u.hi, o.hi, c)
	return u128{hi, lo}
}

func (u u128) sub(o u128) u128 {
	lo, c := bits.Sub64(u.lo, o.lo, 0)
	hi, _ := bits.Sub64(u.hi, o.hi, c)
	return u128{hi, lo}
}

func (u u128) shl(n int) u128 {
	return u128{u.hi<<n | u.lo>>(64-n), u.lo << n} // shifts of 64 and more give 0; n < 64 here
}

func (u u128) shr(n int) u128 { return u128{u.hi >> n, u.lo>>n | u.hi<<(64-n)} }

// lastAddr returns the last address of a prefix.
func lastAddr(p netip.Prefix) netip.Addr {
	host := p.Addr().BitLen() - p.Bits()
	u := toU128(p.Addr())
	for i := range host {
		if i < 64 {
			u.lo |= 1 << i
		} else {
			u.hi |= 1 << (i - 64)
		}
	}
	return addrOf(u, p.Addr().Is4())
}

// claims is the set of blocks known to exist: sorted, disjoint.
type claims []netip.Prefix

func (c claims) search(a netip.Addr) (int, bool) {
	i, ok := slices.BinarySearchFunc(c, a, func(p netip.Prefix, a netip.Addr) int { return p.Addr().Compare(a) })
	if !ok && i > 0 && c[i-1].Contains(a) {
		return i - 1, true
	}
	return i, ok
}

// containing returns the known block that an address lies in.
func (c claims) containing(a netip.Addr) (netip.Prefix, bool) {
	if i, ok := c.search(a); ok {
		return c[i], true
	}
	return netip.Prefix{}, false
}

// overlapping returns a known block that overlaps p.
func (c claims) overlapping(p netip.Prefix) (netip.Prefix, bool) {
	i, ok := c.search(p.Addr())
	if ok || i < len(c) && p.Contains(c[i].Addr()) {
		return c[i], true
	}
	return netip.Prefix{}, false
}

// add puts p in, unless it overlaps a known block.
func (c *claims) add(p netip.Prefix) {
	if _, ok := c.overlapping(p); ok {
		return
	}
	i, _ := c.search(p.Addr())
	*c = slices.Insert(*c, i, p)
}

func (c *claims) remove(p netip.Prefix) {
	if i, ok := c.search(p.Addr()); ok && (*c)[i] == p {
		*c = slices.Delete(*c, i, i+1)
	}
}

// claimable yields the blocks of a pool that nobody is known to own and that are not
// wholly reserved. The first is a hash of the node's name, so that nodes that start
// together do not race for the same blocks; the others follow in order, round the end of
// the pool. Of an IPv6 pool with more than 2^62 blocks only the first 2^62 are used.
func claimable(pool netip.Prefix, blockSize int, node string, known *claims, reserved func(netip.Prefix) (netip.Prefix, bool)) iter.Seq[netip.Prefix] {
	width := pool.Addr().BitLen()
	base, v4, shift := toU128(pool.Addr()), pool.Addr().Is4(), width-blockSize
	count := uint64(1) << min(blockSize-pool.Bits(), 62)
	h := fnv.New64a()
	h.Write([]byte(node))
	start := mix(h.Sum64()) % count

	return func(yield func(netip.Prefix) bool) {
		for done := uint64(0); done < count; {
			i := (start + done) % count
			p := netip.PrefixFrom(addrOf(base.add(u128{lo: i}.shl(shift)), v4), blockSize)
			taken, ok := known.overlapping(p)
			if !ok {
				taken, ok = reserved(p)
			}
			if !ok {
				if !yield(p) {
					return
				}
				done++
				continue
			}
			// Go on behind what is in the way, which may be as large as the pool.
			end := count
			if pool.Contains(lastAddr(taken)) {
				if off := toU128(lastAddr(taken)).sub(base).shr(shift); off.hi == 0 && off.lo < count {
					end = off.lo + 1
				}
			}
			done += end - i
		}
	}
}

// mix spreads similar hashes (node-1, node-2) over the whole range.
func mix(x uint64) uint64 {
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	return x
}
