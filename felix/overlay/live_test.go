package overlay

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/causeway-net/causeway/internal/model"
)

// change is one live change: the modes after it, and the device that packets of a take to b
// and to c; "up0" is direct.
type change struct {
	name        string
	ipip, vxlan model.EncapMode
	toB4, toC4  string
	toB6, toC6  string
}

// live plays changes while every pair of pods talks both ways, and returns the longest
// interruption.
func (r *racks) live(changes []change, families int, most time.Duration) (worst time.Duration) {
	r.t.Helper()
	first := r.snapshot(changes[0].ipip, changes[0].vxlan, changes[0].vxlan)
	for i := range r.nodes {
		r.start(i, first)
	}
	r.idle(first)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var flows []*flow
	for family := range families {
		for _, pair := range [][2]int{{0, 1}, {1, 0}, {0, 2}, {2, 0}} {
			flows = append(flows, r.send(pair[0], pair[1], family, ctx))
		}
	}
	for i, ch := range changes {
		for _, f := range flows { // all that was sent before the change has arrived or is lost
			r.carries(f, 50)
		}
		for _, f := range flows {
			f.reset()
		}
		snap := r.snapshot(ch.ipip, ch.vxlan, ch.vxlan)
		if i > 0 {
			r.set(snap)
			r.idle(snap)
		}
		for _, f := range flows {
			r.carries(f, 100)
		}
		report := ""
		for _, f := range flows {
			got, lost, gap := f.reset()
			worst = max(worst, gap)
			report += fmt.Sprintf(" %s:%d/%d", f.name, lost, lost+got)
			if gap > most {
				r.t.Errorf("%s: %s was interrupted for %v, %d packets lost", ch.name, f.name, gap, lost)
			}
		}
		r.t.Logf("%s: lost%s", ch.name, report)
		a := r.nodes[0]
		wants := [][2]string{{ch.toB4, ch.toC4}, {ch.toB6, ch.toC6}}[:families]
		for family, w := range wants {
			for k, device := range w {
				if got := a.device(family, k+1); got != device {
					r.t.Errorf("%s: packets of family %d to %s take %s, not %s", ch.name, 4+2*family, r.nodes[k+1].name, got, device)
				}
			}
			if w[1] != "up0" { // they are seen in the tunnel, and those of direct flows are not
				flows[4*family+2].reset()
				before := a.sentBy(w[1])
				r.carries(flows[4*family+2], 200)
				if sent := a.sentBy(w[1]) - before; sent < 150 {
					r.t.Errorf("%s: %s sent %d packets only", ch.name, w[1], sent)
				}
			}
		}
		for _, c := range r.nodes {
			if left := c.leftOver(); left != "" && ch.toC4 == "up0" {
				r.t.Errorf("%s: left over on %s:\n%s", ch.name, c.name, left)
			}
		}
	}
	return worst
}

// TestLiveVXLAN changes the mode of an IPv4 and an IPv6 pool under traffic, there and back.
func TestLiveVXLAN(t *testing.T) {
	t.Parallel()
	changes := []change{
		{"Never", never, never, "up0", "up0", "up0", "up0"},
		{"Never to CrossSubnet", never, cross, "up0", "vxlan.calico", "up0", "vxlan-v6.calico"},
		{"CrossSubnet to Always", never, always, "vxlan.calico", "vxlan.calico", "vxlan-v6.calico", "vxlan-v6.calico"},
		{"Always to Never", never, never, "up0", "up0", "up0", "up0"},
	}
	for name, rpFilter := range map[string]int{"rp_filter off": 0, "rp_filter strict": 1} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			worst := newRacks(t, rpFilter).live(changes, 2, time.Second)
			t.Logf("longest interruption: %v", worst)
		})
	}
}

