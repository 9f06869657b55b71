package kube

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
	"unique"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	apiwatch "k8s.io/apimachinery/pkg/watch"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/internal/blockroutes"
	"github.com/causeway-net/causeway/internal/kubeapi"
	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/internal/watch"
)

// Blocks of all nodes are watched while a pool's vxlanMode asks for routes made of blocks,
// and only as metadata: an annotation says where their addresses are (package blockroutes).
// Measured at the API server, a block of 64 addresses in use is 1.4 kB so, and 21 kB in full;
// 260 bytes of it stay in memory. An event comes with every write of any block: about one for
// five pods that come or go in the cluster.

// mendWait is how long blocks that nobody can tell the owner of keep the others from being
// all that there are. Their owners mend them within ipam/kube's Resync, or are gone.
const mendWait = 30 * time.Minute

// foreign is what is kept of a block.
//
// Invariant: what is known is what the newest annotation of the object that could be read
// said.
type foreign struct {
	cidr    netip.Prefix // the zero Prefix: nothing was ever known
	node    unique.Handle[string]
	lent    []model.Loan // immutable
	created int64        // Unix seconds
	// broken: the newest version has no annotation that can be read. stale: it was written
	// for another spec.
	broken, stale bool
}

// foreignBlocks is a contents of IPAMBlocks' metadata, by name.
type foreignBlocks struct {
	rows          map[string]*foreign // immutable
	broken, stale map[string]struct{} // names
}

func newForeignBlocks() *foreignBlocks {
	return &foreignBlocks{rows: map[string]*foreign{}, broken: map[string]struct{}{}, stale: map[string]struct{}{}}
}

func (t *foreignBlocks) len() int { return len(t.rows) }

func (t *foreignBlocks) set(obj metav1.Object) bool {
	name := obj.GetName()
	var old foreign
	there := t.rows[name] != nil
	if there {
		old = *t.rows[name]
	}
	row := readForeign(old, obj)
	if there && row.cidr == old.cidr && row.node == old.node && row.created == old.created &&
		row.broken == old.broken && row.stale == old.stale && slices.Equal(row.lent, old.lent) {
		return false
	}
	t.rows[name] = &row
	mark(t.broken, name, row.broken)
	mark(t.stale, name, row.stale)
	return true
}

func mark(set map[string]struct{}, name string, in bool) {
	if in {
		set[name] = struct{}{}
	} else {
		delete(set, name)
	}
}

// readForeign makes the row of an object, of which old was known.
func readForeign(old foreign, obj metav1.Object) foreign {
	b, generation, err := blockroutes.Parse(obj.GetName(), obj.GetAnnotations()[blockroutes.Annotation])
	created := obj.GetCreationTimestamp().Unix()
	if err != nil {
		if old.created != created { // another object of that name
			old = foreign{created: created}
		}
		old.broken, old.stale = true, false
		return old
	}
	out := foreign{cidr: b.CIDR, node: unique.Make(b.Node), created: created, stale: generation != obj.GetGeneration()}
	for _, l := range b.Lent { // names that many blocks share are kept once
		out.lent = append(out.lent, model.Loan{Addr: l.Addr, Node: unique.Make(l.Node).Value()})
	}
	return out
}

func (t *foreignBlocks) remove(obj metav1.Object) bool {
	_, there := t.rows[obj.GetName()]
	t.drop(obj.GetName())
	return there
}

func (t *foreignBlocks) drop(name string) {
	delete(t.rows, name)
	delete(t.broken, name)
	delete(t.stale, name)
}

func (t *foreignBlocks) replace(objs []any) bool {
	changed := false
	seen := make(map[string]bool, len(objs))
	for _, o := range objs {
		obj := o.(metav1.Object)
		seen[obj.GetName()] = true
		changed = t.set(obj) || changed
	}
	for name := range t.rows {
		if !seen[name] {
			t.drop(name)
			changed = true
		}
	}
	return changed
}

// stripBlock keeps of a block's metadata what is read.
func stripBlock(obj any) (any, error) {
	m, ok := obj.(*metav1.PartialObjectMetadata)
	if !ok {
		return obj, nil
	}
	out := &metav1.PartialObjectMetadata{ObjectMeta: bare(&m.ObjectMeta)}
	out.Generation = m.Generation
	if v, ok := m.Annotations[blockroutes.Annotation]; ok {
		out.Annotations = map[string]string{blockroutes.Annotation: v}
	}
	return out, nil
}

// blockFeed is the watch of the blocks of all nodes, while there is one.
type blockFeed struct {
	*feed
	blocks        *foreignBlocks
	stop          context.CancelFunc
	broken, stale rested
	waits         bool // for owners to mend; somebody will look when mendWait is over
}

func (s *Source) newBlockFeed() *blockFeed {
	f := &blockFeed{blocks: newForeignBlocks(), broken: rested{again: s.changedAfter}, stale: rested{again: s.changedAfter}}
	resource := v3.SchemeGroupVersion.WithResource("ipamblocks")
	f.feed = &feed{
		s: s, lastWait: lastWait, tried: make(chan struct{}), onChange: s.changed,
		name: resource.Resource + "." + resource.Group + " of all nodes", resource: resource.Resource + "." + resource.Group, needed: true,
		source: metadataOf(s.cfg.Clients, resource, func(*metav1.ListOptions) {}),
		sample: &metav1.PartialObjectMetadata{}, strip: stripBlock, contents: f.blocks,
	}
	return f
}

