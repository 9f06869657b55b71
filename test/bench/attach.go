package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/causeway-net/causeway/test/lab"
	"github.com/causeway-net/causeway/test/topology/fabric"
)

// ptpNetwork is ptp with host-local; its records lie on the disk that holds our journal.
func ptpNetwork(ipv6 bool) json.RawMessage {
	ranges, routes := `[{"subnet":"10.77.0.0/16"}]`, `{"dst":"0.0.0.0/0"}`
	name := "ptp-ipv4"
	if ipv6 {
		name, ranges, routes = "ptp-dual", ranges+`,[{"subnet":"fd00:77::/64"}]`, routes+`,{"dst":"::/0"}`
	}
	return json.RawMessage(fmt.Sprintf(`{"cniVersion":"1.0.0","name":%q,"plugins":[{"type":"ptp","ipam":{"type":"host-local",
		"dataDir":"/var/lib/causeway/host-local","ranges":[%s],"routes":[%s]}}]}`, name, ranges, routes))
}

var (
	ourNetwork   = json.RawMessage(`{"cniVersion":"1.0.0","name":"causeway","plugins":[{"type":"causeway-cni"}]}`)
	floorNetwork = json.RawMessage(`{"cniVersion":"1.0.0","name":"floor","plugins":[{"type":"hello"}]}`)
)

// attachBench measures CNI: ADD and DEL against ptp with host-local, and the plugin's
// start.
func (b *bench) attachBench(ctx context.Context) error {
	l, err := b.up(ctx, "test/bench/attach/attach.clab.yml", "cwb-attach")
	if err != nil {
		return err
	}
	defer b.down(ctx, l)
	workers := map[string]*worker{}
	for _, n := range l.Nodes() {
		w, err := startWorker(ctx, n)
		if err != nil {
			return err
		}
		defer w.stop()
		workers[n.Name()] = w
		if n.Spec.Role == lab.RoleCauseway {
			if err := b.poll(ctx, 30*time.Second, n.Name()+" takes pods", func() error { return n.CNIStatus(ctx) }); err != nil {
				return err
			}
		}
	}
	for _, v := range []struct {
		node, families string
		ipv6           bool
	}{{"v4", "IPv4", false}, {"dual", "dual stack", true}} {
		ours, base := workers[v.node], workers["base"]
		if err := b.addLatency(l, v.families, ours, base, ptpNetwork(v.ipv6)); err != nil {
			return fmt.Errorf("ADD, %s: %w", v.families, err)
		}
		if err := b.addBurst(v.families, ours, base, ptpNetwork(v.ipv6)); err != nil {
			return fmt.Errorf("%d ADDs at once, %s: %w", b.size.burst, v.families, err)
		}
	}
	if err := b.addWithDAD(workers["dual"], workers["base"]); err != nil {
		return fmt.Errorf("ADD with duplicate address detection: %w", err)
	}
	return b.startUp(workers["base"])
}

