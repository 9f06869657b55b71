package policy

import (
	"cmp"
	"encoding/binary"
	"slices"
	"strings"

	"github.com/causeway-net/causeway/internal/model"
)

// Labels that Calico adds to what an object has itself.
const (
	labelNamespace    = "projectcalico.org/namespace"
	labelOrchestrator = "projectcalico.org/orchestrator"
	labelAccount      = "projectcalico.org/serviceaccount"
	labelName         = "projectcalico.org/name"
	namespacePrefix   = "pcns." // before the keys of a namespace's labels
	accountPrefix     = "pcsa." // before the keys of a service account's
	orchestrator      = "k8s"
)

type label struct{ key, value string }

// class says what kind of object a group holds.
type class uint8

const (
	classWorkload class = iota
	classHost
	classNetworkSet
	classNode
)

// groupKey is all that selectors can see of an object.
type groupKey struct {
	class              class
	namespace, account string
	own                string // the object's own labels, encoded
}

// group is the objects whom every selector sees alike. It stands in for all of them when a
// selector is asked, and is there as long as it has an item.
type group struct {
	groupKey
	labels []label // own, by key; their text is part of groupKey.own
	ns     *labelled
	sa     *labelled
	items  []*item
	// matches are the selectors of the index that match, by seq.
	matches []*sel

	paths *paths // of the last Flush that asked, see render.go
	asked uint64
}

// labelled is the labels that a namespace or a service account hands down.
type labelled struct {
	known  bool // the object is there; otherwise only groups refer to it
	groups int
	labels []label // by key, with prefix
}

func (l *labelled) get(key string) (string, bool) {
	if l == nil {
		return "", false
	}
	return find(l.labels, key)
}

func find(labels []label, key string) (string, bool) {
	i, ok := slices.BinarySearchFunc(labels, key, func(l label, k string) int { return strings.Compare(l.key, k) })
	if !ok {
		return "", false
	}
	return labels[i].value, true
}

// Get implements selector.Labels. What Calico adds overrides an object's own labels, and
// those override what namespace and service account hand down.
func (g *group) Get(key string) (string, bool) {
	switch key {
	case labelNamespace:
		if g.namespace != "" {
			return g.namespace, true
		}
	case labelOrchestrator:
		if g.class == classWorkload {
			return orchestrator, true
		}
	case labelAccount:
		if g.account != "" {
			return g.account, true
		}
	}
	if v, ok := find(g.labels, key); ok {
		return v, true
	}
	switch {
	case strings.HasPrefix(key, namespacePrefix):
		return g.ns.get(key)
	case strings.HasPrefix(key, accountPrefix):
		return g.sa.get(key)
	}
	return "", false
}

// each calls f for every label that Get can answer with, and possibly for some that
// others override.
func (g *group) each(f func(label)) {
	for _, k := range [...]string{labelNamespace, labelOrchestrator, labelAccount} {
		if v, ok := g.Get(k); ok {
			f(label{k, v})
		}
	}
	for _, l := range g.labels {
		f(l)
	}
	for _, from := range [...]*labelled{g.ns, g.sa} {
		if from != nil {
			for _, l := range from.labels {
				f(l)
			}
		}
	}
}

// encode makes one string of labels, the same for equal maps.
func encode(labels map[string]string) string {
	keys := make([]string, 0, len(labels))
	size := 0
	for k, v := range labels {
		keys = append(keys, k)
		size += len(k) + len(v) + 4
	}
	slices.Sort(keys)
	b := make([]byte, 0, size)
	for _, k := range keys {
		v := labels[k]
		b = append(binary.AppendUvarint(b, uint64(len(k))), k...)
		b = append(binary.AppendUvarint(b, uint64(len(v))), v...)
	}
	return string(b)
}

// decode lists the labels of what encode made, without copying them.
func decode(own string) []label {
	var out []label
	next := func() string {
		var head [binary.MaxVarintLen64]byte
		n, w := binary.Uvarint(head[:copy(head[:], own)])
		s := own[w : w+int(n)]
		own = own[w+int(n):]
		return s
	}
	for own != "" {
		k := next()
		out = append(out, label{k, next()})
	}
	return slices.Clip(out)
}

// handedDown is the labels of a namespace or service account as its pods have them.
func handedDown(prefix, name string, labels map[string]string) []label {
	out := make([]label, 0, len(labels)+1)
	for k, v := range labels {
		if k != labelName {
			out = append(out, label{prefix + k, v})
		}
	}
	out = append(out, label{prefix + labelName, name})
	slices.SortFunc(out, func(a, b label) int { return strings.Compare(a.key, b.key) })
	return out
}

// changedKeys lists the keys whose values differ.
func changedKeys(a, b []label) []string {
	var out []string
	for len(a) > 0 || len(b) > 0 {
		switch {
		case len(b) == 0 || len(a) > 0 && a[0].key < b[0].key:
			out, a = append(out, a[0].key), a[1:]
		case len(a) == 0 || b[0].key < a[0].key:
			out, b = append(out, b[0].key), b[1:]
		default:
			if a[0].value != b[0].value {
				out = append(out, a[0].key)
			}
			a, b = a[1:], b[1:]
		}
	}
	return out
}

// accountKey names a service account.
type accountKey struct{ namespace, name string }

// families are what policy is programmed for, in the order of arrays of two.
var families = [2]Family{IPv4, IPv6}

func endpointClass(k model.PolicyEndpointKind) class {
	if k == model.EndpointHost {
		return classHost
	}
	return classWorkload
}

func bySeq(a, b *sel) int { return cmp.Compare(a.seq, b.seq) }
