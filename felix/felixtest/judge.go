package felixtest

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/causeway-net/causeway/felix/policy"
	"github.com/causeway-net/causeway/felix/trace"
)

// Trial runs an engine and the golden model through the same history.
type Trial struct {
	World   *World
	Engine  *policy.Engine
	Program *policy.Program // what all deltas came to
}

// NewTrial makes a Trial at the beginning of time. Chains are asked by port where two in a row can be,
// so that random policies come to that.
func NewTrial() *Trial {
	return &Trial{World: NewWorld(), Engine: policy.New(policy.Config{FanLeast: 2}), Program: policy.NewProgram()}
}

// Change makes a change. The error: the engine refused what is valid, or took what is not.
func (t *Trial) Change(c Change) error {
	if err := feed(t.Engine, c, t.World); err != nil {
		return err
	}
	t.World.Apply(c)
	return nil
}

// Flush applies the engine's delta. The error says which step of it would leave a rule that
// names what is not there.
func (t *Trial) Flush() error {
	d := t.Engine.Flush()
	if err := CheckDelta(t.Program, d); err != nil {
		return err
	}
	if err := t.Program.Apply(d); err != nil {
		return err
	}
	return t.Program.Check()
}

// Disagreement is a packet that the program and the golden model decide differently on.
type Disagreement struct {
	Packet trace.Packet
	Golden Verdict
	Result trace.Result
}

func (d *Disagreement) Error() string {
	says := "allowed"
	if !d.Golden.Allowed {
		says = "denied at " + d.Golden.At.String()
	}
	if d.Golden.Untracked {
		says += ", untracked"
	}
	return fmt.Sprintf("%s\ngolden model: %s\ntracer: %s", d.Packet, says, d.Result)
}

// Ask puts a packet to both, unless it is not possible. The error is a *Disagreement.
func (t *Trial) Ask(p trace.Packet) error {
	if !t.World.Possible(p) {
		return nil
	}
	r, v := trace.Trace(t.Program, p), t.World.Verdict(p)
	same := r.Allowed == v.Allowed && r.Untracked == v.Untracked && r.Allowed == trace.Allowed(t.Program, p)
	if same && !v.Allowed {
		same = r.Stages[len(r.Stages)-1].Point == v.At
	}
	if same {
		return nil
	}
	return &Disagreement{Packet: p, Golden: v, Result: r}
}

// Fresh compares the program with that of an engine that never saw anything but the World
// as it is, and with what the engine says is the whole.
func (t *Trial) Fresh() error {
	whole := policy.NewProgram()
	if err := whole.Apply(t.Engine.Whole()); err != nil {
		return fmt.Errorf("whole: %w", err)
	}
	if diff := difference(t.Program, whole); diff != "" {
		return fmt.Errorf("the deltas did not come to the engine's whole: %s", diff)
	}
	f := NewTrial()
	for _, c := range t.World.Objects() {
		if err := f.Change(c); err != nil {
			return fmt.Errorf("fresh engine: %w", err)
		}
	}
	if err := f.Flush(); err != nil {
		return fmt.Errorf("fresh engine: %w", err)
	}
	if diff := difference(t.Program, f.Program); diff != "" {
		return fmt.Errorf("the deltas did not come to a fresh engine's program: %s", diff)
	}
	return nil
}

// difference says what differs between two programs; empty: nothing.
func difference(a, b *policy.Program) string {
	var out []string
	say := func(what string, k any, x, y any) {
		out = append(out, fmt.Sprintf("%s %v: %s, and %s", what, k, terse(x), terse(y)))
	}
	if terse(a.Host) != terse(b.Host) {
		say("host", "", a.Host, b.Host)
	}
	for k := range keys(a.Sets, b.Sets) {
		x, inA := a.Sets[k]
		y, inB := b.Sets[k]
		if inA != inB || !maps.Equal(x, y) {
			say("set", k, sorted(x), sorted(y))
		}
	}
	for k := range keys(a.Chains, b.Chains) {
		x, inA := a.Chains[k]
		y, inB := b.Chains[k]
		if inA != inB || !x.Equal(&y) {
			say("chain", k, x, y)
		}
	}
	for k := range keys(a.Endpoints, b.Endpoints) {
		x, inA := a.Endpoints[k]
		y, inB := b.Endpoints[k]
		if inA != inB || !x.Equal(&y) {
			say("endpoint", k, x, y)
		}
	}
	return strings.Join(out, "\n")
}

func keys[K comparable, V any](ms ...map[K]V) map[K]bool {
	out := map[K]bool{}
	for _, m := range ms {
		for k := range m {
			out[k] = true
		}
	}
	return out
}

func sorted(m map[policy.Member]struct{}) []policy.Member {
	return slices.SortedFunc(maps.Keys(m), policy.Member.Compare)
}

// run takes a new Trial through a history, with a flush after each change (or, with once,
// one at the end), and then asks for the packet unless it is nil.
func run(history []Change, once bool, p *trace.Packet) error {
	t := NewTrial()
	for _, c := range history {
		if err := t.Change(c); err != nil {
			return err
		}
		if once {
			continue
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if p != nil {
		return t.Ask(*p)
	}
	return t.Fresh()
}

// Explain makes the smallest history that it can find in which the same goes wrong, and
// prints it with what goes wrong.
func Explain(history []Change, err error) string {
	var d *Disagreement
	var p *trace.Packet
	if errors.As(err, &d) {
		p = &d.Packet
	}
	kind := func(err error) string { // the message without what may change while the case shrinks
		var d *Disagreement
		switch {
		case err == nil:
			return ""
		case errors.As(err, &d):
			return "disagreement"
		}
		if _, why, refused := strings.Cut(err.Error(), "refused: "); refused {
			return why
		}
		if strings.Contains(err.Error(), "accepted, ") {
			return "accepted"
		}
		first, _, _ := strings.Cut(err.Error(), ":")
		return first
	}
	want, once := kind(err), true
	if kind(safely(history, true, p)) != want {
		once = false
		if kind(safely(history, false, p)) != want {
			return fmt.Sprintf("%v\n(not seen again when the history was run anew, %d changes)", err, len(history))
		}
	}
	small := shrink(history, func(h []Change) bool { return kind(safely(h, once, p)) == want })
	var b strings.Builder
	for _, c := range small {
		fmt.Fprintf(&b, "%s\n", c)
	}
	how := "one flush after each change"
	if once {
		how = "one flush at the end"
	}
	fmt.Fprintf(&b, "(%s)\n%v", how, safely(small, once, p))
	return b.String()
}

// safely is run for histories that may have become nonsense.
func safely(history []Change, once bool, p *trace.Packet) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v", r)
		}
	}()
	return run(history, once, p)
}
