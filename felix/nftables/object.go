package nftables

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"

	"sigs.k8s.io/knftables"

	"github.com/causeway-net/causeway/felix/policy"
)

// base is where in a packet's way a chain stands; its policy is to accept.
type base struct {
	hook     knftables.BaseChainHook
	priority int
}

// rule is one rule: text in nft's language, and what it is for who reads the table.
type rule struct{ text, comment string }

// chain is a chain as it is wanted.
type chain struct {
	name  string
	base  *base // nil: others go to it
	rules []rule
	// adopt: one that is there already stays as an earlier agent left it.
	adopt bool
}

// at is where the chain stands as the kernel tells it.
func (c *chain) at() base {
	if c.base == nil {
		return base{}
	}
	return *c.base
}

// digestLen is how many characters of a rule's comment are its digest.
const digestLen = 12

// commentMax is how many bytes of a comment nft takes (NFTNL_UDATA_COMMENT_MAXLEN).
const commentMax = 128

// digest tells a rule by its text and comment.
func (r rule) digest() string {
	sum := sha256.Sum256([]byte(r.text + "\x00" + r.comment))
	return base64.RawURLEncoding.EncodeToString(sum[:])[:digestLen]
}

func (r rule) remark() string {
	s := r.digest()
	if r.comment != "" {
		s += " " + plain(r.comment)
	}
	return s[:min(len(s), commentMax-1)]
}

// plain is a text that can stand between double quotes: nft knows no way to write one
// within, nor a dollar sign.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' || strings.ContainsRune("\"\\$`", r) {
			return '_'
		}
		return r
	}, s)
}

// digests is what a chain's rules come to.
func (c *chain) digests() []string {
	out := make([]string, len(c.rules))
	for i, r := range c.rules {
		out[i] = r.digest()
	}
	return out
}

// kind is what a set or map is about.
type kind uint8

const (
	kindIP       kind = iota + 1 // policy.SetIP
	kindNet                      // policy.SetNet
	kindIPPort                   // policy.SetIPPort
	kindDispatch                 // interface → verdict
	kindSource                   // interface and address
	kindGrant                    // interface and prefix
	kindNumber                   // the number of the last transaction
)

// set is a set or map as it is wanted. Keys are the kernel's bytes, so that what is read and
// what is wanted can be compared; of kinds with prefixes the first and the last address of
// the prefix, one after the other.
type set struct {
	name    string
	kind    kind
	family  policy.Family // of kinds with addresses
	comment string
	// members' values are the chains that a dispatch calls, or leave; and empty in all other kinds.
	members map[string]string
}

// leave is the verdict to return (NFT_RETURN), as a member's value.
const leave = "verdict -5"

// interfaceLen is how many bytes an interface's name has in a key (IFNAMSIZ).
const interfaceLen = 16

func (s *set) addrLen() int {
	if s.family == policy.IPv6 {
		return 16
	}
	return 4
}

func (s *set) addrType() string {
	if s.family == policy.IPv6 {
		return "ipv6_addr"
	}
	return "ipv4_addr"
}

// typ is the type in nft's language.
func (s *set) typ() string {
	switch s.kind {
	case kindIP:
		return s.addrType()
	case kindNet:
		// The second field says nothing. Without one nft would read all sets of prefixes as a
		// whole whenever a member of any set changes: 50 ms for 10,000 prefixes.
		return s.addrType() + " . nf_proto"
	case kindIPPort:
		return s.addrType() + " . inet_proto . inet_service"
	case kindDispatch:
		return "ifname : verdict"
	case kindSource, kindGrant:
		return "ifname . " + s.addrType()
	}
	return "mark"
}

func (s *set) ranges() bool { return s.kind == kindNet || s.kind == kindGrant }

// keyLen is the length of a key in the kernel.
func (s *set) keyLen() int {
	switch s.kind {
	case kindIP:
		return s.addrLen()
	case kindNet:
		return s.addrLen() + 4
	case kindIPPort:
		return s.addrLen() + 8
	case kindDispatch:
		return interfaceLen
	case kindSource, kindGrant:
		return interfaceLen + s.addrLen()
	}
	return 4
}

