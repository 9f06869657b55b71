// Package ipam gives addresses to pods and to this node's tunnels. It owns the address blocks of this node (the
// IPAMBlock is the only record of who owns what, and it changes by compare-and-swap
// alone), the choice of pool and address, the stash of addresses that are marked in a
// block before anybody needs them, and the journal of what was promised to pods.
//
// The rule that everything here follows: an address is marked in its block before it is
// used, and it is free in the journal before it is freed in the block. So whatever the
// agent or the Store dies of, and whenever, no address has two owners (invariant I1), and
// what is marked but unused is found again by the next start.
package ipam

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/causeway-net/causeway/internal/model"
)

// Errors that callers tell apart with errors.Is; they come wrapped with the object.
var (
	ErrNotReady     = errors.New("ipam is not ready")                  // no snapshot yet, or the Store was never read
	ErrNoPool       = errors.New("no usable pool")                     // no pool may serve this request on this node
	ErrExhausted    = errors.New("no free address")                    // pools are there, but nothing is free
	ErrAddressInUse = errors.New("address is in use")                  // the requested address has another holder
	ErrNotInPool    = errors.New("address is in no pool of this node") // the requested address may not be given here
	ErrReserved     = errors.New("address is reserved")                // an IPReservation covers the requested address
	ErrClosed       = errors.New("ipam is closed")
)

// Config is what New needs.
type Config struct {
	Node       string       // required: this node's name
	Store      Store        // required
	JournalDir string       // required: a folder on local disk, made (0700) when missing
	Log        *slog.Logger // required

	// Private says that no other node sees the Store (a manifest folder of this node
	// alone): only pools whose nodeSelector pins kubernetes.io/hostname to this node are
	// used, because nothing else keeps two such nodes from claiming the same block.
	Private bool

	// Batch is how long Run waits, once a stash runs low, for more to write with the
	// refill; default 50 ms.
	Batch time.Duration
	// Linger is how long Run waits for more to write when nobody waits for it: whose an
	// address is, and what is free again; default 1 s.
	Linger time.Duration
	// Resync is the longest time between two readings of this node's blocks; default
	// 5 min. The wait is drawn between a half and the whole of it.
	Resync time.Duration
	// SearchEvery is the least time between two searches of all nodes' blocks for a free
	// address of a pool, when the first found none; default 0: whenever an ADD asks.
	SearchEvery time.Duration
	// BlockIdle is how long a block stays empty before it is given back; default 1 min.
	BlockIdle time.Duration

	// Tunnels, if set, hears of this node's tunnel addresses, by model.Tunnel: of those that
	// the journal has when Run begins, once when it is known which there are, and of every
	// change. A new address is in the journal, on disk, before it is told, and it is told
	// before the old one is freed. It must return soon and must not call the Allocator.
	Tunnels func([model.Tunnels]netip.Addr)

	Now      func() time.Time     // optional: the clock; default time.Now
	SyncFile func(*os.File) error // optional: makes a journal file durable; default (*os.File).Sync
}

