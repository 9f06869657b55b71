// Package kube is ipam's Store in the Kubernetes API: each block is an IPAMBlock object of
// projectcalico.org/v3, whose name is its CIDR.
//
// A claim is one create, which the API server lets only one node win; every other change
// carries the object's UID and resourceVersion. Nothing here rests on how fresh a list is,
// but for one thing that names cannot decide: that no block of another size overlaps. That
// is asked after the create (see overlap.go), of a list that is as new as the block.
//
// What it costs the API server. An ADD costs nothing by itself: counted at its metrics, a
// pod's ADD and DEL cost 0.1 writes in a burst of 125 and 0.3 when one comes every 300 ms, and
// no reads but one (usually empty) list of names for each block that is claimed. A resync is
// two lists that the watch cache answers (its own blocks by the selectable field
// spec.affinity, those it borrows from by label): with 1,000 nodes and the Resync below that
// is 2.2 requests a second, drawn at random in time. The names of all blocks (metadata out
// of the watch cache as protobuf, 0.6 to 1.2 kB each and a fifteenth of that after gzip; for
// 5,000 blocks 6 MB, or 0.4 MB on the wire) are read when a node first claims, when two of
// its claims clash, when a pool looks full, and otherwise once an hour (at each resync while
// there are 512 at most): for those 1,000 nodes 0.3 requests and 0.1 MB a second. Bodies of
// other nodes' blocks are read only to borrow: eight at random, then, if those had nothing,
// pages of 100 until there is enough, and not again within SearchEvery.
//
// Every write says in an annotation of the block whose it is and who holds what is lent of it
// (package blockroutes): other nodes make routes of that. A block that an older agent, Calico
// or a hand wrote without it gets it from its owner, when that lists its own blocks; one that
// nobody owns, from who has addresses in it.
//
// Blocks are a node's by its name. A Node that is deleted and made again under its name,
// with another UID, finds its blocks unless the controller, which frees by UID, was faster;
// an agent that lives through that reads its blocks before it gives another address, since
// its stash may be others' by then; blocks that the controller freed under its pods it claims
// again, or reports whose they are now. An agent whose
// journal is gone with the old machine adopts the blocks, lets the stash rest for the
// cooldown, and keeps what is in the name of containers until DEL, GC or the controller
// names them.
package kube

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/internal/kubeapi"
	"github.com/causeway-net/causeway/ipam"
	"github.com/causeway-net/causeway/ipam/manifest"
)

// What ipam.Config should say over this Store, so that a large cluster's API server hears
// of its nodes seldom.
const (
	Resync      = 20 * time.Minute
	SearchEvery = 10 * time.Second
	// Linger gathers the writes of more pods than a node's runtime starts in a second.
	Linger = 5 * time.Second
)

const (
	plural = "ipamblocks"
	// BorrowerPrefix begins the label of a block in which a node that does not own it has
	// addresses.
	BorrowerPrefix = "causeway-net.github.io/borrower-"
	// pageSize is how many blocks one request of a long list reads: less than a megabyte.
	pageSize = "100"
)

// BorrowerLabel returns the label (its value is BorrowerValue) of the blocks of others in
// which a node has addresses: a name of fixed length, whatever the node's is.
func BorrowerLabel(node string) string {
	sum := sha256.Sum256([]byte(node))
	return BorrowerPrefix + hex.EncodeToString(sum[:8])
}

// BorrowerValue returns the value of that label: the node's name, cut to what a label's
// value can hold. By it an admission policy (deploy/policies/node-binding.yaml), which
// cannot compute the label's name, knows whose label it is.
func BorrowerValue(node string) string {
	if len(node) <= 63 {
		return node
	}
	return node[:62] + "0" // the last character must be a letter or a digit
}

// Config is what New needs.
type Config struct {
	Clients *kubeapi.Clients // required: V3 and Metadata are used
	// Node is this node's name: of the labels of borrowers, only its own are changed.
	// Empty in the controller, which keeps the labels of all.
	Node string
	Log  *slog.Logger // required
}

// Store keeps blocks as IPAMBlocks. It implements ipam.Store.
type Store struct {
	cfg Config
	log *slog.Logger

	mu      sync.Mutex
	checked map[types.UID]struct{} // blocks that no block of another size overlaps
	warned  map[string]string      // by name: the last complaint about an object
}

// New makes the Store. Nothing is sent yet.
func New(cfg Config) (*Store, error) {
	if cfg.Clients == nil || cfg.Clients.V3 == nil || cfg.Clients.Metadata == nil {
		return nil, errors.New("ipam/kube: Config.Clients is required, with V3 and Metadata")
	}
	if cfg.Log == nil {
		return nil, errors.New("ipam/kube: Config.Log is required")
	}
	return &Store{cfg: cfg, log: cfg.Log.With("component", "ipam/kube"), checked: map[types.UID]struct{}{}, warned: map[string]string{}}, nil
}

