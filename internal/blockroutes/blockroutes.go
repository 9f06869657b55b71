// Package blockroutes owns the annotation of an IPAMBlock that says where its addresses are:
// whose the block is, and who holds those that are lent. Nodes that make routes of blocks
// (VXLAN) read it out of the objects' metadata, a few dozen bytes instead of some kilobytes.
//
// The annotation is one line, its parts separated by one space each:
//
//	1 57 10.244.3.0/26 node-a 5=node-b 17=node-c
//
// These are the version of this form, the object's metadata.generation, the block, the node
// that owns it ("-" for none), and for each lent address its place in the block, counted from
// 0 and ascending, with the node that holds it.
//
// Every change of a block's spec raises its generation (it has no status), so that a reader
// knows whether the annotation was written with the spec that is stored, or whether somebody
// who does not know it has changed the block since. The admission policies of deploy/ hold
// what an agent writes to the spec beside it.
package blockroutes

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"strconv"
	"strings"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/internal/model"
)

// Annotation is the annotation's name.
const Annotation = "causeway-net.github.io/routes"

const (
	version = "1"
	nobody  = "-"
	// largest bounds the text: the API server takes 256 KiB of annotations of an object. A
	// block of 4096 addresses that are all lent to nodes of names of 40 characters fits.
	largest = 200 << 10
)

// hostAffinity begins the affinity of a block that a node owns.
const hostAffinity = "host:"

// attrNode is the attribute of an allocation that names the node which holds it.
const attrNode = "node"

// nodeName is what the CRD lets an owner be named.
var nodeName = regexp.MustCompile(`^[a-zA-Z0-9._-]+$`)

// Of returns what a block's spec says of where its addresses are. Whatever else is wrong
// with the spec, indexes out of range are taken for free addresses, and what no node can be
// named for none.
func Of(cidr netip.Prefix, s *v3.IPAMBlockSpec) model.Block {
	out := model.Block{CIDR: cidr}
	if s.Affinity != nil {
		if node, ok := strings.CutPrefix(*s.Affinity, hostAffinity); ok && nodeName.MatchString(node) {
			out.Node = node
		}
	}
	addr := cidr.Addr()
	for _, n := range s.Allocations {
		if n != nil && *n >= 0 && *n < len(s.Attributes) {
			a := &s.Attributes[*n]
			free := (a.HandleID == nil || *a.HandleID == "") && a.ReleasedAt != nil
			if node := a.ActiveOwnerAttrs[attrNode]; node != out.Node && !free && nodeName.MatchString(node) {
				out.Lent = append(out.Lent, model.Loan{Addr: addr, Node: node})
			}
		}
		addr = addr.Next()
	}
	return out
}

// Note returns the annotations of a block with ours as the spec demands, which is written as
// that generation of the object. What does not fit is left as it was.
func Note(annotations map[string]string, cidr netip.Prefix, s *v3.IPAMBlockSpec, generation int64) map[string]string {
	text := format(Of(cidr, s), generation)
	if len(text) > largest {
		return annotations
	}
	out := maps.Clone(annotations)
	if out == nil {
		out = map[string]string{}
	}
	out[Annotation] = text
	return out
}

// Noted reports whether the annotations say what the spec of that generation does, as far as
// they can.
func Noted(annotations map[string]string, cidr netip.Prefix, s *v3.IPAMBlockSpec, generation int64) bool {
	text := format(Of(cidr, s), generation)
	return annotations[Annotation] == text || len(text) > largest
}

func format(b model.Block, generation int64) string {
	var out strings.Builder
	owner := b.Node
	if owner == "" {
		owner = nobody
	}
	fmt.Fprintf(&out, "%s %d %s %s", version, generation, b.CIDR, owner)
	place, addr := 0, b.CIDR.Addr()
	for _, l := range b.Lent {
		for addr != l.Addr {
			place, addr = place+1, addr.Next()
		}
		fmt.Fprintf(&out, " %d=%s", place, l.Node)
	}
	return out.String()
}

// Parse reads the annotation of the object of that name. generation is that of the spec it
// was written with.
func Parse(name, text string) (b model.Block, generation int64, err error) {
	if text == "" {
		return b, 0, errors.New("is missing")
	}
	parts := strings.Split(text, " ")
	if parts[0] != version {
		return b, 0, fmt.Errorf("is of version %q; version %s is understood", parts[0], version)
	}
	if len(parts) < 4 {
		return b, 0, fmt.Errorf("has %d parts; want the version, the generation, the block, its owner, and lent addresses", len(parts))
	}
	generation, err = strconv.ParseInt(parts[1], 10, 64)
	if err != nil || generation < 1 {
		return b, 0, fmt.Errorf("names the generation %q; want a number from 1", parts[1])
	}
	cidr, err := netip.ParsePrefix(parts[2])
	if err != nil || cidr != cidr.Masked() || v3.BlockName(cidr) != name {
		return b, 0, fmt.Errorf("speaks of the block %q; want the one that the object is named after", parts[2])
	}
	out := model.Block{CIDR: cidr}
	if parts[3] != nobody {
		if !nodeName.MatchString(parts[3]) {
			return b, 0, fmt.Errorf("names the owner %q; want the name of a node, or %s", parts[3], nobody)
		}
		out.Node = parts[3]
	}
	host := cidr.Addr().BitLen() - cidr.Bits()
	if host > 12 {
		return b, 0, fmt.Errorf("speaks of the block %s; want one of 4096 addresses at most", cidr)
	}
	next, addr := 0, cidr.Addr()
	for _, p := range parts[4:] {
		at, node, _ := strings.Cut(p, "=")
		place, err := strconv.Atoi(at)
		switch {
		case err != nil || place < next || place >= 1<<host:
			return b, 0, fmt.Errorf("has %q; want ascending places of the block, 0 to %d, each with = and a node", p, 1<<host-1)
		case !nodeName.MatchString(node) || node == out.Node:
			return b, 0, fmt.Errorf("has %q; want = and the name of a node that does not own the block", p)
		}
		for ; next < place; next++ {
			addr = addr.Next()
		}
		out.Lent = append(out.Lent, model.Loan{Addr: addr, Node: node})
		next, addr = next+1, addr.Next()
	}
	return out, generation, nil
}
