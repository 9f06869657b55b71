package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/causeway-net/causeway/test/lab"
	"github.com/causeway-net/causeway/test/lab/traffic"
	"github.com/causeway-net/causeway/test/topology/fabric"
)

// demoLimits of one step; a step that takes longer is a failure of the demo.
const (
	stepLimit   = 40 * time.Second
	demoLimit   = 3 * time.Minute
	longestLoss = 100 * time.Millisecond // of any flow when an uplink is cut
)

func demoCommand(f *flags) *cobra.Command {
	var file, bin string
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Watch pods of two racks talk over routes that BGP carried, and an uplink being cut",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			ctx, cancel := context.WithTimeout(cmd.Context(), demoLimit)
			defer cancel()
			d := &demo{out: cmd.OutOrStdout(), started: time.Now()}
			top, err := lab.Load(file)
			if err != nil {
				return err
			}
			d.say("Building %d hosts and routers and %d links out of namespaces (%s)", len(top.Nodes), len(top.Links), file)
			l, err := lab.Up(ctx, top, lab.Options{Name: "demo", StateRoot: f.stateRoot, BinDir: bin, Ephemeral: true, Log: slog.New(slog.DiscardHandler)})
			if err != nil {
				return err
			}
			d.Fabric = &fabric.Fabric{Lab: l}
			defer func() {
				d.say("Cleaning up")
				ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stepLimit)
				defer cancel()
				err = errors.Join(err, l.Down(ctx))
				if err == nil {
					d.say("Done: all of it was so")
				}
			}()
			for _, step := range []func(context.Context) error{d.sessions, d.pods, d.routes, d.pings, d.cut} {
				ctx, cancel := context.WithTimeout(ctx, stepLimit)
				err := step(ctx)
				cancel()
				if err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&file, "file", "deploy/containerlab/two-racks/two-racks.clab.yml", "the topology")
	cmd.Flags().StringVar(&bin, "bin", "bin", "folder with the programs")
	return cmd
}

// demo shows one thing after the other; each step fails when what it shows is not so.
type demo struct {
	*fabric.Fabric
	out     io.Writer
	started time.Time
}

func (d *demo) say(format string, args ...any) {
	fmt.Fprintf(d.out, "\n[%5.1f s] %s\n", time.Since(d.started).Seconds(), fmt.Sprintf(format, args...))
}

// show runs a command in a node as a person would, and prints both.
func (d *demo) show(ctx context.Context, n *lab.Node, args ...string) (string, error) {
	out, err := n.Exec(ctx, args...)
	fmt.Fprintf(d.out, "%s# %s\n%s", n.Name(), strings.Join(args, " "), indent(out))
	return out, err
}

func indent(s string) string {
	if s = strings.TrimRight(s, "\n"); s == "" {
		return ""
	}
	return "    " + strings.ReplaceAll(s, "\n", "\n    ") + "\n"
}

