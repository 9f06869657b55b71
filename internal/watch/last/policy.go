package last

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/causeway-net/causeway/internal/watch"
)

// Changes of policy are gathered before the file is written again, for twenty times as long as it
// took, within these bounds: the pods of a large cluster are some megabytes.
const (
	policyGatherLeast = 100 * time.Millisecond
	policyGatherMost  = 5 * time.Second
)

// policyHead is the first line of the file.
type policyHead struct {
	Form int
	Node string
}

// PolicyKeeper does for policy what Keeper does for snapshots: it stands between a source and
// who enforces, keeps on disk what the source told, and when the source does not tell soon,
// passes on what an earlier agent kept. What is attached here and known from then is not
// denied everything for want of its object (DESIGN I4).
type PolicyKeeper struct {
	path, node string
	log        *slog.Logger
	publish    func(*watch.PolicyUpdate)
	wake       chan struct{} // capacity 1
	after      time.Duration

	mu       sync.Mutex          // held while publishing
	told     *watch.PolicyMemory // what the source told
	seq      uint64              // of its last update
	whole    bool                // the source told everything once
	recalled *watch.PolicyMemory // what was passed on of an earlier agent, until the source told everything
}

// NewPolicyKeeper makes a PolicyKeeper of the file at path, which must not survive the node's
// going down. Nothing is read or written yet.
func NewPolicyKeeper(path, node string, log *slog.Logger, publish func(*watch.PolicyUpdate)) *PolicyKeeper {
	return &PolicyKeeper{path: path, node: node, log: log, publish: publish, wake: make(chan struct{}, 1), after: after, told: watch.NewPolicyMemory()}
}

func (k *PolicyKeeper) String() string { return "last policy" }

// Publish passes on an update of the source. While the source has not told everything, and
// what an earlier agent knew is in force instead, nothing of that is taken away.
func (k *PolicyKeeper) Publish(u *watch.PolicyUpdate) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.seq = u.Seq
	if err := k.told.Keep(u); err != nil {
		k.log.Warn("the next agent will not know all of policy until the datastore answers", "error", err)
	}
	if len(u.Pending) == 0 {
		k.whole = true
	}
	switch {
	case k.recalled == nil:
		k.publish(u)
	case k.whole:
		k.replace(u)
	default:
		u = k.recalled.Recall(u, false)
		u.Pending, u.Recalled = nil, true // what is recalled stands in for what is pending
		k.publish(u)
	}
	if k.whole {
		select {
		case k.wake <- struct{}{}:
		default:
		}
	}
}

// replace puts what the source told, which is everything now, in the place of what was
// recalled.
func (k *PolicyKeeper) replace(u *watch.PolicyUpdate) {
	gone := k.recalled.Without(k.told)
	all, err := k.told.Update()
	if err != nil { // it was encoded by this process
		k.log.Error("what is known of policy cannot be read again", "error", err)
		all = u
	}
	all.Seq = u.Seq
	all = k.recalled.Recall(all, true)
	k.recalled = nil
	k.publish(gone)
	k.publish(all)
}

// Run writes what is published until ctx is cancelled. A disk that refuses is logged: the
// agent works without the file.
func (k *PolicyKeeper) Run(ctx context.Context) error {
	late := time.NewTimer(k.after)
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
		began := time.Now()
		k.mu.Lock()
		lines := k.told.Lines()
		k.mu.Unlock()
		err := k.write(lines)
		if err != nil && !failing {
			k.log.Warn("the next agent will not know policy until the datastore answers", "error", err)
		}
		failing = err != nil
		gather := time.NewTimer(min(max(20*time.Since(began), policyGatherLeast), policyGatherMost))
		for waiting := true; waiting; {
			select {
			case <-ctx.Done():
				gather.Stop()
				return nil
			case <-late.C:
				k.recall()
			case <-gather.C:
				waiting = false
			}
		}
	}
}

// recall publishes what an earlier agent kept, unless the source has told everything.
func (k *PolicyKeeper) recall() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.whole {
		return
	}
	kept, err := LoadPolicy(k.path, k.node)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return
	case err != nil:
		k.log.Warn("the datastore does not answer, and the policy that an earlier agent knew cannot be used", "error", err)
		return
	}
	u, err := kept.Update()
	if err != nil {
		k.log.Warn("the datastore does not answer, and the policy that an earlier agent knew cannot be used", "error", err)
		return
	}
	now, err := k.told.Update()
	if err != nil {
		k.log.Warn("what is known of policy cannot be read again", "error", err)
		return
	}
	k.log.Warn("the datastore does not answer; enforcing what an earlier agent knew", "things", kept.Len())
	k.recalled = kept
	u.Recalled, now.Recalled = true, true
	k.publish(u)
	// What this agent was told goes before, but for pods of which it knows less.
	now.Seq = k.seq
	k.publish(kept.Recall(now, false))
}

// LoadPolicy reads what an agent of the same node left at path. A missing file is an error
// for which errors.Is(err, fs.ErrNotExist) holds.
func LoadPolicy(path, node string) (*watch.PolicyMemory, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r := bufio.NewReader(f)
	line, err := r.ReadBytes('\n')
	if err != nil {
		return nil, fmt.Errorf("%s: its first line: %w", path, err)
	}
	var head policyHead
	if err := json.Unmarshal(line, &head); err != nil || head.Form != form || head.Node != node {
		return nil, fmt.Errorf("%s: is of form %d and node %q, want form %d and node %q", path, head.Form, head.Node, form, node)
	}
	m, err := watch.ReadPolicyMemory(r)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return m, nil
}

// write replaces the file whole. It need not survive the node's going down: nothing that it
// speaks of would.
func (k *PolicyKeeper) write(lines [][]byte) error {
	head, err := json.Marshal(policyHead{form, k.node})
	if err != nil {
		return err
	}
	temp, err := os.CreateTemp(filepath.Dir(k.path), ".policy-") // mode 0600
	if err != nil {
		return err
	}
	w := bufio.NewWriter(temp)
	for _, line := range append([][]byte{head}, lines...) {
		w.Write(line) // an error stays, and Flush returns it
		w.WriteByte('\n')
	}
	err = w.Flush()
	if err = errors.Join(err, temp.Close()); err == nil {
		err = os.Rename(temp.Name(), k.path)
	}
	if err != nil {
		os.Remove(temp.Name())
	}
	return err
}
