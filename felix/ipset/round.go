package ipset

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

const (
	// attempts bounds how often one round reads a set and tries again.
	attempts = 8
	// The wait after the failure of one set, while others may poke the loop often.
	minRetry = 100 * time.Millisecond
	maxRetry = 30 * time.Second
	// maxGlance bounds the time between two looks at the headers.
	maxGlance = 10 * time.Second
	// A piece of a long work is a few hundred microseconds long: a change in a hurry waits for
	// no more.
	pieceMembers = 1024
	pieceSteps   = 4
)

// look reads what stands in the kernel, as far as it is time to: everything at a resync and
// after trouble, headers every now and then.
func (r *Reconciler) look(ctx context.Context, now time.Time, resync bool) error {
	if !resync && now.Sub(r.looked) < r.every {
		return nil
	}
	headers, err := r.kernel.Headers(ctx)
	if err != nil {
		return err
	}
	// Half a percent of the time at most goes into looking. One slow look alone says more of the machine.
	took := time.Since(now)
	r.looked, r.every, r.took = now, max(r.cfg.Glance, min(200*min(took, r.took), maxGlance)), took
	there := make(map[string]*Header, len(headers))
	for i := range headers {
		h := &headers[i]
		if r.cfg.prefix(h.Name) == "" {
			continue
		}
		there[h.Name] = h
		s := r.sets[h.Name]
		if s == nil {
			s = newSet(h.Name)
			s.released = strings.HasSuffix(h.Name, newSuffix)
			r.sets[h.Name] = s
		}
		r.meet(s, h, resync)
	}
	for name, s := range r.sets {
		if there[name] != nil {
			continue
		}
		if s.header != nil && s.wanted() {
			r.healed++
			r.log.Info("a set was destroyed by somebody else", "set", name)
		}
		if s.header != nil || !s.read {
			s.lost()
		}
		r.dirty[s] = struct{}{}
	}
	r.known = true
	return nil
}

// meet compares a header with what is known of its set.
func (r *Reconciler) meet(s *set, h *Header, resync bool) {
	old := s.header
	s.header = h
	switch {
	case !s.wanted() && s.invalid == nil:
		// Its members are of no interest. A rule may have let go of it.
		s.read = false
		r.dirty[s] = struct{}{}
	case old == nil, old.Type != h.Type, old.Family != h.Family, old.Odd != h.Odd, h.Elements != s.haves:
		s.read = false
		r.dirty[s] = struct{}{}
	case resync:
		s.stale = true
		r.dirty[s] = struct{}{}
	}
	if resync {
		s.refused, s.full = nil, false
	}
}

// bring makes the dirty sets what they should be; asked says whether somebody asked for that.
// Its error is about the way to the kernel.
func (r *Reconciler) bring(ctx context.Context, now time.Time, asked bool) error {
	var work []*set
	for s := range r.dirty {
		s.fresh = false
		if !now.Before(s.retry) {
			s.err = nil
			work = append(work, s)
		}
	}
	r.again = false
	slices.SortFunc(work, func(a, b *set) int { return strings.Compare(a.name, b.name) })
	for n := 0; len(work) > 0; n++ {
		if n == attempts { // a mistake here must not spin
			for _, s := range work {
				r.fail(s, now, errors.New("several attempts did not bring it to the desired state"))
			}
			r.settle(work)
			break
		}
		if err := r.readMembers(ctx, work, now, asked); err != nil {
			return err
		}
		if err := r.write(ctx, work, now, asked); err != nil {
			return err
		}
		var done, left []*set
		for _, s := range work {
			if r.settled(s, now) {
				done = append(done, s)
			} else {
				left = append(left, s)
			}
		}
		r.settle(done)
		work = left
	}
	return nil
}

// settled reports that nothing more can be done for a set in this round, and forgets it as
// dirty when it is as wanted.
func (r *Reconciler) settled(s *set, now time.Time) bool {
	switch {
	case s.err != nil:
		return true
	case s.invalid != nil:
		r.fail(s, now, s.invalid)
		return true
	case !s.wanted():
		if s.header == nil {
			delete(r.sets, s.name)
		}
		delete(r.dirty, s)
		return true
	case s.header == nil || !s.read || !s.fits(s.wants):
		return false
	}
	add, del := s.delta()
	if len(add)+len(del) > 0 {
		return false
	}
	if err := s.leftOut(); err != nil {
		r.fail(s, now, err)
		return true
	}
	s.failures = 0
	if !s.stale {
		delete(r.dirty, s)
	}
	return true
}

// fail leaves a set for a later round.
func (r *Reconciler) fail(s *set, now time.Time, err error) {
	s.err = fmt.Errorf("ipset %s: %w", s.name, err)
	s.retry = now.Add(min(minRetry<<min(s.failures, 10), maxRetry))
	s.failures++
}

