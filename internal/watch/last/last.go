// Package last owns the last snapshot on local disk. An agent that starts while the
// datastore is away works from it, so that its BGP peers hear of this node again before
// they forget it (DESIGN I4).
//
// No secret is written (I7): a peer with a password is left out, and so is the mesh if it
// has one; BGP.Unknown then says that not everything is known.
package last

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/internal/selector"
)

// gather is how long changes are gathered before the file is written again: what is lost
// with it the datastore tells again.
const gather = time.Second

// form is the version of the file's form; a file of another one counts as none.
const form = 1

// file is what stands on disk. Its fields take the places of the snapshot's that JSON
// cannot carry.
type file struct {
	Form int
	Node string
	model.Snapshot
	Pools []pool
	Peers []peer
}

type pool struct {
	model.Pool
	NodeSelector, NamespaceSelector text
}

type peer struct {
	model.BGPPeer
	NodeSelector, PeerSelector text
}

// text is a selector as it is written; null is none.
type text struct{ model.Selector }

func (t text) MarshalJSON() ([]byte, error) {
	if t.Selector == nil {
		return []byte("null"), nil
	}
	return json.Marshal(t.String())
}

func (t *text) UnmarshalJSON(data []byte) error {
	var s *string
	if err := json.Unmarshal(data, &s); err != nil || s == nil {
		return err
	}
	compiled, err := selector.Parse(*s)
	if err != nil {
		return err
	}
	t.Selector = compiled
	return nil
}

func encode(node string, snap *model.Snapshot) ([]byte, error) {
	f := file{Form: form, Node: node, Snapshot: *snap}
	for _, p := range snap.Pools {
		f.Pools = append(f.Pools, pool{p, text{p.NodeSelector}, text{p.NamespaceSelector}})
	}
	for _, p := range snap.Peers {
		if p.Password != "" {
			f.BGP.Unknown = true
			continue
		}
		f.Peers = append(f.Peers, peer{p, text{p.NodeSelector}, text{p.PeerSelector}})
	}
	if f.BGP.MeshPassword != "" {
		f.BGP.MeshPassword, f.BGP.Mesh, f.BGP.Unknown = "", false, true
	}
	return json.Marshal(f)
}

func decode(node string, data []byte) (*model.Snapshot, error) {
	var f file
	if err := json.Unmarshal(data, &f); err != nil {
		return nil, err
	}
	if f.Form != form || f.Node != node || f.Revision == 0 {
		return nil, fmt.Errorf("is of form %d and node %q, want form %d and node %q", f.Form, f.Node, form, node)
	}
	snap := &f.Snapshot
	for _, p := range f.Pools {
		p.Pool.NodeSelector, p.Pool.NamespaceSelector = p.NodeSelector.Selector, p.NamespaceSelector.Selector
		snap.Pools = append(snap.Pools, p.Pool)
	}
	for _, p := range f.Peers {
		p.BGPPeer.NodeSelector, p.BGPPeer.PeerSelector = p.NodeSelector.Selector, p.PeerSelector.Selector
		snap.Peers = append(snap.Peers, p.BGPPeer)
	}
	return snap, nil
}

// Load reads the snapshot that an agent of the same node left at path. A missing file is
// an error for which errors.Is(err, fs.ErrNotExist) holds.
func Load(path, node string) (*model.Snapshot, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	snap, err := decode(node, data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return snap, nil
}

// after is how long the datastore may take to tell: less than it takes peers to forget a
// node.
const after = 5 * time.Second

// Keeper stands between a source of snapshots and who works from them: it passes on what
// the source tells and keeps it on disk, and when the source does not tell soon, it passes
// on what an earlier agent kept.
type Keeper struct {
	path, node string
	log        *slog.Logger
	publish    func(*model.Snapshot)
	wake       chan struct{} // capacity 1

	mu   sync.Mutex      // held while publishing
	snap *model.Snapshot // the source's newest; nil until it has told
}

// NewKeeper makes a Keeper of the file at path, which must not survive the node's going
// down. Nothing is read or written yet.
func NewKeeper(path, node string, log *slog.Logger, publish func(*model.Snapshot)) *Keeper {
	return &Keeper{path: path, node: node, log: log, publish: publish, wake: make(chan struct{}, 1)}
}

func (k *Keeper) String() string { return "last snapshot" }

// Publish passes on the source's newest snapshot. It waits for who works from it, and not
// for the disk.
func (k *Keeper) Publish(snap *model.Snapshot) {
	k.mu.Lock()
	k.snap = snap
	k.publish(snap)
	k.mu.Unlock()
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// Run writes what is published until ctx is cancelled. A disk that refuses is logged: the
// agent works without the file.
func (k *Keeper) Run(ctx context.Context) error {
	late := time.NewTimer(after)
	defer late.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-late.C:
			k.recall()
			continue
		case <-k.wake:
		}
		k.mu.Lock()
		snap := k.snap
		k.mu.Unlock()
		err := k.write(snap)
		if err != nil && !failing {
			k.log.Warn("the next agent will not know the datastore until it answers", "error", err)
		}
		failing = err != nil
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(gather):
		}
	}
}

// recall publishes what an earlier agent kept, unless the source has told.
func (k *Keeper) recall() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.snap != nil {
		return
	}
	switch snap, err := Load(k.path, k.node); {
	case err == nil:
		// What was written is up to a second older than what the kernel has of it.
		snap.BlocksKnown = !slices.ContainsFunc(snap.Pools, func(p model.Pool) bool { return p.VXLANMode != model.EncapNever })
		k.log.Warn("the datastore does not answer; working from what an earlier agent knew")
		k.publish(snap)
	case !errors.Is(err, fs.ErrNotExist):
		k.log.Warn("the datastore does not answer, and what an earlier agent knew cannot be used", "error", err)
	}
}

// write replaces the file whole. It need not survive the node's going down: nothing that
// it speaks of would.
func (k *Keeper) write(snap *model.Snapshot) error {
	data, err := encode(k.node, snap)
	if err != nil {
		return err
	}
	temp, err := os.CreateTemp(filepath.Dir(k.path), ".snapshot-") // mode 0600
	if err != nil {
		return err
	}
	_, err = temp.Write(data)
	if err = errors.Join(err, temp.Close()); err == nil {
		err = os.Rename(temp.Name(), k.path)
	}
	if err != nil {
		os.Remove(temp.Name())
	}
	return err
}