// addLatency times one ADD after the other, and one DEL after the other.
func (b *bench) addLatency(l *lab.Lab, families string, ours, base *worker, ptp json.RawMessage) error {
	const versus = "ptp + host-local"
	add := &Comparison{Name: "CNI ADD, " + families + ", median", Versus: versus, Unit: "ms", Goal: 0.5}
	del := &Comparison{Name: "CNI DEL, " + families + ", median", Versus: versus, Unit: "ms"}
	our := round{Network: ourNetwork, Pods: b.size.pods}
	their := round{Network: ptp, Pods: b.size.pods}
	// Each side's first ADD loads programs, makes chains and claims a block; it is not timed.
	for w, q := range map[*worker]round{ours: our, base: their} {
		q.Pods = 3
		if _, err := w.do(task{Round: &q}); err != nil {
			return err
		}
	}
	var client []podTimes
	var floor []float64
	var all [2][]float64
	for i := range b.size.pairs {
		var got [2]answer
		err := inTurns(i, func(side int) (err error) {
			if side == 0 {
				got[0], err = ours.do(task{Round: &our})
			} else {
				got[1], err = base.do(task{Round: &their})
			}
			return err
		})
		if err != nil {
			return err
		}
		nothing, err := base.do(task{Round: &round{Network: floorNetwork, Pods: b.size.pods}})
		if err != nil {
			return err
		}
		floor = append(floor, addTimes(nothing.Pods)...)
		client = append(client, got[0].Pods...)
		a, p := addTimes(got[0].Pods), addTimes(got[1].Pods)
		add.add(median(a), median(p))
		del.add(median(delTimes(got[0].Pods)), median(delTimes(got[1].Pods)))
		all[0], all[1] = append(all[0], a...), append(all[1], p...)
		b.say("ADD %s, pair %d/%d: %.1f ms against %.1f ms", families, i+1, b.size.pairs, median(a), median(p))
	}
	b.compare(add, del)
	for side, who := range []string{"Causeway", versus} {
		b.figure(&Figure{Name: fmt.Sprintf("CNI ADD, %s, 99th percentile of %d: %s", families, len(all[side]), who), Unit: "ms", Value: percentile(all[side], 99)})
	}
	return b.breakdown(l, families, ours.node, client, floor)
}

// addBurst times many ADDs at once, from the first one's begin to the last one's end.
func (b *bench) addBurst(families string, ours, base *worker, ptp json.RawMessage) error {
	c := &Comparison{Name: fmt.Sprintf("%d CNI ADDs at once, %s, until the last is done", b.size.burst, families), Versus: "ptp + host-local", Unit: "ms"}
	d := &Comparison{Name: fmt.Sprintf("%d CNI DELs at once, %s, until the last is done", b.size.burst, families), Versus: "ptp + host-local", Unit: "ms"}
	our := round{Network: ourNetwork, Pods: b.size.burst, Parallel: true}
	their := round{Network: ptp, Pods: b.size.burst, Parallel: true}
	for i := range b.size.pairs {
		var got [2]answer
		err := inTurns(i, func(side int) (err error) {
			if side == 0 {
				got[0], err = ours.do(task{Round: &our})
			} else {
				got[1], err = base.do(task{Round: &their})
			}
			return err
		})
		if err != nil {
			return err
		}
		c.add(milliseconds(got[0].AddAll), milliseconds(got[1].AddAll))
		d.add(milliseconds(got[0].DelAll), milliseconds(got[1].DelAll))
		b.say("%d ADDs at once, %s, pair %d/%d: %.0f ms against %.0f ms", b.size.burst, families, i+1, b.size.pairs,
			milliseconds(got[0].AddAll), milliseconds(got[1].AddAll))
	}
	b.compare(c, d)
	return nil
}

// addWithDAD times dual-stack ADDs into pods that detect duplicate addresses, as pods do
// unless somebody turned it off before: ptp waits for that.
func (b *bench) addWithDAD(ours, base *worker) error {
	c := &Comparison{Name: "CNI ADD, dual stack, kernel's default duplicate address detection", Versus: "ptp + host-local", Unit: "ms"}
	our := round{Network: ourNetwork, Pods: 1, DAD: true}
	their := round{Network: ptpNetwork(true), Pods: 1, DAD: true}
	for i := range b.size.pairs {
		var got [2]answer
		err := inTurns(i, func(side int) (err error) {
			if side == 0 {
				got[0], err = ours.do(task{Round: &our})
			} else {
				got[1], err = base.do(task{Round: &their})
			}
			return err
		})
		if err != nil {
			return err
		}
		c.add(milliseconds(got[0].AddAll), milliseconds(got[1].AddAll))
	}
	b.say("ADD dual stack with duplicate address detection: done")
	b.compare(c)
	return nil
}

