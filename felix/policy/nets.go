package policy

import (
	"cmp"
	"net/netip"
	"slices"
)

// ofFamily lists the masked prefixes of one family.
func ofFamily(nets []netip.Prefix, f Family) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range nets {
		if familyOf(p.Addr()) == f {
			out = append(out, p.Masked())
		}
	}
	return out
}

func familyOf(a netip.Addr) Family {
	if a.Is4() {
		return IPv4
	}
	return IPv6
}

func comparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// outermost sorts masked prefixes of one family and leaves out those that another holds.
// It works in place.
func outermost(nets []netip.Prefix) []netip.Prefix {
	slices.SortFunc(nets, comparePrefixes)
	out := nets[:0]
	for _, p := range nets {
		if n := len(out); n == 0 || !out[n-1].Contains(p.Addr()) {
			out = append(out, p)
		}
	}
	return out
}

// joined makes the fewest prefixes of nets, masked and of one family, that hold the same
// addresses: sorted and disjoint.
func joined(nets []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range outermost(slices.Clone(nets)) {
		out = append(out, p)
		for n := len(out); n > 1; n = len(out) {
			a, b := out[n-2], out[n-1]
			if a.Bits() != b.Bits() {
				break
			}
			up := netip.PrefixFrom(a.Addr(), a.Bits()-1).Masked()
			if !up.Contains(b.Addr()) {
				break
			}
			out = append(out[:n-2], up)
		}
	}
	return out
}

// without makes the fewest prefixes that hold the addresses of nets that not does not hold.
func without(nets, not []netip.Prefix) []netip.Prefix {
	not = joined(not)
	var out []netip.Prefix
	for _, p := range joined(nets) {
		out = cut(out, p, not)
	}
	return joined(out)
}

// cut appends the parts of p that are outside not.
func cut(to []netip.Prefix, p netip.Prefix, not []netip.Prefix) []netip.Prefix {
	for _, n := range not {
		if n.Bits() <= p.Bits() && n.Contains(p.Addr()) {
			return to
		}
	}
	if !slices.ContainsFunc(not, func(n netip.Prefix) bool { return p.Contains(n.Addr()) }) {
		return append(to, p)
	}
	low, high := halves(p)
	return cut(cut(to, low, not), high, not)
}

// halves are the two prefixes that p consists of; p is no single address.
func halves(p netip.Prefix) (low, high netip.Prefix) {
	b := p.Addr().AsSlice()
	b[p.Bits()/8] |= 0x80 >> (p.Bits() % 8)
	top, _ := netip.AddrFromSlice(b)
	return netip.PrefixFrom(p.Addr(), p.Bits()+1), netip.PrefixFrom(top, p.Bits()+1)
}

// members replaces a prefix of length 0, which ipset's hash:net does not take, by its halves.
func members(nets []netip.Prefix) []netip.Prefix {
	out := make([]netip.Prefix, 0, len(nets))
	for _, p := range nets {
		if p = p.Masked(); p.Bits() == 0 {
			low, high := halves(p)
			out = append(out, low, high)
		} else {
			out = append(out, p)
		}
	}
	return out
}