// flags are the kernel's that tell a set of one kind from one of another
// (NFT_SET_INTERVAL, NFT_SET_MAP).
func (s *set) flags() uint32 {
	switch {
	case s.ranges():
		return flagInterval
	case s.kind == kindDispatch:
		return flagMap
	}
	return 0
}

func ifaceKey(name string) string {
	var b [interfaceLen]byte
	copy(b[:interfaceLen-1], name)
	return string(b[:])
}

// keyIface is the interface that a key of a dispatch, source or grant begins with.
func keyIface(key string) string {
	name, _, _ := strings.Cut(key[:min(len(key), interfaceLen)], "\x00")
	return name
}

func numberKey(n uint32) string { return string(binary.NativeEndian.AppendUint32(nil, n)) }

// ends are a prefix's first and last address.
func ends(p netip.Prefix) (first, last string) {
	a := p.Masked().Addr().AsSlice()
	b := append([]byte{}, a...)
	for bit := p.Bits(); bit < len(b)*8; bit++ {
		b[bit/8] |= 0x80 >> (bit % 8)
	}
	return string(a), string(b)
}

// memberKey is the key of a member of a policy's set.
func (s *set) memberKey(m policy.Member) string {
	switch s.kind {
	case kindNet:
		family := string([]byte{familyNumber(s.family), 0, 0, 0})
		first, last := ends(m.Prefix)
		return first + family + last + family
	case kindIPPort:
		b := append(m.Prefix.Addr().AsSlice(), m.Protocol, 0, 0, 0)
		b = binary.BigEndian.AppendUint16(b, m.Port)
		return string(append(b, 0, 0))
	}
	return string(m.Prefix.Addr().AsSlice())
}

func sourceKey(iface string, p netip.Prefix) string {
	return ifaceKey(iface) + string(p.Addr().AsSlice())
}

func grantKey(iface string, p netip.Prefix) string {
	first, last := ends(p)
	return ifaceKey(iface) + first + ifaceKey(iface) + last
}

// span is a range of addresses in nft's language: a prefix where it is one.
func span(first, last string) string {
	a, _ := netip.AddrFromSlice([]byte(first))
	b, _ := netip.AddrFromSlice([]byte(last))
	if a == b {
		return a.String()
	}
	for bits := range a.BitLen() + 1 {
		p := netip.PrefixFrom(a, bits)
		if f, l := ends(p); f == first && l == last {
			return p.String()
		}
	}
	return a.String() + "-" + b.String()
}

// text is a key in nft's language.
func (s *set) text(key string) []string {
	addr := func(b string) string {
		a, _ := netip.AddrFromSlice([]byte(b))
		return a.String()
	}
	n := s.addrLen()
	switch s.kind {
	case kindIP:
		return []string{addr(key)}
	case kindNet:
		family := "ipv4"
		if s.family == policy.IPv6 {
			family = "ipv6"
		}
		return []string{span(key[:n], key[n+4:2*n+4]), family}
	case kindIPPort:
		return []string{addr(key[:n]), fmt.Sprint(key[n]), fmt.Sprint(binary.BigEndian.Uint16([]byte(key[n+4:])))}
	case kindDispatch:
		return []string{quoted(keyIface(key))}
	case kindSource:
		return []string{quoted(keyIface(key)), addr(key[interfaceLen:])}
	case kindGrant:
		return []string{quoted(keyIface(key)), span(key[interfaceLen:interfaceLen+n], key[2*interfaceLen+n:])}
	}
	return []string{fmt.Sprint(binary.NativeEndian.Uint32([]byte(key)))}
}

func quoted(s string) string { return `"` + s + `"` }

// expressible reports whether an interface's name can stand in a rule. A star at its end
// would stand for all that begin so.
func expressible(name string) bool {
	return name != "" && len(name) < interfaceLen && plain(name) == name && !strings.ContainsAny(name, "* ")
}

// identifier reports whether a name can be part of a chain's.
func identifier(name string) bool {
	for _, r := range name {
		if !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_.-", r)) {
			return false
		}
	}
	return true
}

func familyNumber(f policy.Family) byte {
	if f == policy.IPv6 {
		return nfprotoIPv6
	}
	return nfprotoIPv4
}