func (c *Config) defaults() error {
	switch {
	case c.Node == "":
		return errors.New("ipam: Config.Node is empty: want this node's name")
	case c.Store == nil:
		return errors.New("ipam: Config.Store is nil")
	case c.JournalDir == "":
		return errors.New("ipam: Config.JournalDir is empty: want a folder on local disk")
	case c.Log == nil:
		return errors.New("ipam: Config.Log is nil")
	}
	if c.Batch == 0 {
		c.Batch = 50 * time.Millisecond
	}
	if c.Linger == 0 {
		c.Linger = time.Second
	}
	if c.Resync == 0 {
		c.Resync = 5 * time.Minute
	}
	if c.BlockIdle == 0 {
		c.BlockIdle = time.Minute
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.SyncFile == nil {
		c.SyncFile = (*os.File).Sync
	}
	return nil
}

// Allocator gives out and takes back the addresses of one node's pods. Its methods may be
// called concurrently.
type Allocator struct {
	cfg     Config
	log     *slog.Logger
	journal *journal
	keys    keyLocks      // one Assign or Release of a container at a time
	writer  chan struct{} // holds one token: who has it may call the Store
	poke    chan struct{} // wakes Run

	mu sync.Mutex
	// state is what the journal says; it changes through state.apply only.
	state state
	snap  *model.Snapshot // nil until Set
	pools map[string]*pool
	// orphans are addresses that the blocks give to a container of this node of which
	// the (lost or damaged) journal knows nothing. They stay until DEL or GC names them.
	orphans map[netip.Addr]orphan
	dirty   map[netip.Prefix]struct{} // blocks that do not yet say what state says
	relent  map[netip.Prefix]struct{} // blocks of ours that other nodes changed
	synced  bool                      // this node's blocks were read since New
	// doubts counts the times at which a snapshot showed that others may have freed what is
	// ours: this node was gone, or a block in which it has addresses. settled is what doubts
	// was when the last reading of the blocks began; while they differ no address is given.
	doubts, settled uint64
	unreadAt        time.Time // when the blocks could last not be read
	adopt           bool      // an unknown stash mark of ours can be believed to be unused
	closed          bool
	tunnels         tunnels

	// What follows belongs to the holder of the writer's token, and of mu as well where
	// it is changed; so either suffices for reading.
	blocks  map[netip.Prefix]*Block // last known version of our own blocks and those we hold addresses of
	claimed claims                  // every block known to exist; all that there are only once named is set
	named   time.Time               // when the CIDRs of all blocks were read last; zero: never
	// namedFresh says that this was no reading that may have been old.
	namedFresh bool
	stale      map[netip.Prefix]struct{}  // blocks to be read again before they are written
	empty      map[netip.Prefix]time.Time // own blocks without a pod, and since when
	lastSync   time.Time
}

// New opens the journal (it replays it) and returns an Allocator that knows its
// endpoints. It fails when the journal belongs to another node or is open in another
// process. Nothing is read from the Store yet.
func New(cfg Config) (*Allocator, error) {
	if err := cfg.defaults(); err != nil {
		return nil, err
	}
	a := &Allocator{
		cfg:     cfg,
		log:     cfg.Log.With("component", "ipam"),
		writer:  make(chan struct{}, 1),
		poke:    make(chan struct{}, 1),
		state:   newState(),
		pools:   map[string]*pool{},
		orphans: map[netip.Addr]orphan{},
		dirty:   map[netip.Prefix]struct{}{},
		relent:  map[netip.Prefix]struct{}{},
		blocks:  map[netip.Prefix]*Block{},
		stale:   map[netip.Prefix]struct{}{},
		empty:   map[netip.Prefix]time.Time{},
	}
	a.writer <- struct{}{}
	j, err := openJournal(cfg, a.log, &a.state, a.mirror)
	if err != nil {
		return nil, fmt.Errorf("ipam: journal %s: %w", cfg.JournalDir, err)
	}
	a.journal = j
	a.adopt = a.state.whole
	now := cfg.Now()
	for _, h := range a.state.holds {
		switch {
		case !h.block.IsValid():
			// Without IPAM: no block speaks of it.
		case h.state == stashed && !a.state.whole:
			// A lost record may have given it to a pod: let it rest as if it had.
			a.record(record{Kind: recFree, Addrs: []netip.Addr{h.addr}, Block: h.block, At: now})
			fallthrough
		case h.state != stashed:
			a.dirty[h.block] = struct{}{}
		}
	}
	return a, nil
}

// Close closes the journal. It writes nothing: a closed Allocator has lost no more than
// one whose process was killed. Calls after it fail with ErrClosed.
func (a *Allocator) Close() error {
	a.mu.Lock()
	a.closed = true
	a.mu.Unlock()
	return a.journal.close()
}

// Set gives the Allocator the pools, the IPAM configuration, the reservations, this node's
// labels, and which blocks the datastore shows as this node's. It returns at once; Run acts
// on what has changed.
func (a *Allocator) Set(s *model.Snapshot) {
	a.mu.Lock()
	old := a.snap
	a.snap = s
	if a.displaced(old, s) {
		a.doubts++
		a.log.Warn("this node or a block in which it has addresses was gone; its blocks are read before another address is given")
	}
	a.revisit(old, s)
	if !sameRules(old, s, a.cfg.Node) {
		a.sortStash()
		a.hurryTunnels()
	}
	a.mu.Unlock()
	a.wake()
}

// displaced reports whether this node, or a block in which it has addresses, was there in
// the old snapshot and is not in the new one. Then others, such as the controller, may have
// freed addresses that the stash still has, and given them to somebody else. a.mu is held.
func (a *Allocator) displaced(old, now *model.Snapshot) bool {
	if old == nil {
		return false
	}
	if old.Node(a.cfg.Node) != nil && now.Node(a.cfg.Node) == nil {
		return true
	}
	return slices.ContainsFunc(old.Blocks, func(b model.Block) bool {
		return len(a.state.byBlock[b.CIDR]) > 0 && !slices.ContainsFunc(now.Blocks, func(c model.Block) bool { return c.CIDR == b.CIDR && c.Node == b.Node })
	})
}

// revisit notes the blocks of ours in which other nodes took or gave back addresses: one
// that they left may be empty now. a.mu is held.
func (a *Allocator) revisit(old, now *model.Snapshot) {
	if old == nil {
		return
	}
	lent := map[netip.Prefix]int{}
	for _, b := range old.Blocks {
		lent[b.CIDR] = len(b.Lent)
	}
	for _, b := range now.Blocks {
		if n, ok := lent[b.CIDR]; ok && n != len(b.Lent) && b.Node == a.cfg.Node {
			a.relent[b.CIDR] = struct{}{}
		}
	}
}

// sameRules reports whether both snapshots say the same of what a stash may serve. Another
// node that comes or changes, as some node of a large cluster always does, sorts nothing.
func sameRules(x, y *model.Snapshot, node string) bool {
	if x == nil || y == nil {
		return x == y
	}
	return reflect.DeepEqual(x.Node(node), y.Node(node)) && x.IPAM == y.IPAM &&
		slices.Equal(x.Reservations, y.Reservations) && reflect.DeepEqual(x.Pools, y.Pools)
}

// Endpoint returns the endpoint with that key.
func (a *Allocator) Endpoint(k model.AttachmentKey) (model.Endpoint, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	at, ok := a.state.endpoints[k]
	if !ok {
		return model.Endpoint{}, false
	}
	return at.endpoint(), true
}

// Endpoints returns all endpoints, sorted by key.
func (a *Allocator) Endpoints() []model.Endpoint {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.state.list(func(model.Endpoint) bool { return true })
}

// Ready says why an ADD without special wishes would fail now, or nil.
func (a *Allocator) Ready() error {
	if err := a.journal.health(); err != nil {
		return fmt.Errorf("%w: journal %s: %w", ErrNotReady, a.cfg.JournalDir, err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	wants, err := a.wants(model.AddressRequest{})
	if err != nil {
		return err
	}
	for _, w := range wants {
		if err := a.servable(w); err != nil {
			return err
		}
	}
	return nil
}

// servable returns nil when one of w's pools has a stashed address or has not failed of
// late (Run tries again every now and then). a.mu is held.
func (a *Allocator) servable(w want) error {
	var why reasons
	for _, name := range w.pools {
		p := a.pools[name]
		if p == nil || p.err == nil || a.stashSize(p) > 0 || a.cfg.Now().Sub(p.errAt) > 2*recent {
			return nil
		}
		why = append(why, p.err)
	}
	return w.refused(why)
}

func (a *Allocator) wake() {
	select {
	case a.poke <- struct{}{}:
	default:
	}
}

// lockWriter takes the writer's token.
func (a *Allocator) lockWriter(ctx context.Context) error {
	select {
	case <-a.writer:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (a *Allocator) unlockWriter() { a.writer <- struct{}{} }

// record changes state and hands the change to the journal; the batch tells when it is on
// disk. a.mu is held.
func (a *Allocator) record(r record) *batch {
	a.state.apply(r)
	return a.journal.append(r)
}

func (a *Allocator) stashHandle() string { return StashPrefix + a.cfg.Node }

// mirror returns the frames of the whole state, and the batch that they include.
func (a *Allocator) mirror() (*batch, []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	b, _ := a.journal.cut()
	var frames []byte
	for _, r := range a.state.records(a.cfg.Node) {
		frames = appendFrame(frames, r)
	}
	return b, frames
}
