// Package announce owns the channel on which agents tell each other the addresses of new pods:
// datagrams from node to node, sealed with a key that all agents share and pods cannot read.
//
// What a policy of another node selects is known there, by the watch of pods, before the pod has
// an address; the address comes with the pod's status, which the kubelet writes a second or
// more after ADD. An announcement fills that gap, at no cost to the API server. It is never
// needed: what is lost, refused or sent without a key comes with the status as before, and what
// the status says replaces what was announced.
//
// The receiver believes little. Of a datagram it must know the source address as a node's and
// the key; of what it says the node must be the one at that address, the time must be this
// node's within two minutes, nothing of it may have been seen, and each address must lie in a
// block of that node, or, where blocks of other nodes are not known, in a pool. Who is told (watch.Policies)
// believes it only of a pod of that node with that UID that has no address yet.
package announce

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/causeway-net/causeway/internal/model"
)

// DefaultPort is the UDP port of all agents; IANA has assigned it to nobody.
const DefaultPort = 7179

// podInterface is the interface that a pod's status tells the addresses of.
const podInterface = "eth0"

// Config of an Announcer.
type Config struct {
	Node string // required: name of this node
	Port uint16 // of this node and all others; 0: DefaultPort
	// Deliver is called with each pod of another node that is announced; required. Calls may come
	// more than once for one pod, and from several goroutines. They must not wait for long.
	Deliver func(node string, p Pod)
	Log     *slog.Logger // required
}

// Announcer is this node's end of the channel. It is safe for concurrent use.
type Announcer struct {
	cfg  Config
	log  *slog.Logger
	boot uint64
	wake chan struct{} // capacity 1

	mu       sync.Mutex // guards what follows
	keys     keyring
	badKey   error // why the key that SetKey was given last is not used
	own      [2]netip.Addr
	peers    []netip.AddrPort      // one address of each other node
	nodes    map[netip.Addr]string // whose address it is, of all other nodes
	place    place
	queue    queue
	sequence uint64
	senders  map[string]*sender // by node
	sockets  [2]socketState
	counts   counts
	refusals map[string]refusal // of nodes' datagrams, by node
}

// New makes an Announcer that knows nobody. Nothing is opened yet.
func New(cfg Config) (*Announcer, error) {
	switch {
	case cfg.Node == "":
		return nil, errors.New("announce.Config: Node is required")
	case len(cfg.Node) > maxName:
		return nil, errors.New("announce.Config: Node is longer than 253 bytes")
	case cfg.Deliver == nil:
		return nil, errors.New("announce.Config: Deliver is required")
	case cfg.Log == nil:
		return nil, errors.New("announce.Config: Log is required")
	}
	if cfg.Port == 0 {
		cfg.Port = DefaultPort
	}
	var boot [8]byte
	rand.Read(boot[:]) // never fails
	return &Announcer{
		cfg: cfg, log: cfg.Log.With("component", "announce"), boot: binary.BigEndian.Uint64(boot[:]), wake: make(chan struct{}, 1),
		senders: map[string]*sender{}, refusals: map[string]refusal{}, counts: counts{refused: map[string]uint64{}},
	}, nil
}

func (a *Announcer) String() string { return "announce" }