// send sends a request and returns the body of the answer.
func send(ctx context.Context, r *rest.Request) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, kubeapi.RequestTimeout)
	defer cancel()
	body, err := r.Resource(plural).SetHeader("Content-Type", "application/json").Do(ctx).Raw()
	var status metav1.Status
	if err != nil && json.Unmarshal(body, &status) == nil && status.Kind == "Status" && status.Status == metav1.StatusFailure {
		return nil, apierrors.FromObject(&status) // what the server said, in its words
	}
	return body, err
}

// translate gives the API's errors the names that ipam knows. Everything else leaves the
// outcome unknown, or says plainly that the server refuses.
func translate(cidr netip.Prefix, err error) error {
	kind := error(nil)
	switch {
	case err == nil:
		return nil
	case apierrors.IsAlreadyExists(err):
		kind = ipam.ErrExists
	case isGone(v3.BlockName(cidr), err):
		kind = ipam.ErrNotFound
	case apierrors.IsConflict(err):
		kind = ipam.ErrConflict
	default:
		return fmt.Errorf("IPAMBlock %s: %w", v3.BlockName(cidr), err)
	}
	return fmt.Errorf("block %s: %w", cidr, kind)
}

// isGone reports whether the API server says that the object of this name does not exist.
// It answers 404, too, while the CRD is not there or another server has the API group, and
// so does a proxy that is lost: none of these knows anything of the block. What is no answer
// of the API's, client-go marks so.
func isGone(name string, err error) bool {
	var status apierrors.APIStatus
	if !apierrors.IsNotFound(err) || !errors.As(err, &status) {
		return false
	}
	d := status.Status().Details
	return d != nil && d.Name == name && d.Group == v3.GroupName && !apierrors.HasStatusCause(err, metav1.CauseTypeUnexpectedServerResponse)
}

// Create claims a block: ipam.Store.
func (s *Store) Create(ctx context.Context, b *ipam.Block) error {
	data, err := s.encode(b, nil, true)
	if err != nil {
		return err
	}
	body, err := send(ctx, s.cfg.Clients.V3.Post().Body(data))
	if err != nil {
		return translate(b.CIDR, err)
	}
	made, err := decode(body)
	if err != nil {
		return err
	}
	other, err := s.overlaps(ctx, made)
	if err != nil {
		return fmt.Errorf("IPAMBlock %s: created, but not yet known to overlap none: %w", made.name, err)
	}
	if other.IsValid() {
		if err := s.remove(ctx, made); err != nil {
			return fmt.Errorf("IPAMBlock %s overlaps that of %s, and could not be taken back: %w", made.name, other, err)
		}
		return fmt.Errorf("block %s: %w: %s", b.CIDR, ipam.ErrExists, other)
	}
	b.Revision, b.Stored = made.revision(), made
	return nil
}

// Update replaces a block: ipam.Store. What else the object holds stays.
func (s *Store) Update(ctx context.Context, b *ipam.Block) error {
	old, ok := b.Stored.(*object)
	if !ok || old.revision() != b.Revision {
		body, err := send(ctx, s.cfg.Clients.V3.Get().Name(v3.BlockName(b.CIDR)))
		if err != nil {
			return translate(b.CIDR, err)
		}
		if old, err = decode(body); err != nil {
			return err
		}
		if old.revision() != b.Revision {
			return fmt.Errorf("block %s: %w", b.CIDR, ipam.ErrConflict)
		}
	}
	if err := s.mayMark(ctx, b, old); err != nil {
		return err
	}
	made, err := s.write(ctx, b, old)
	if apierrors.IsConflict(err) {
		// The API server says the same of an object that is gone.
		if _, gone := send(ctx, s.cfg.Clients.V3.Get().Name(old.name)); isGone(old.name, gone) {
			err = gone
		}
	}
	if err != nil {
		return translate(b.CIDR, err)
	}
	b.Revision, b.Stored = made.revision(), made
	return nil
}

// Delete removes a block: ipam.Store.
func (s *Store) Delete(ctx context.Context, b *ipam.Block) error {
	uid, version, _ := strings.Cut(b.Revision, "/")
	return translate(b.CIDR, s.remove(ctx, &object{name: v3.BlockName(b.CIDR), uid: types.UID(uid), version: version}))
}

func (s *Store) remove(ctx context.Context, o *object) error {
	data, err := json.Marshal(metav1.DeleteOptions{
		TypeMeta:      metav1.TypeMeta{APIVersion: "v1", Kind: "DeleteOptions"},
		Preconditions: &metav1.Preconditions{UID: &o.uid, ResourceVersion: &o.version},
	})
	if err != nil {
		return err
	}
	_, err = send(ctx, s.cfg.Clients.V3.Delete().Name(o.name).Body(data))
	if err == nil {
		s.mu.Lock()
		delete(s.checked, o.uid)
		s.mu.Unlock()
	}
	return err
}