// TestLiveIPIP is the same with IPIP, and from IPIP to VXLAN and back. A kernel without ipip
// holds what stood and says so; the rest runs in the virtual machine (make test-vm).
func TestLiveIPIP(t *testing.T) {
	t.Parallel()
	if !kernelHasIPIP(t, newNetNS(t)) {
		testNoIPIP(t)
		return
	}
	worst := newRacks(t, 0).live([]change{
		{"Never", never, never, "up0", "up0", "", ""},
		{"Never to CrossSubnet", cross, never, "up0", "tunl0", "", ""},
		{"CrossSubnet to Always", always, never, "tunl0", "tunl0", "", ""},
		{"IPIP to VXLAN", never, always, "vxlan.calico", "vxlan.calico", "", ""},
		{"VXLAN to IPIP", always, never, "tunl0", "tunl0", "", ""},
		{"Always to Never", never, never, "up0", "up0", "", ""},
	}, 1, time.Second)
	t.Logf("CAUSEWAY: this kernel has ipip; longest interruption: %v", worst)
}

// testNoIPIP: without ipip the flows go on as they did, nothing leaves by another way, and
// the status names the module.
func testNoIPIP(t *testing.T) {
	t.Log("CAUSEWAY: this kernel has no ipip; its refusal is checked here, traffic through tunl0 in the VM tier (make test-vm)")
	r := newRacks(t, 0)
	before := r.snapshot(never, cross, cross)
	for i := range r.nodes {
		r.start(i, before)
	}
	r.idle(before)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	flow := r.send(0, 2, 0, ctx)
	r.carries(flow, 50)
	flow.reset()
	r.set(r.snapshot(always, never, cross))
	r.eventually(func() string {
		for _, c := range r.nodes {
			st := c.over.Status()
			if !strings.Contains(st.Error, "modprobe ipip") || len(st.Tunnels) != 3 || !st.Tunnels[0].Held {
				return fmt.Sprintf("node %s: %+v", c.name, st)
			}
		}
		return ""
	})
	r.carries(flow, 200)
	if _, lost, gap := flow.reset(); lost > 0 {
		t.Errorf("%d packets lost, %v", lost, gap)
	}
	if got := r.nodes[0].device(0, 2); got != "vxlan.calico" {
		t.Errorf("packets take %s", got)
	}
	after := r.snapshot(never, never, never)
	r.set(after)
	r.idle(after)
	for _, c := range r.nodes {
		if left := c.leftOver(); left != "" {
			t.Errorf("left over on %s:\n%s", c.name, left)
		}
	}
}

// TestRestart stops the agents of all nodes in the middle of each change and starts others
// with what is wanted then: all ends as it should, and no flow is lost on the way (I3, I5).
func TestRestart(t *testing.T) {
	t.Parallel()
	r := newRacks(t, 0)
	mode := map[model.EncapMode]*model.Snapshot{never: r.snapshot(never, never, never), cross: r.snapshot(never, cross, cross), always: r.snapshot(never, always, always)}
	for i := range r.nodes {
		r.start(i, mode[never])
	}
	r.idle(mode[never])
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	flows := []*flow{r.send(0, 1, 0, ctx), r.send(2, 0, 0, ctx), r.send(0, 2, 1, ctx)}
	for i, to := range []model.EncapMode{always, never, cross, never} {
		for _, f := range flows {
			r.carries(f, 50)
			f.reset()
		}
		r.set(mode[to])
		time.Sleep(time.Duration(i*120) * time.Millisecond) // at another step each time
		for k, c := range r.nodes {
			c.stop()
			r.start(k, mode[to])
		}
		r.idle(mode[to])
		for _, f := range flows {
			r.carries(f, 50)
			if _, lost, gap := f.reset(); gap > time.Second {
				t.Errorf("to %s: %s was interrupted for %v, %d packets lost", to, f.name, gap, lost)
			} else {
				t.Logf("to %s: %s lost %d, %v", to, f.name, lost, gap)
			}
		}
	}
	for _, c := range r.nodes {
		if left := c.leftOver(); left != "" {
			t.Errorf("left over on %s:\n%s", c.name, left)
		}
	}
}