// watchBlocks starts or stops the watch of the blocks of all nodes.
func (s *Source) watchBlocks(ctx context.Context, running *sync.WaitGroup, needed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case needed && s.allBlocks == nil:
		ctx, cancel := context.WithCancel(ctx)
		f := s.newBlockFeed()
		f.stop, s.allBlocks = cancel, f
		running.Go(func() { f.run(ctx) })
		s.log.Info("all nodes' blocks are watched: a pool's vxlanMode asks for it")
	case !needed && s.allBlocks != nil:
		s.allBlocks.stop()
		s.allBlocks.end()
		s.allBlocks = nil
		s.log.Info("all nodes' blocks are not watched any more: no pool's vxlanMode asks for it")
	}
}

// addBlocks adds what the watch of all blocks says, if there is one: of the blocks that
// those of this node's do not tell. s.mu is held.
func (s *Source) addBlocks(in *watch.Input) {
	f := s.allBlocks
	if f == nil {
		return
	}
	if p, ok := f.problem(); ok {
		in.Problems = append(in.Problems, p)
	}
	unknown := 0
	in.Others = make([]watch.OtherBlock, 0, len(f.blocks.rows))
	for name, row := range f.blocks.rows {
		if s.inFull(name) {
			continue
		}
		if !row.cidr.IsValid() {
			unknown++
			continue
		}
		if row.node.Value() == s.cfg.Node {
			continue // what is this node's, and what it tells others of, the watch of its own says alone
		}
		in.Others = append(in.Others, watch.OtherBlock{
			Block:   model.Block{CIDR: row.cidr, Node: row.node.Value(), Lent: row.lent},
			Claimed: time.Unix(row.created, 0),
		})
	}
	switch wait := time.Until(f.synced.Add(mendWait)); {
	case f.synced.IsZero():
		in.BlocksPending = true
	case unknown > 0 && wait > 0:
		in.BlocksPending = true
		if !f.waits {
			f.waits = true
			s.changedAfter(wait)
		}
	}
	object := model.Object{Kind: v3.KindIPAMBlock, Name: "*"}
	field := ".metadata.annotations[" + blockroutes.Annotation + "]"
	const mended = "the agent of the node that owns a block mends it within 20 minutes"
	if words := f.broken.say(f.blocks.broken, "is missing, or cannot be read, of %d: %s; no VXLAN routes lead to those of which nothing was known before; "+mended); words != "" {
		in.Problems = append(in.Problems, model.Problem{Object: object, Field: field, Message: words})
	}
	if words := f.stale.say(f.blocks.stale, "is older than the block of %d: %s; VXLAN routes are made of what it says; "+mended); words != "" {
		in.Problems = append(in.Problems, model.Problem{Object: object, Field: field, Message: words, Ignored: true})
	}
}

// inFull reports whether a block is read in full.
func (s *Source) inFull(name string) bool {
	_, own := s.ownBlocks.rows[name]
	_, borrowed := s.borrowed.rows[name]
	return own || borrowed
}

// metadataOf lists and watches a resource as metadata only.
func metadataOf(c *kubeapi.Clients, resource schema.GroupVersionResource, narrow func(*metav1.ListOptions)) *kubeapi.ListWatch {
	client := c.Metadata.Resource(resource)
	return kubeapi.NewListWatch(
		func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			narrow(&o)
			return client.List(ctx, o)
		},
		func(ctx context.Context, o metav1.ListOptions) (apiwatch.Interface, error) {
			narrow(&o)
			return client.Watch(ctx, o)
		})
}

// all narrows nothing.
func all(*metav1.ListOptions) {}

// without narrows to the objects of other names.
func without(names ...string) func(*metav1.ListOptions) {
	terms := make([]string, len(names))
	for i, n := range names {
		terms[i] = "metadata.name!=" + n
	}
	return func(o *metav1.ListOptions) { o.FieldSelector = strings.Join(terms, ",") }
}

// rested are words about a number of objects that stay as they are for a while as objects
// come and go; that there are any, or none any more, is told at once.
type rested struct {
	again func(time.Duration) // asks to be called once more after a time
	words string              // as last told
	at    time.Time           // when
}

// say returns what to say of the objects of these names: format with their number and the
// first names; nothing if there are none.
func (r *rested) say(names map[string]struct{}, format string) string {
	if len(names) == 0 {
		r.words, r.at = "", time.Time{}
		return ""
	}
	describe := func() string { return fmt.Sprintf(format, len(names), firstNames(maps.Keys(names), len(names))) }
	if rest := ignoredRest - time.Since(r.at); rest <= 0 {
		r.words, r.at = describe(), time.Now()
	} else if r.words != describe() {
		r.again(rest)
	}
	return r.words
}