// sessions waits until every agent's sessions with its two ToRs are up.
func (d *demo) sessions(ctx context.Context) error {
	d.say("Waiting for the BGP sessions of the agents with their ToRs")
	if err := fabric.Poll(ctx, "sessions", func() error { return d.Established(ctx) }); err != nil {
		return err
	}
	d.say("They are up, IPv4 and IPv6, with both ToRs of the rack")
	for _, n := range d.Agents() {
		if _, err := d.show(ctx, n, "causewayctl", "peers"); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) pods(ctx context.Context) error {
	const perNode = 3
	d.say("Attaching %d pods through the CNI plugin", perNode*len(d.Agents()))
	if err := d.AddPods(ctx, perNode); err != nil {
		return err
	}
	for _, p := range d.Pods {
		fmt.Fprintf(d.out, "    %-10s %-17s %s\n", p.Name, p.Address(false), p.Address(true))
		if !p.Address(false).IsValid() || !p.Address(true).IsValid() {
			return fmt.Errorf("%s has %v and not one address of each family", p, p.Addresses)
		}
	}
	return nil
}

// routes shows what BGP carried, as the stock gobgp CLI and the kernel have it.
func (d *demo) routes(ctx context.Context) error {
	n := d.Agents()[0]
	last := d.Agents()[len(d.Agents())-1]
	st, err := fabric.Status(ctx, last)
	if err != nil {
		return err
	}
	d.say("What %s learned, in the words of the stock gobgp CLI and of the kernel", n.Name())
	for _, c := range []struct {
		family string
		args   []string
		v6     bool
	}{
		{"ipv4", []string{"ip", "route", "show", "proto", "82"}, false},
		{"ipv6", []string{"ip", "-6", "route", "show", "proto", "82"}, true},
	} {
		block := ""
		for _, b := range st.Blocks {
			if b.Addr().Is6() == c.v6 {
				block = b.String()
			}
		}
		if block == "" {
			return fmt.Errorf("%s owns no %s block", last.Name(), c.family)
		}
		// The last block may be on its way still.
		twoWays := func() error {
			out, err := n.Exec(ctx, append(c.args, block)...)
			if err == nil && strings.Count(out, "nexthop") != 2 {
				err = fmt.Errorf("%s is not routed over both uplinks: %s", block, out)
			}
			return err
		}
		if err := fabric.Poll(ctx, "ECMP", twoWays); err != nil {
			return err
		}
		out, err := d.show(ctx, n, "gobgp", "--target", "unix:///run/causeway/gobgp.sock", "global", "rib", "-a", c.family)
		if err != nil {
			return err
		}
		if !strings.Contains(out, block) {
			return fmt.Errorf("the gobgp CLI does not show %s, a block of %s", block, last.Name())
		}
		if _, err := d.show(ctx, n, c.args...); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) pings(ctx context.Context) error {
	pods := d.Endpoints()
	matrix := func(what string, from []traffic.Endpoint, pairs int) error {
		var m traffic.Matrix
		err := fabric.Poll(ctx, "pings", func() error {
			m = traffic.PingAll(ctx, from, pods, traffic.PingConfig{})
			if failed := m.Failed(); len(failed) > 0 || len(m) != pairs {
				return fmt.Errorf("%d of %d pings failed, %d were wanted:\n%s", len(failed), len(m), pairs, failed)
			}
			return nil
		})
		d.table(m)
		if err == nil {
			d.say("%s, IPv4 and IPv6: %d of %d answered", what, len(m), len(m))
		}
		return err
	}
	d.say("Pinging")
	if err := matrix("Every pod to every other pod", pods, len(pods)*(len(pods)-1)*2); err != nil {
		return err
	}
	return matrix("The spine to every pod", []traffic.Endpoint{{Space: d.Node("spine")}}, len(pods)*2)
}

// table prints a row for each source; a column stands for a pod, 46 for an answer over
// IPv4 and over IPv6.
func (d *demo) table(m traffic.Matrix) {
	cells := map[[2]string]string{}
	var rows, columns []string
	for _, r := range m {
		mark := "-"
		switch {
		case r.OK && r.Target.Is4():
			mark = "4"
		case r.OK:
			mark = "6"
		}
		cells[[2]string{r.From, r.To}] += mark
		if !slices.Contains(rows, r.From) {
			rows = append(rows, r.From)
		}
		if !slices.Contains(columns, r.To) {
			columns = append(columns, r.To)
		}
	}
	slices.Sort(columns)
	for _, from := range rows {
		fmt.Fprintf(d.out, "    %-14s", from)
		for _, to := range columns {
			fmt.Fprintf(d.out, " %2s", cells[[2]string{from, to}])
		}
		fmt.Fprintln(d.out)
	}
}

// cut takes an uplink down under traffic and shows that the other one takes over.
func (d *demo) cut(ctx context.Context) error {
	const flows, pps, uplink, other = 64, 3200, "eth1", "eth2"
	n := d.Agents()[0]
	from, to := d.Pods[0], d.Pods[len(d.Pods)-1]
	d.say("Sending %d flows from %s to %s, then cutting uplink %s of %s", flows, from, to, uplink, n.Name())
	s, err := traffic.Start(ctx, traffic.Config{From: from, To: to, Target: to.Address(false), Flows: flows, PPS: pps})
	if err != nil {
		return err
	}
	defer s.Stop()
	phase := func(what string) (map[string]traffic.Counters, error) {
		before, err := traffic.Read(n)
		if err != nil {
			return nil, err
		}
		until := s.Elapsed() + 1500*time.Millisecond
		if err := fabric.Poll(ctx, "traffic", func() error {
			if s.Elapsed() < until {
				return errors.New("the stream does not go on")
			}
			return nil
		}); err != nil {
			return nil, err
		}
		after, err := traffic.Read(n)
		if err != nil {
			return nil, err
		}
		moved := map[string]traffic.Counters{uplink: after[uplink].Sub(before[uplink]), other: after[other].Sub(before[other])}
		fmt.Fprintf(d.out, "    %-14s packets sent over %s: %5d, over %s: %5d\n", what, uplink, moved[uplink].TxPackets, other, moved[other].TxPackets)
		return moved, nil
	}
	before, err := phase("before the cut")
	if err != nil {
		return err
	}
	if err := n.LinkDown(uplink); err != nil {
		return err
	}
	after, err := phase("after the cut")
	if err != nil {
		return err
	}
	r := s.Stop()
	fmt.Fprintf(d.out, "    %s\n", strings.SplitN(r.String(), "\n", 2)[0])
	switch {
	case before[uplink].TxPackets < pps/10:
		return fmt.Errorf("%s carried %d packets only before it was cut", uplink, before[uplink].TxPackets)
	case after[uplink].TxPackets > 0 || after[other].TxPackets < pps:
		return fmt.Errorf("the traffic did not move to %s", other)
	case time.Duration(r.LongestOutage) > longestLoss:
		return fmt.Errorf("a flow was interrupted for %s", r.LongestOutage)
	}
	d.say("The traffic moved over; no flow was interrupted for longer than %s", r.LongestOutage)
	if err := n.LinkUp(uplink); err != nil {
		return err
	}
	return nil
}