// readMembers reads the sets whose members are not known.
func (r *Reconciler) readMembers(ctx context.Context, work []*set, now time.Time, asked bool) error {
	for _, s := range work {
		if s.read && !s.stale || !s.wanted() {
			continue
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := r.meanwhile(ctx, now, asked); err != nil {
			return err
		}
		before := s.wants
		in := reading{s: s}
		err := r.kernel.List(ctx, s.name, in.begin, in.member)
		if errors.Is(err, ErrNotExist) {
			s.lost()
			continue
		}
		if err != nil {
			return fmt.Errorf("ipset %s: %w", s.name, err)
		}
		if drift := in.end(); drift > 0 {
			r.healed += uint64(drift)
			r.log.Info("a set was changed by somebody else", "set", s.name, "members", drift)
		}
		r.members += s.wants - before // adopted
	}
	return nil
}

// step is a command and what comes of it.
type step struct {
	command Command
	done    func(error)
}

// run applies steps one piece after the other, and between them what is in a hurry.
func (r *Reconciler) run(ctx context.Context, steps []step, now time.Time, asked bool) error {
	for len(steps) > 0 {
		n, members := 0, 0
		for n < len(steps) && n < pieceSteps && members < pieceMembers {
			members += len(steps[n].command.Members)
			n++
		}
		if err := r.send(ctx, steps[:n]); err != nil {
			return err
		}
		if steps = steps[n:]; len(steps) > 0 {
			if err := r.meanwhile(ctx, now, asked); err != nil {
				return err
			}
		}
	}
	return nil
}

// send applies steps; only sets whose steps are among them change.
func (r *Reconciler) send(ctx context.Context, steps []step) error {
	if len(steps) == 0 {
		return nil
	}
	commands := make([]Command, len(steps))
	for i := range steps {
		commands[i] = steps[i].command
	}
	results, err := r.kernel.Apply(ctx, commands)
	if err != nil {
		return err
	}
	for i := range steps {
		if results[i] == nil {
			switch commands[i].Verb {
			case Create, Destroy:
				r.written++
			case Add, Del:
				r.written += uint64(len(commands[i].Members))
			}
		}
		steps[i].done(results[i])
	}
	return nil
}

// write makes one attempt at all sets: whatever is added first, then what is taken away,
// then the sets that go. Only interfaces whose prefix has no room for others go before those.
func (r *Reconciler) write(ctx context.Context, work []*set, now time.Time, asked bool) error {
	var room, grow, shrink, leave []step
	var broken []*set
	defer func() {
		for _, s := range work {
			s.busy = false
		}
	}()
	for _, s := range work {
		s.busy = true
		switch {
		case s.err != nil || s.invalid != nil:
		case !s.wanted():
			if s.header != nil && s.header.References == 0 && (s.released || r.synced) {
				leave = append(leave, r.destroy(s, now))
			}
		case s.header == nil:
			grow = append(grow, r.create(s, now)...)
		default:
			add, del := s.delta()
			if !s.fits(s.haves + len(add)) {
				broken = append(broken, s)
				continue
			}
			s.busy = len(add)+len(del) > 0
			first, del := s.crowding(add, del)
			if len(first) > 0 {
				room = append(room, r.del(s, first, now)...)
			}
			grow = append(grow, r.add(s, add, now)...)
			shrink = append(shrink, r.del(s, del, now)...)
		}
	}
	for _, steps := range [][]step{room, grow, shrink, leave} {
		if err := r.run(ctx, steps, now, asked); err != nil {
			return err
		}
	}
	for _, s := range broken {
		if err := r.rebuild(ctx, s, now, asked); err != nil {
			return err
		}
	}
	return nil
}

func (r *Reconciler) create(s *set, now time.Time) []step {
	keys := s.all()
	max := limit(r.cfg.MaxElem, len(keys))
	h := Header{Name: s.name, Type: s.kind.typ, Family: s.kind.family, MaxElem: max}
	steps := []step{{
		Command{Verb: Create, Name: s.name, Type: h.Type, Family: h.Family, MaxElem: max, Size: len(keys)},
		func(err error) {
			switch {
			case err == nil:
				s.header, s.read, s.stale, s.seen = &h, true, false, true
				s.adopt, s.spurned = nil, nil // nothing stood there
			case errors.Is(err, ErrExist):
				s.read = false
			default:
				r.fail(s, now, err)
			}
		},
	}}
	return append(steps, r.add(s, keys, now)...)
}

func (r *Reconciler) add(s *set, keys []key, now time.Time) []step {
	return r.inPieces(s, Add, keys, now, have, 0)
}

func (r *Reconciler) del(s *set, keys []key, now time.Time) []step {
	return r.inPieces(s, Del, keys, now, 0, have)
}

// inPieces makes the steps of one verb, and notes of those members that the kernel took what
// is known then.
func (r *Reconciler) inPieces(s *set, verb Verb, keys []key, now time.Time, put, clear uint8) []step {
	var out []step
	for keys := range slices.Chunk(keys, pieceMembers) {
		c := Command{Verb: verb, Name: s.name, Family: s.kind.family, Type: s.kind.typ, Members: s.texts(keys)}
		out = append(out, step{c, func(err error) {
			if err != nil {
				r.misfit(s, keys, now, err)
				return
			}
			for _, k := range keys {
				s.put(k, put, clear)
			}
		}})
	}
	return out
}

// misfit notes that a set did not take its change: it is read again, and when that shows it
// as it was known to be, the member is to blame.
func (r *Reconciler) misfit(s *set, keys []key, now time.Time, err error) {
	var no *MemberError
	switch {
	case errors.Is(err, ErrFull):
		s.full = true
	case errors.As(err, &no) && s.fresh:
		if s.refused == nil {
			s.refused = map[key]error{}
		}
		s.refused[keys[no.Index]] = no.Err
	case s.fresh && s.err == nil && !errors.Is(err, ErrNotExist):
		r.fail(s, now, err)
	}
	s.read = false
}

func (r *Reconciler) destroy(s *set, now time.Time) step {
	return step{Command{Verb: Destroy, Name: s.name}, func(err error) {
		switch {
		case err == nil || errors.Is(err, ErrNotExist):
			s.lost()
		case errors.Is(err, ErrBusy): // the headers tell when to try again
			s.header.References = 1
		default:
			r.fail(s, now, fmt.Errorf("cannot be destroyed: %w", err))
		}
	}}
}

// rebuild makes a set that cannot be mended in place: beside the old one, with all its
// members, and swapped in. One of another type cannot be swapped; it goes first, if it can.
func (r *Reconciler) rebuild(ctx context.Context, s *set, now time.Time, asked bool) error {
	if s.header.Type != s.kind.typ || s.header.Family != s.kind.family {
		was := *s.header
		return r.send(ctx, []step{{Command{Verb: Destroy, Name: s.name}, func(err error) {
			switch {
			case err == nil || errors.Is(err, ErrNotExist):
				s.lost()
			default:
				r.fail(s, now, fmt.Errorf("it stands in the kernel with type %s of %s and must be %s of %s, but cannot be destroyed: %w",
					was.Type, was.Family, s.kind.typ, s.kind.family, err))
			}
		}}})
	}
	temp := r.cfg.prefix(s.name) + newSuffix
	keys := s.all()
	least := r.cfg.MaxElem
	if s.full && len(keys) > s.header.MaxElem/2 { // otherwise a bucket is full; a new set has better ones
		least = max(least, min(2*s.header.MaxElem, mostElem))
	}
	h := Header{Name: s.name, Type: s.kind.typ, Family: s.kind.family, MaxElem: limit(least, len(keys))}
	var failed error
	var blame []key // the piece with the member that was refused
	note := func(err error) {
		if failed == nil {
			failed = err
		}
	}
	steps := []step{
		{Command{Verb: Destroy, Name: temp}, func(error) {}},
		{Command{Verb: Create, Name: temp, Type: h.Type, Family: h.Family, MaxElem: h.MaxElem, Size: len(keys)}, note},
	}
	for keys := range slices.Chunk(keys, pieceMembers) {
		steps = append(steps, step{Command{Verb: Add, Name: temp, Family: h.Family, Type: h.Type, Members: s.texts(keys)}, func(err error) {
			var no *MemberError
			if failed == nil && errors.As(err, &no) {
				blame = keys
			}
			note(err)
		}})
	}
	if err := r.run(ctx, steps, now, asked); err != nil {
		return err
	}
	if failed == nil {
		swap := step{Command{Verb: Swap, Name: temp, With: s.name}, note}
		if err := r.send(ctx, []step{swap, {Command{Verb: Destroy, Name: temp}, func(error) {}}}); err != nil {
			return err
		}
	} else if err := r.send(ctx, []step{{Command{Verb: Destroy, Name: temp}, func(error) {}}}); err != nil {
		return err
	}
	var no *MemberError
	switch {
	case failed == nil:
		if s.header.Odd {
			r.healed++
		}
		s.header, s.full, s.read, s.stale = &h, false, true, false
		s.clearAll(have)
		for _, k := range keys {
			s.put(k, have, 0)
		}
		r.log.Info("a set was built anew and swapped in", "set", s.name, "members", len(keys), "limit", h.MaxElem)
	case errors.Is(failed, ErrFull):
		s.full = true
		s.header.MaxElem = h.MaxElem
	case errors.As(failed, &no):
		s.fresh = true // nobody else writes to the new one
		r.misfit(s, blame, now, failed)
	case errors.Is(failed, ErrNotExist) || errors.Is(failed, ErrMismatch):
		s.read = false // the old one is another one now
	default:
		r.fail(s, now, fmt.Errorf("building it anew: %w", failed))
	}
	return nil
}
