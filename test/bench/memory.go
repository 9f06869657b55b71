package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/causeway-net/causeway/test/lab"
	"github.com/causeway-net/causeway/test/topology/fabric"
)

// memoryBench measures agents and speakers at rest under the load of the two-racks
// topology: four sessions per node and 12 pods. Each node runs a copy of the program of its
// own: nodes that shared its pages would look smaller than they are alone.
func (b *bench) memoryBench(ctx context.Context) error {
	l, err := b.up(ctx, "deploy/containerlab/two-racks/two-racks.clab.yml", "cwb-racks", func(o *lab.Options) { o.NoAgents = true })
	if err != nil {
		return err
	}
	defer b.down(ctx, l)
	f := &fabric.Fabric{Lab: l}
	for _, n := range f.Agents() {
		if err := b.ownProgram(ctx, n); err != nil {
			return fmt.Errorf("node %s: a copy of the program: %w", n, err)
		}
		if err := n.Start(ctx); err != nil {
			return err
		}
	}
	if err := f.AddPods(ctx, 3); err != nil {
		return err
	}
	if err := b.poll(ctx, 90*time.Second, "all sessions are up", func() error { return f.Established(ctx) }); err != nil {
		return err
	}
	b.say("12 pods are attached and all sessions up; resting %v", b.size.rest)
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(b.size.rest):
	}
	const load = " at rest, two racks with 12 pods"
	both := &Figure{Name: "memory (PSS) of agent + speaker" + load, Unit: "MB", Goal: 60}
	agent := &Figure{Name: "of it the agent", Unit: "MB"}
	speaker := &Figure{Name: "of it the speaker", Unit: "MB"}
	anon := &Figure{Name: "of it heap and stacks of both", Unit: "MB"}
	for _, n := range f.Agents() {
		a, s, err := usageOfNode(ctx, n)
		if err != nil {
			return err
		}
		both.Each = append(both.Each, a.pss+s.pss)
		agent.Each = append(agent.Each, a.pss)
		speaker.Each = append(speaker.Each, s.pss)
		anon.Each = append(anon.Each, a.anon+s.anon)
	}
	for _, x := range []*Figure{both, agent, speaker, anon} {
		x.Value = median(x.Each)
		b.figure(x)
	}
	return nil
}

// ownProgram puts a copy of causeway in place of the one that all nodes see.
func (b *bench) ownProgram(ctx context.Context, n *lab.Node) error {
	program := filepath.Join(b.binDir, "causeway")
	text, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	own := filepath.Join(n.StateDir(), "program")
	if err := os.WriteFile(own, text, 0o755); err != nil {
		return err
	}
	if err := uncache(own); err != nil {
		return err
	}
	_, err = n.Exec(ctx, "mount", "--bind", own, program) // in the node's mount namespace
	return err
}

// uncache has the kernel read a file anew, as after a reboot. What was written in one piece
// stays in memory in pieces of up to 2 MB, and a process that touches one page of such a piece
// is charged with all of it.
func uncache(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return err
	}
	return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
}

// usageOfNode is what the agent and the speaker of a node use.
func usageOfNode(ctx context.Context, n *lab.Node) (agent, speaker usage, err error) {
	pid, err := n.Daemon("agent").PID(ctx)
	if err != nil {
		return agent, speaker, err
	}
	kids, err := children(pid)
	if err == nil && len(kids) != 1 {
		err = fmt.Errorf("node %s: the agent has %d children, want the speaker alone", n, len(kids))
	}
	if err != nil {
		return agent, speaker, err
	}
	if agent, err = usageOf(pid); err == nil {
		speaker, err = usageOf(kids[0])
	}
	return agent, speaker, err
}
