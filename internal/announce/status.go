package announce

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"
)

// Reasons that datagrams, or pods in them, are refused for.
const (
	reasonStranger  = "stranger"  // the source is no node's address
	reasonMalformed = "malformed" // it is none of ours, or cut short
	reasonForged    = "forged"    // sealed with another key
	reasonClock     = "clock"     // made at another time than now
	reasonReplayed  = "replayed"  // or overtaken
	reasonNode      = "node"      // it says that it is another node's than its source is
	reasonAddress   = "address"   // the node's pods cannot have such an address
)

var (
	errNode    = errors.New("another node's name")
	errAddress = errors.New("an address that no pod of it can have")
)

func reason(err error) string {
	for _, r := range []struct {
		err  error
		name string
	}{
		{errForged, reasonForged}, {errClock, reasonClock}, {errReplayed, reasonReplayed}, {errNode, reasonNode}, {errAddress, reasonAddress},
	} {
		if errors.Is(err, r.err) {
			return r.name
		}
	}
	return reasonMalformed
}

// admits says why what a node tells of a pod is not believed, or nil.
func (p *place) admits(node string, pod *Pod) error {
	for _, a := range pod.Addresses {
		if !p.holds(node, a) {
			return fmt.Errorf("%w: %s of Pod %s/%s", errAddress, a, pod.Namespace, pod.Name)
		}
	}
	return nil
}

// troubleLasts is how long a refusal is told of, and how often it is logged at most.
const troubleLasts = 5 * time.Minute

// refusal is the last one of a node's datagrams.
type refusal struct {
	err          error
	when, logged time.Time
}

type counts struct {
	announced, delivered   uint64 // pods
	sent, failed, received uint64 // datagrams
	refused                map[string]uint64
	failure                error // of the last time that something was sent
}

func (c *counts) refuse(reason string) { c.refused[reason]++ }

// refuse notes why a node's datagram, or a pod in it, was refused. a.mu is held.
func (a *Announcer) refuse(node string, err error, now time.Time) {
	why := reason(err)
	a.counts.refuse(why)
	if why == reasonReplayed { // the network may double and reorder
		return
	}
	r := a.refusals[node]
	if now.Sub(r.logged) >= troubleLasts || reason(r.err) != why {
		a.log.Warn("what another node announces is refused; addresses of its new pods come with the pods' status", "node", node, "error", err)
		r.logged = now
	}
	r.err, r.when = err, now
	a.refusals[node] = r
}

// checkKey says what is wrong with a key, or nil.
func checkKey(key []byte) error {
	switch {
	case len(key) == 0:
		return errors.New("there is no key yet: nothing is announced to other nodes or taken from them")
	case len(key) < MinKey:
		return fmt.Errorf("the key has %d bytes; it must have %d or more", len(key), MinKey)
	}
	return nil
}

// Status is what the channel has done since the agent started.
type Status struct {
	Listening []netip.AddrPort  `json:"listening"`
	Key       string            `json:"key"`               // none, known, or changing
	Peers     int               `json:"peers"`             // nodes that are told
	Announced uint64            `json:"announced"`         // pods of this node
	Sent      uint64            `json:"sent"`              // datagrams
	Failed    uint64            `json:"failed,omitempty"`  // datagrams that could not be sent
	Received  uint64            `json:"received"`          // datagrams that were believed
	Delivered uint64            `json:"delivered"`         // pods of other nodes in them, each time that they were told
	Refused   map[string]uint64 `json:"refused,omitempty"` // datagrams and pods in them, by reason
	Trouble   string            `json:"trouble,omitempty"` // what Trouble says
}

// Status returns the state of the channel.
func (a *Announcer) Status() Status {
	trouble := a.Trouble()
	a.mu.Lock()
	defer a.mu.Unlock()
	out := Status{
		Key: a.keys.state(time.Now()), Peers: len(a.peers), Announced: a.counts.announced, Sent: a.counts.sent, Failed: a.counts.failed,
		Received: a.counts.received, Delivered: a.counts.delivered, Refused: maps.Clone(a.counts.refused),
	}
	for _, s := range a.sockets {
		if s.listening.IsValid() {
			out.Listening = append(out.Listening, s.listening)
		}
	}
	if trouble != nil {
		out.Trouble = trouble.Error()
	}
	return out
}

// Trouble says why addresses of new pods come late to other nodes, or theirs to this one: with
// the pods' status. Nil: nothing is known to be wrong.
func (a *Announcer) Trouble() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	if len(a.nodes) == 0 {
		return nil // there is nobody to be told
	}
	if a.badKey != nil || a.keys.sealing(now) == nil {
		if a.badKey != nil {
			return a.badKey
		}
		return checkKey(nil)
	}
	var errs []error
	for _, s := range a.sockets {
		if s.err != nil {
			errs = append(errs, s.err)
		}
	}
	if a.counts.failure != nil {
		errs = append(errs, fmt.Errorf("not every node could be told: %w", a.counts.failure))
	}
	for _, node := range slices.Sorted(maps.Keys(a.refusals)) {
		if r := a.refusals[node]; now.Sub(r.when) < troubleLasts {
			errs = append(errs, fmt.Errorf("node %s: %w", node, r.err))
			break // one says enough
		}
	}
	return errors.Join(errs...)
}
