// Package encapguard owns what decides which encapsulated packets this node takes: a set of
// the addresses that may send them, and the chain in table raw that asks it. It knows
// neither nodes nor tunnels; it is told what to guard and puts set and rules in force in the
// right order, the set before the rules that ask it, and away after them.
package encapguard

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"github.com/causeway-net/causeway/felix/ipset"
	"github.com/causeway-net/causeway/felix/iptables"
	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/internal/reconcile"
)

// Owner is the name under which this package declares its sets; ipset.Config.Owners must
// hold it.
const Owner = "encap-guard"

// The sets of the addresses that may send encapsulated packets, as Calico names them.
const (
	Set4 = ipset.Prefix4 + "all-hosts-net"
	Set6 = ipset.Prefix6 + "all-hosts-net"
)

// Sets is what this package uses of ipset.Reconciler.
type Sets interface {
	Replace(...ipset.Set)
	Delete(...string)
	InSync(owner string)
	Wait(context.Context, ...string) error
}

// Rules is what this package uses of iptables.Reconciler. Its table raw must have been set
// to a state with iptables.ReversePath in it.
type Rules interface {
	Update(iptables.Table, []iptables.Chain, []string)
	WaitChains(context.Context, iptables.Table, ...string) error
}

// Config holds what a Guard works with.
type Config struct {
	Log            *slog.Logger // required
	Rules4, Rules6 Rules        // required
	Sets           Sets         // required
	// Forget is called when IPIP of pods has become forbidden and the rules are in force; see
	// ForgetTranslated, which it is unless it is given. Optional.
	Forget func() error
}

// Guard puts the desired guards in force. Its methods may be called from anywhere; Run does
// the work.
type Guard struct {
	cfg  Config
	loop *reconcile.Loop

	mu     sync.Mutex
	guards [2]model.EncapGuard // of IPv4 and IPv6
	wanted uint64              // counts calls of Set; 0: nothing is known, and what an earlier agent left stays
	done   uint64              // the value of wanted that the last round took in
	round  chan struct{}       // closed when a round ends, and replaced
	err    error               // of the last round

	// These belong to the goroutine of Run.
	forgot bool // IPIP of pods is forbidden, and what they sent before is forgotten
	warned bool // that it could not be
}

// New makes a Guard. It does nothing until Run.
func New(cfg Config) (*Guard, error) {
	if cfg.Log == nil || cfg.Rules4 == nil || cfg.Rules6 == nil || cfg.Sets == nil {
		return nil, errors.New("encapguard: Config needs Log, Rules4, Rules6 and Sets")
	}
	if cfg.Forget == nil {
		cfg.Forget = ForgetTranslated
	}
	g := &Guard{cfg: cfg, round: make(chan struct{})}
	g.loop = (&reconcile.Loop{Name: g.String(), Log: cfg.Log, Apply: g.apply}).Init()
	return g, nil
}

func (g *Guard) String() string { return "encap-guard" }

// Set declares which packets are taken, in either family. The zero EncapGuard looks at
// none. Until the first call what an earlier agent left in the kernel stays in force.
func (g *Guard) Set(v4, v6 model.EncapGuard) {
	v6.IPIP = false // there is none in IPv6
	v4.Sources, v6.Sources = slices.Clone(v4.Sources), slices.Clone(v6.Sources)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.guards = [2]model.EncapGuard{v4, v6}
	g.wanted++
	g.loop.Poke()
}

// Wait blocks until what was set before the call is in force, or returns why it is not; it
// is retried nevertheless. Only Run makes it come true.
func (g *Guard) Wait(ctx context.Context) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	for want := g.wanted; g.done < want; {
		round := g.round
		g.mu.Unlock()
		select {
		case <-ctx.Done():
			g.mu.Lock()
			return fmt.Errorf("encap-guard: %w", ctx.Err())
		case <-round:
		}
		g.mu.Lock()
	}
	return g.err
}

// Err says why the guards are not in force; nil when they are, or when nothing was set yet.
func (g *Guard) Err() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.err
}

// Run keeps the guards in force until ctx is done. It may be called once.
func (g *Guard) Run(ctx context.Context) error { return g.loop.Run(ctx) }

func (g *Guard) apply(ctx context.Context, _ bool) error {
	g.mu.Lock()
	wanted, guards := g.wanted, g.guards
	g.mu.Unlock()
	if wanted == 0 {
		return nil
	}
	err := g.bring(ctx, guards)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.done, g.err = wanted, err
	close(g.round)
	g.round = make(chan struct{})
	return err
}

// bring puts both families in force. A set that is not as it should be keeps the rules out
// of the kernel only when it does not exist: the chain then has its fallback, which takes
// nobody's packets.
func (g *Guard) bring(ctx context.Context, guards [2]model.EncapGuard) error {
	sets := [2]ipset.Set{{Name: Set4, Type: ipset.HashNet, Family: ipset.IPv4}, {Name: Set6, Type: ipset.HashNet, Family: ipset.IPv6}}
	rules := [2]Rules{g.cfg.Rules4, g.cfg.Rules6}
	var errs []error
	for i, guard := range guards {
		if !active(guard) {
			continue
		}
		for _, p := range guard.Sources {
			sets[i].Members = append(sets[i].Members, ipset.Member{Prefix: p})
		}
		g.cfg.Sets.Replace(sets[i])
		errs = append(errs, g.cfg.Sets.Wait(ctx, sets[i].Name))
	}
	for i, guard := range guards {
		rules[i].Update(iptables.Raw, []iptables.Chain{iptables.EncapGuard(guard, iptables.Prefix, sets[i].Name)}, nil)
	}
	for i, guard := range guards {
		err := rules[i].WaitChains(ctx, iptables.Raw, iptables.EncapGuardChain)
		errs = append(errs, err)
		if !active(guard) && err == nil {
			g.cfg.Sets.Delete(sets[i].Name)
		}
	}
	g.cfg.Sets.InSync(Owner)
	switch {
	case !guards[0].IPIP || guards[0].PodsIPIP:
		g.forgot = false
	case !g.forgot && errors.Join(errs...) == nil:
		// The rules are in force whatever comes of it, and the kernel may have no way to do it.
		err := g.cfg.Forget()
		g.forgot = err == nil
		if err != nil && !g.warned {
			g.cfg.Log.Warn("connections of IPIP that pods made before may go on", "reconciler", g.String(), "error", err)
		}
		g.warned = err != nil
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("encap-guard: %w", err)
	}
	return nil
}

// active reports whether any packets are looked at.
func active(g model.EncapGuard) bool { return g.IPIP || g.VXLANPort != 0 }