// Get reads a block: ipam.Store.
func (s *Store) Get(ctx context.Context, cidr netip.Prefix) (*ipam.Block, error) {
	body, err := send(ctx, s.cfg.Clients.V3.Get().Name(v3.BlockName(cidr)))
	if err != nil {
		return nil, translate(cidr, err)
	}
	o, err := decode(body)
	if err != nil {
		return nil, err
	}
	sound, err := s.sound(ctx, []*object{o}, o.version)
	if err != nil {
		return nil, fmt.Errorf("IPAMBlock %s: not known to overlap none: %w", o.name, err)
	}
	if len(sound) == 0 {
		return nil, fmt.Errorf("IPAMBlock %s overlaps another block", o.name)
	}
	return o.block, nil
}

// List reads blocks page by page: ipam.Store. One that cannot be read is logged and left
// out; its name still keeps others from claiming its addresses.
func (s *Store) List(ctx context.Context, q ipam.Query) iter.Seq2[*ipam.Block, error] {
	return func(yield func(*ipam.Block, error) bool) {
		next := ""
		for {
			blocks, more, err := s.page(ctx, q, next)
			if err != nil {
				yield(nil, fmt.Errorf("list IPAMBlocks: %w", err))
				return
			}
			for _, b := range blocks {
				if q.Selects(b) && !yield(b, nil) {
					return
				}
			}
			if more == "" {
				return
			}
			next = more
		}
	}
}

// page reads one page of a list, and returns the token of the next one.
func (s *Store) page(ctx context.Context, q ipam.Query, next string) ([]*ipam.Block, string, error) {
	r := s.cfg.Clients.V3.Get().Param("limit", pageSize)
	switch {
	case q.Owner != "":
		r.Param("fieldSelector", "spec.affinity=host:"+q.Owner)
	case q.Borrower != "":
		r.Param("labelSelector", BorrowerLabel(q.Borrower))
	}
	if next != "" {
		r.Param("continue", next)
	}
	body, err := send(ctx, r)
	if err != nil {
		return nil, "", err
	}
	var list struct {
		Metadata metav1.ListMeta   `json:"metadata"`
		Items    []json.RawMessage `json:"items"`
	}
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, "", err
	}
	objects := make([]*object, 0, len(list.Items))
	for _, item := range list.Items {
		o, err := decode(item)
		if err != nil {
			s.complain(o.name, err.Error(), "block cannot be read and is left alone")
			continue
		}
		objects = append(objects, o)
	}
	sound, err := s.sound(ctx, objects, list.Metadata.ResourceVersion)
	if err != nil {
		return nil, "", err
	}
	blocks := make([]*ipam.Block, len(sound))
	for i, o := range sound {
		blocks[i] = s.mend(ctx, o).block
	}
	return blocks, list.Metadata.Continue, nil
}

// Claimed returns the CIDRs that the objects' names say: ipam.Store. Unless fresh is set
// the API server answers out of its watch cache.
func (s *Store) Claimed(ctx context.Context, fresh bool) ([]netip.Prefix, error) {
	o := metav1.ListOptions{ResourceVersion: "0"}
	if fresh {
		o.ResourceVersion = ""
	}
	list, err := s.names(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("list the names of IPAMBlocks: %w", err)
	}
	return list, nil
}

func (s *Store) names(ctx context.Context, o metav1.ListOptions) ([]netip.Prefix, error) {
	ctx, cancel := context.WithTimeout(ctx, kubeapi.RequestTimeout)
	defer cancel()
	list, err := s.cfg.Clients.Metadata.Resource(v3.SchemeGroupVersion.WithResource(plural)).List(ctx, o)
	if err != nil {
		return nil, err
	}
	out := make([]netip.Prefix, 0, len(list.Items))
	for i := range list.Items {
		name := list.Items[i].Name
		p, ok := manifest.ParseName(name)
		if !ok {
			s.complain(name, "its name is no CIDR with dashes, as 10-244-0-0-26 is", "not a block, and it keeps no address from anybody")
			continue
		}
		out = append(out, p)
	}
	return slices.Clip(out), nil
}

// complain logs what is wrong with an object, once for as long as it stays so.
func (s *Store) complain(name, what, message string) {
	s.mu.Lock()
	again := s.warned[name] == what
	if len(s.warned) > 1000 {
		clear(s.warned)
	}
	s.warned[name] = what
	s.mu.Unlock()
	if !again {
		s.log.Error(message, "object", "IPAMBlock "+name, "error", what)
	}
}