// startUp times the plugin's start, by CNI's VERSION, which needs no agent.
func (b *bench) startUp(w *worker) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	hello := &Comparison{Name: "start of causeway-cni (VERSION)", Versus: "a Go program that prints one line", Unit: "ms"}
	local := &Comparison{Name: "start of causeway-cni (VERSION)", Versus: "host-local (VERSION)", Unit: "ms"}
	programs := []string{filepath.Join(b.binDir, "causeway-cni"), filepath.Join(filepath.Dir(exe), "hello"), filepath.Join(b.binDir, "host-local")}
	if _, err := w.do(task{Exec: &execRound{Programs: programs, Times: 3}}); err != nil { // from disk to the page cache
		return err
	}
	for range b.size.pairs {
		a, err := w.do(task{Exec: &execRound{Programs: programs, Times: b.size.starts / b.size.pairs}})
		if err != nil {
			return err
		}
		hello.add(median(a.Programs[0]), median(a.Programs[1]))
		local.add(median(a.Programs[0]), median(a.Programs[2]))
	}
	b.say("start of the plugin: done")
	b.compare(hello, local)
	return nil
}

// inTurns calls f for both sides, 0 first in even pairs and 1 first in odd ones.
func inTurns(pair int, f func(side int) error) error {
	if err := f(pair % 2); err != nil {
		return err
	}
	return f(1 - pair%2)
}

func addTimes(pods []podTimes) []float64 {
	out := make([]float64, len(pods))
	for i, p := range pods {
		out[i] = milliseconds(p.Add)
	}
	return out
}

func delTimes(pods []podTimes) []float64 {
	out := make([]float64, len(pods))
	for i, p := range pods {
		out[i] = milliseconds(p.Del)
	}
	return out
}

// breakdown says where the time of an ADD goes: what the harness itself costs, what the
// agent logs of each ADD (every attribute whose name begins with "took"), and the rest.
func (b *bench) breakdown(l *lab.Lab, families string, n *lab.Node, client []podTimes, floor []float64) error {
	logged, err := tookOf(n.Daemon("agent").LogPath())
	if err != nil {
		return err
	}
	parts := map[string][]float64{}
	var outside, all []float64
	for _, p := range client {
		took, ok := logged[p.ContainerID]
		if !ok {
			return fmt.Errorf("the log of node %s has no line \"pod attached\" for container %s", n, p.ContainerID)
		}
		for name, d := range took {
			parts[name] = append(parts[name], milliseconds(d))
		}
		all = append(all, milliseconds(p.Add))
		outside = append(outside, milliseconds(p.Add-took["took"]))
	}
	s := Breakdown{Families: families, Total: median(all), Floor: median(floor), Outside: median(outside)}
	for name, ms := range parts {
		s.Agent = append(s.Agent, Part{Name: name, MS: median(ms)})
	}
	slices.SortFunc(s.Agent, func(a, b Part) int { return strings.Compare(a.Name, b.Name) })
	b.report.Breakdowns = append(b.report.Breakdowns, s)
	return nil
}

// tookOf reads an agent's log: for each container the durations of its ADD, by name.
func tookOf(path string) (map[string]map[string]time.Duration, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	out := map[string]map[string]time.Duration{}
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var line map[string]any
		if json.Unmarshal(lines.Bytes(), &line) != nil || line["msg"] != "pod attached" {
			continue
		}
		// The attachment is CONTAINER/INTERFACE.
		attachment, _ := line["attachment"].(string)
		id, _, _ := strings.Cut(attachment, "/")
		took := map[string]time.Duration{}
		for name, v := range line {
			if ns, ok := v.(float64); ok && strings.HasPrefix(name, "took") {
				took[name] = time.Duration(ns)
			}
		}
		out[id] = took
	}
	return out, lines.Err()
}

// poll calls done until it returns nil, for at most limit.
func (b *bench) poll(ctx context.Context, limit time.Duration, what string, done func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return fabric.Poll(ctx, what, done)
}
