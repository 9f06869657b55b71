package announce

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// A datagram is
//
//	4 bytes   "CWA1"
//	8         boot: the sender's, random at each start
//	8         sequence: grows with every datagram of one boot
//	8         when it was made: milliseconds since 1970, UTC
//	1+n       the sender's node name, its length first
//	any       pods: namespace, name and UID, each with its length first, one byte that counts the
//	          addresses, and each of them with its length (4 or 16) first
//	32        HMAC-SHA256 of all that stands before
//
// with numbers in network byte order. It is at most maxDatagram long, so that no fragment ever
// travels, not even over IPv6's least MTU of 1280 bytes with IPv6's and UDP's headers (48).
const (
	magic       = "CWA1"
	maxDatagram = 1200
	headerLen   = len(magic) + 3*8
	macLen      = sha256.Size
	maxName     = 253 // of nodes, pods and UIDs: RFC 1123 subdomains
)

// Pod is what is told of a pod.
type Pod struct {
	Namespace, Name string
	UID             string       // as the runtime knows it
	Addresses       []netip.Addr // at most one of each family
}

// header says who made a datagram, and which of his it is.
type header struct {
	boot, sequence uint64
	made           int64 // milliseconds since 1970
	node           string
}

var (
	errMalformed = errors.New("malformed")
	errForged    = errors.New("sealed with a key that is not known here; all agents must have the same")
)

func appendText(b []byte, s string) []byte { return append(append(b, byte(len(s))), s...) }

// begin starts a datagram.
func begin(b []byte, h header) []byte {
	b = append(b, magic...)
	b = binary.BigEndian.AppendUint64(b, h.boot)
	b = binary.BigEndian.AppendUint64(b, h.sequence)
	b = binary.BigEndian.AppendUint64(b, uint64(h.made))
	return appendText(b, h.node)
}

func appendPod(b []byte, p *Pod) []byte {
	b = appendText(appendText(appendText(b, p.Namespace), p.Name), p.UID)
	b = append(b, byte(len(p.Addresses)))
	for _, a := range p.Addresses {
		b = appendText(b, string(a.AsSlice()))
	}
	return b
}

// tellable says whether datagrams can hold the pod.
func (p *Pod) tellable() bool {
	for _, s := range []string{p.Namespace, p.Name, p.UID} {
		if s == "" || len(s) > maxName {
			return false
		}
	}
	return validAddresses(p.Addresses)
}

func validAddresses(in []netip.Addr) bool {
	var families [2]bool
	for _, a := range in {
		if !a.IsValid() || a.Is4In6() || a.Zone() != "" || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || families[family(a)] {
			return false
		}
		families[family(a)] = true
	}
	return len(in) > 0
}

// family is 0 for IPv4 and 1 for IPv6.
func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// seal ends a datagram.
func seal(b, key []byte) []byte {
	m := hmac.New(sha256.New, key)
	m.Write(b)
	return m.Sum(b)
}

// open checks a datagram with one of several keys, and reads it.
func open(b []byte, keys [][]byte) (header, []Pod, error) {
	if len(b) < headerLen+1+macLen || len(b) > maxDatagram || string(b[:len(magic)]) != magic {
		return header{}, nil, errMalformed
	}
	body, mac := b[:len(b)-macLen], b[len(b)-macLen:]
	for _, key := range keys {
		m := hmac.New(sha256.New, key)
		m.Write(body)
		if hmac.Equal(m.Sum(nil), mac) {
			return parse(body)
		}
	}
	return header{}, nil, errForged
}

// parse reads what is sealed.
func parse(b []byte) (header, []Pod, error) {
	if len(b) < headerLen || string(b[:len(magic)]) != magic {
		return header{}, nil, errMalformed
	}
	r := reader{rest: b[len(magic):]}
	h := header{boot: r.number(), sequence: r.number(), made: int64(r.number()), node: r.text()}
	var pods []Pod
	for len(r.rest) > 0 {
		p := Pod{Namespace: r.text(), Name: r.text(), UID: r.text()}
		for range r.octet() {
			a, ok := netip.AddrFromSlice(r.bytes())
			if !ok {
				return header{}, nil, fmt.Errorf("%w: an address has another length than 4 or 16 bytes", errMalformed)
			}
			p.Addresses = append(p.Addresses, a)
		}
		if r.short {
			break
		}
		if !p.tellable() {
			return header{}, nil, fmt.Errorf("%w: a pod without name or with addresses that no pod has", errMalformed)
		}
		pods = append(pods, p)
	}
	if r.short || h.node == "" || len(h.node) > maxName || h.sequence == 0 {
		return header{}, nil, errMalformed
	}
	return h, pods, nil
}

// reader cuts pieces off what is left; short is set when there was too little.
type reader struct {
	rest  []byte
	short bool
}

func (r *reader) take(n int) []byte {
	if n > len(r.rest) {
		r.short, r.rest = true, nil
		return nil
	}
	out := r.rest[:n]
	r.rest = r.rest[n:]
	return out
}

func (r *reader) number() uint64 {
	if b := r.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (r *reader) octet() byte {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) bytes() []byte { return r.take(int(r.octet())) }
func (r *reader) text() string  { return string(r.bytes()) }
