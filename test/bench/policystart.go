package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// startEvery is the interval of the probes of a start, and so what its time is exact to.
const startEvery = 25 * time.Millisecond

// starts times the agent from its start to the moment from which every packet to every local
// pod meets its policies. Nothing of an agent before it is in the kernel, so that all is
// programmed anew; the pods are known from the journal.
func (r *policyRun) starts(ctx context.Context, k backend) error {
	took := &Figure{Name: policyState(k) + ": start to programmed", Unit: "s", Goal: 5}
	cpu := &Figure{Name: "processor time of the agent until then", Unit: "s"}
	for i := range max(3, r.size.pairs/2) {
		t, c, err := r.start(ctx)
		if err != nil {
			return err
		}
		took.Each, cpu.Each = append(took.Each, t.Seconds()), append(cpu.Each, c.Seconds())
		r.say("%s: start %d: programmed after %.2f s, with %.2f s of the processor", k.name, i+1, t.Seconds(), c.Seconds())
	}
	took.Value, cpu.Value = median(took.Each), median(cpu.Each)
	r.figure(took, cpu)
	return nil
}

func (r *policyRun) start(ctx context.Context) (took, cpu time.Duration, err error) {
	if err := r.wipe(ctx, r.w1); err != nil {
		return 0, 0, err
	}
	p, err := startProber(r.lab.Node("r"), r.w1)
	if err != nil {
		return 0, 0, err
	}
	defer p.close()
	// Of each pod a packet that its policies allow and one that they forbid, which differ by the
	// source alone. Without rules both pass.
	var flows []flow
	for _, at := range r.local {
		flows = append(flows, flow{netip.MustParseAddr(outsideSource), at, 30001}, flow{netip.MustParseAddr("192.168.77.1"), at, 30001})
	}
	p.aim(startEvery, flows...)
	if _, err := p.passes(ctx); err != nil {
		return 0, 0, err
	}
	begin := p.now()
	if err := r.w1.Start(ctx); err != nil {
		return 0, 0, err
	}
	since, err := p.wait(ctx, "all pods have their policies", func() (time.Duration, bool) { return settled(p.arrived, len(flows), p.sent) })
	if err != nil {
		return 0, 0, err
	}
	pid, err := r.w1.Daemon("agent").PID(ctx)
	if err != nil {
		return 0, 0, err
	}
	if cpu, err = cpuWithChildren(pid); err != nil {
		return 0, 0, err
	}
	// What packets of two sources do not show must be there as well: rules and sets do not
	// change any more.
	p.aim(time.Second)
	then, err := r.dump(ctx)
	if err != nil {
		return 0, 0, err
	}
	select {
	case <-ctx.Done():
		return 0, 0, ctx.Err()
	case <-time.After(5 * time.Second):
	}
	now, err := r.dump(ctx)
	if err != nil {
		return 0, 0, err
	}
	if d := firstDifference(then, now); d != "" {
		return 0, 0, fmt.Errorf("rules or sets still changed after all pods had their policies: %s", d)
	}
	return since - begin, cpu, nil
}

// settled finds the moment from which of each pair of flows the first always passed and the
// second never, when that was so for a second; rounds is how many were sent.
func settled(arrived []shot, flows, rounds int) (time.Duration, bool) {
	const steady = int(time.Second / startEvery)
	// The last rounds may be under way.
	last := rounds - 4
	if last < steady {
		return 0, false
	}
	passed := make([]int, last)         // of the flows that may pass, by round
	wrong := make([]bool, last)         // a forbidden one passed
	sent := make([]time.Duration, last) // when the round left
	for _, s := range arrived {
		if s.n >= last {
			continue
		}
		sent[s.n] = s.sent
		if s.flow%2 == 0 {
			passed[s.n]++
		} else {
			wrong[s.n] = true
		}
	}
	first := last
	for first > 0 && !wrong[first-1] && passed[first-1] == flows/2 {
		first--
	}
	if last-first < steady {
		return 0, false
	}
	return sent[first], true
}

// dump is all rules and sets of w1, without counters, sorted.
func (r *policyRun) dump(ctx context.Context) ([]string, error) {
	var lines []string
	var errs []error
	for _, command := range [][]string{{"nft", "-s", "list", "ruleset"}, {"iptables-legacy-save"}, {"ip6tables-legacy-save"}, {"ipset", "save"}} {
		out, err := r.w1.Exec(ctx, command...)
		errs = append(errs, err)
		for line := range strings.Lines(out) {
			if line[0] != '#' && line[0] != ':' { // dates; policies and their counters
				lines = append(lines, line)
			}
		}
	}
	slices.Sort(lines)
	return lines, errors.Join(errs...)
}

// firstDifference is a line that only one of two sorted lists has, or "".
func firstDifference(a, b []string) string {
	for i := range max(len(a), len(b)) {
		switch {
		case i >= len(a) || i < len(b) && b[i] < a[i]:
			return "new is " + strings.TrimSpace(b[i])
		case i >= len(b) || a[i] < b[i]:
			return "gone is " + strings.TrimSpace(a[i])
		}
	}
	return ""
}