func (a *Announcer) poke() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// Set takes a snapshot: who the other nodes are, where this one is reached, and which
// addresses their pods can have.
func (a *Announcer) Set(snap *model.Snapshot) {
	var own [2]netip.Addr
	if self := snap.Node(a.cfg.Node); self != nil {
		own = [2]netip.Addr{self.Address(false), self.Address(true)}
	}
	nodes := make(map[netip.Addr]string, len(snap.Nodes))
	peers := make([]netip.AddrPort, 0, len(snap.Nodes))
	names := make(map[string]bool, len(snap.Nodes))
	for i := range snap.Nodes {
		n := &snap.Nodes[i]
		if n.Name == a.cfg.Node {
			continue
		}
		names[n.Name] = true
		reached := false
		for f, mine := range own {
			addr := n.Address(f == 1)
			if !addr.IsValid() {
				continue
			}
			nodes[addr] = n.Name
			if mine.IsValid() && !reached {
				peers, reached = append(peers, netip.AddrPortFrom(addr, a.cfg.Port)), true
			}
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for f := range own {
		if own[f] != a.own[f] {
			a.sockets[f].retry, a.sockets[f].wait = time.Time{}, 0
		}
	}
	a.own, a.nodes, a.peers, a.place = own, nodes, peers, placeOf(snap)
	for name := range a.senders {
		if !names[name] {
			delete(a.senders, name)
		}
	}
	for name := range a.refusals {
		if !names[name] {
			delete(a.refusals, name)
		}
	}
	a.poke()
}

// SetKey takes the key that all agents share, of MinKey bytes or more; an empty one: there is
// none. One that is shorter is not used, and the one before stays. A new key is accepted at once
// and used when the other nodes have had the time to hear of it; the one before is accepted
// for some minutes more.
func (a *Announcer) SetKey(key []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.badKey = checkKey(key); a.badKey != nil && len(key) > 0 {
		return
	}
	a.keys.set(key, time.Now())
	a.poke()
}

// Announce tells the other nodes of a pod of this one, soon and more than once; it does not wait.
// What no status of a pod will tell is not told: attachments of no pod, and interfaces beside
// a pod's first.
func (a *Announcer) Announce(ep model.Endpoint) {
	p := Pod{Namespace: ep.Namespace, Name: ep.Pod, UID: ep.PodUID, Addresses: ep.Addresses}
	if ep.Key.IfName != podInterface || !p.tellable() {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	if a.keys.sealing(now) == nil || len(a.peers) == 0 {
		return
	}
	a.counts.announced++
	a.queue.add(p, now)
	a.poke()
}

// Run listens and tells until ctx is cancelled.
func (a *Announcer) Run(ctx context.Context) error {
	var (
		sockets   [2]*socket
		receiving sync.WaitGroup
	)
	defer receiving.Wait()
	defer func() {
		for f, s := range sockets {
			a.close(f, s)
		}
	}()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.wake:
		case <-timer.C:
		}
		for f := range sockets {
			sockets[f] = a.listen(f, sockets[f], &receiving)
		}
		a.tell(sockets)
		if next, ok := a.next(); ok {
			timer.Reset(time.Until(next))
		} else {
			timer.Stop()
		}
	}
}

// next is when Run has something to do, if nothing happens before.
func (a *Announcer) next() (at time.Time, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	at, ok = a.queue.next()
	for _, s := range a.sockets {
		if !s.retry.IsZero() && (!ok || s.retry.Before(at)) {
			at, ok = s.retry, true
		}
	}
	return at, ok
}

// tell sends what is due.
func (a *Announcer) tell(sockets [2]*socket) {
	a.mu.Lock()
	now := time.Now()
	var out [][]byte
	pods, key := a.queue.take(now), a.keys.sealing(now)
	if key != nil {
		out = a.datagrams(pods, key, now)
	}
	peers := a.peers
	a.mu.Unlock()
	var sent, failed uint64
	var failure error
	for _, peer := range peers {
		s := sockets[family(peer.Addr())]
		for _, b := range out {
			if s == nil {
				failed++
				continue
			}
			if _, err := s.conn.WriteToUDPAddrPort(b, peer); err != nil {
				failed, failure = failed+1, err
			} else {
				sent++
			}
		}
	}
	if sent+failed == 0 {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.counts.sent += sent
	a.counts.failed += failed
	a.counts.failure = failure
}

// datagrams packs pods. a.mu is held.
func (a *Announcer) datagrams(pods []Pod, key []byte, now time.Time) [][]byte {
	var out [][]byte
	var b []byte
	for i := range pods {
		if b == nil {
			b = a.begin(now)
		}
		if n := len(b); len(appendPod(b, &pods[i])) > maxDatagram-macLen {
			out = append(out, seal(b[:n:n], key))
			b = a.begin(now)
		}
		b = appendPod(b, &pods[i])
	}
	if b != nil {
		out = append(out, seal(b, key))
	}
	return out
}

func (a *Announcer) begin(now time.Time) []byte {
	a.sequence++
	return begin(make([]byte, 0, maxDatagram), header{boot: a.boot, sequence: a.sequence, made: now.UnixMilli(), node: a.cfg.Node})
}

// take handles a datagram from an address.
func (a *Announcer) take(b []byte, from netip.Addr, now time.Time) {
	node, pods := a.believed(b, from, now)
	for _, p := range pods {
		a.cfg.Deliver(node, p)
	}
}

// believed returns what a datagram says and is believed.
func (a *Announcer) believed(b []byte, from netip.Addr, now time.Time) (node string, pods []Pod) {
	a.mu.Lock()
	defer a.mu.Unlock()
	node, ok := a.nodes[from]
	if !ok {
		a.counts.refuse(reasonStranger)
		return "", nil
	}
	h, all, err := open(b, a.keys.accepted(now))
	if err == nil && h.node != node {
		err = errNode
	}
	if err == nil {
		s := a.senders[node]
		if s == nil {
			s = &sender{}
			a.senders[node] = s
		}
		err = s.accept(h, now)
	}
	if err != nil {
		a.refuse(node, err, now)
		return "", nil
	}
	a.counts.received++
	for _, p := range all {
		if err := a.place.admits(node, &p); err != nil {
			a.refuse(node, err, now)
			continue
		}
		pods = append(pods, p)
	}
	a.counts.delivered += uint64(len(pods))
	return node, pods
}
