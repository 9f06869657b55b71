package controller

import (
	"log/slog"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/ipam"
	"github.com/causeway-net/causeway/ipam/manifest"
)

// Attributes of an allocation to a Service, with Calico's names.
const attrService = "service"

// entry is one block as it was seen last. It is immutable.
type entry struct {
	obj      *v3.IPAMBlock
	block    *ipam.Block // nil when the object makes no sense; its CIDR is claimed all the same
	cidr     netip.Prefix
	nodes    []string               // that own it or hold an address in it
	services []types.NamespacedName // that hold an address in it
	tally    tally
	wrote    time.Time // when this controller wrote this version; zero when the watch told it
}

// ledger is what the controller knows of all blocks: the watch's, and what it wrote
// itself. Its index makes the cost of a change that of the block.
type ledger struct {
	log *slog.Logger
	now func() time.Time
	// changed is called under the lock, so that changes come in order, with what a block
	// was and is; nil for none. It must not call the ledger.
	changed func(old, now *entry)

	mu        sync.Mutex
	entries   map[string]*entry // by the object's name
	byNode    map[string]map[string]bool
	byService map[types.NamespacedName]map[string]bool
}

func newLedger(log *slog.Logger, now func() time.Time, changed func(old, now *entry)) *ledger {
	return &ledger{
		log: log, now: now, changed: changed, entries: map[string]*entry{},
		byNode: map[string]map[string]bool{}, byService: map[types.NamespacedName]map[string]bool{},
	}
}

// newEntry reads a block. The error says what is wrong with it.
func newEntry(o *v3.IPAMBlock) (*entry, error) {
	e := &entry{obj: o}
	cidr, err := netip.ParsePrefix(o.Spec.CIDR)
	if err != nil {
		return e, err
	}
	e.cidr = cidr.Masked()
	b, err := manifest.FromV3(o)
	if err != nil {
		return e, err
	}
	e.block, e.tally = b, count(b)
	if n := b.Node(); n != "" {
		e.nodes = append(e.nodes, n)
	}
	for _, s := range b.Slots {
		if n := holderNode(s); n != "" {
			e.nodes = append(e.nodes, n)
		}
		if name := s.Attrs[attrService]; name != "" && strings.HasPrefix(s.Handle, handlePrefix) {
			e.services = append(e.services, types.NamespacedName{Namespace: s.Attrs[ipam.AttrNamespace], Name: name})
		}
	}
	slices.Sort(e.nodes)
	e.nodes = slices.Compact(e.nodes)
	slices.SortFunc(e.services, func(x, y types.NamespacedName) int { return strings.Compare(x.String(), y.String()) })
	e.services = slices.Compact(e.services)
	return e, nil
}

// older reports whether version a is known to come before version b. Versions of objects of
// one kind are numbers that grow (KEP-5504).
func older(a, b string) bool {
	x, err1 := strconv.ParseUint(a, 10, 64)
	y, err2 := strconv.ParseUint(b, 10, 64)
	return err1 == nil && err2 == nil && x < y
}

// watchLag is how far the watch may be behind what this controller wrote itself.
const watchLag = time.Minute

// put takes note of a version of a block that the watch told. It may be older than what was
// just written here, which is known already. Otherwise an older version is the truth: the
// API server came back from a backup.
func (l *ledger) put(o *v3.IPAMBlock) { l.note(o, time.Time{}) }

// written takes note of what this controller wrote.
func (l *ledger) written(o *v3.IPAMBlock) { l.note(o, l.now()) }

func (l *ledger) note(o *v3.IPAMBlock, wrote time.Time) {
	e, err := newEntry(o)
	e.wrote = wrote
	if err != nil {
		l.log.Warn("block makes no sense and is left alone; delete it by hand when no pod uses its addresses", "block", o.Name, "error", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	old := l.entries[o.Name]
	if old != nil && old.obj.UID == o.UID && older(o.ResourceVersion, old.obj.ResourceVersion) && l.now().Sub(old.wrote) < watchLag {
		return
	}
	l.unindex(old)
	l.entries[o.Name] = e
	for _, n := range e.nodes {
		index(l.byNode, n, o.Name)
	}
	for _, s := range e.services {
		index(l.byService, s, o.Name)
	}
	l.changed(old, e)
}

// drop takes note that a block was deleted.
func (l *ledger) drop(o *v3.IPAMBlock) {
	l.mu.Lock()
	defer l.mu.Unlock()
	old := l.entries[o.Name]
	if old == nil || old.obj.UID != o.UID {
		return
	}
	l.unindex(old)
	delete(l.entries, o.Name)
	l.changed(old, nil)
}

func (l *ledger) unindex(e *entry) {
	if e == nil {
		return
	}
	for _, n := range e.nodes {
		unindex(l.byNode, n, e.obj.Name)
	}
	for _, s := range e.services {
		unindex(l.byService, s, e.obj.Name)
	}
}

func index[K comparable](m map[K]map[string]bool, k K, name string) {
	if m[k] == nil {
		m[k] = map[string]bool{}
	}
	m[k][name] = true
}

func unindex[K comparable](m map[K]map[string]bool, k K, name string) {
	delete(m[k], name)
	if len(m[k]) == 0 {
		delete(m, k)
	}
}

// get returns a block by its object's name, or nil.
func (l *ledger) get(name string) *entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.entries[name]
}

// ofNode returns the blocks that a node owns or holds addresses in, sorted.
func (l *ledger) ofNode(node string) []*entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.named(l.byNode[node])
}

// ofService returns the blocks that a Service holds addresses in, sorted.
func (l *ledger) ofService(key types.NamespacedName) []*entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.named(l.byService[key])
}

func (l *ledger) named(names map[string]bool) []*entry {
	var out []*entry
	for name := range names {
		out = append(out, l.entries[name])
	}
	slices.SortFunc(out, compareEntries)
	return out
}

// freeze calls f with all blocks while none of them changes. f must not call the ledger.
func (l *ledger) freeze(f func(blocks map[string]*entry)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f(l.entries)
}

// all returns all blocks, sorted by address.
func (l *ledger) all() []*entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]*entry, 0, len(l.entries))
	for _, e := range l.entries {
		out = append(out, e)
	}
	slices.SortFunc(out, compareEntries)
	return out
}

// nodes returns the names of all nodes that blocks name.
func (l *ledger) nodes() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []string
	for n := range l.byNode {
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}

// services returns all Services that hold an address.
func (l *ledger) services() []types.NamespacedName {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []types.NamespacedName
	for s := range l.byService {
		out = append(out, s)
	}
	return out
}

func compareEntries(x, y *entry) int {
	if c := x.cidr.Addr().Compare(y.cidr.Addr()); c != 0 {
		return c
	}
	return strings.Compare(x.obj.Name, y.obj.Name)
}
