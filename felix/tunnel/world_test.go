package tunnel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/causeway-net/causeway/internal/model"
)

// world is where Devices work in a scenario: the fake kernel, or a network namespace.
type world interface {
	devices(log *slog.Logger) *Devices
	run(func()) // on a thread of the world
	harm(op)    // done by somebody else
	dump() []string
	hasIPIP() bool
	remove() ([]string, error) // Remove, called on a thread of the world
}

// worlds runs a scenario over the fake and over the real kernel.
func worlds(t *testing.T, scenario func(*testing.T, world)) {
	t.Run("fake", func(t *testing.T) { t.Parallel(); scenario(t, &fakeWorld{newFakeKernel()}) })
	t.Run("fake without ipip", func(t *testing.T) {
		t.Parallel()
		f := newFakeKernel()
		f.noIPIP = true
		scenario(t, &fakeWorld{f})
	})
	t.Run("kernel", func(t *testing.T) { t.Parallel(); scenario(t, newNetNS(t)) })
}

type fakeWorld struct{ *fakeKernel }

func (w *fakeWorld) devices(log *slog.Logger) *Devices {
	d := New(Config{Log: log, Resync: time.Hour})
	d.loop.MaxBackoff = 10 * time.Millisecond
	d.open = func() (kernel, error) { return fakeSeam{w.fakeKernel}, nil }
	d.listen = w.listen
	return d
}

func (w *fakeWorld) run(f func()) { f() }
func (w *fakeWorld) remove() ([]string, error) {
	return w.devices(discard).remove(context.Background())
}
func (w *fakeWorld) hasIPIP() bool { return !w.noIPIP }

// netns is a network namespace and a thread in it.
type netns struct {
	t    testing.TB
	name string
	jobs chan func()
	k    kernel
	ipip bool
}

var nsCount atomic.Int32

func newNetNS(t testing.TB) *netns {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("these tests make network namespaces: run them as root")
	}
	n := &netns{t: t, name: fmt.Sprintf("cwtun-%d-%d", os.Getpid(), nsCount.Add(1)), jobs: make(chan func())}
	if out, err := exec.Command("ip", "netns", "add", n.name).CombinedOutput(); err != nil {
		t.Fatalf("ip netns add: %v: %s (iproute2 and CAP_SYS_ADMIN are needed)", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("ip", "netns", "del", n.name).CombinedOutput(); err != nil {
			t.Errorf("ip netns del %s: %v: %s", n.name, err, out)
		}
	})
	ready := make(chan error)
	go n.thread(ready)
	if err := <-ready; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { close(n.jobs) })
	n.ip("link set lo up")
	n.ipip = kernelHasIPIP(t, n)
	n.run(func() {
		var err error
		if n.k, err = openRtnetlink("/proc/sys"); err != nil {
			t.Error(err)
		}
	})
	return n
}

// kernelHasIPIP finds out by what this package does not do: a device of another name. In a
// virtual machine with a stock kernel the answer must be yes (CAUSEWAY_TEST_VM is set there).
func kernelHasIPIP(t testing.TB, n *netns) bool {
	t.Helper()
	out, err := n.try("ip", "link add cwprobe0 type ipip remote 192.0.2.1")
	if err == nil {
		n.ip("link del cwprobe0")
	} else if os.Getenv("CAUSEWAY_TEST_VM") != "" {
		t.Fatalf("a stock kernel makes model.TunnelIPIP devices, this one does not: %s", out)
	}
	return err == nil
}

// inside puts the calling goroutine's thread into the namespace for good; the thread ends
// with the goroutine.
func (n *netns) inside() error {
	runtime.LockOSThread()
	fd, err := unix.Open("/run/netns/"+n.name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Setns(fd, unix.CLONE_NEWNET)
}

func (n *netns) thread(ready chan<- error) {
	err := n.inside()
	ready <- err
	if err != nil {
		return
	}
	for f := range n.jobs {
		f()
	}
	n.k.close()
}

func (n *netns) run(f func()) {
	done := make(chan struct{})
	n.jobs <- func() { defer close(done); f() }
	<-done
}

func (n *netns) hasIPIP() bool { return n.ipip }

func (n *netns) devices(log *slog.Logger) *Devices { return New(Config{Log: log, Resync: time.Hour}) }

func (n *netns) remove() ([]string, error) { return Remove(context.Background(), Config{Log: discard}) }

// try runs ip(8) or bridge(8) inside.
func (n *netns) try(program, args string) (string, error) {
	out, err := exec.Command(program, append([]string{"-n", n.name}, strings.Fields(args)...)...).CombinedOutput()
	return string(out), err
}

func (n *netns) ip(args string) string {
	n.t.Helper()
	out, err := n.try("ip", args)
	if err != nil {
		n.t.Fatalf("ip %s: %v: %s", args, err, out)
	}
	return out
}

// harm does the op by the command line that it prints; failures are as good, since the walk
// harms what may not be there.
func (n *netns) harm(o op) {
	program, args, _ := strings.Cut(strings.ReplaceAll(o.String(), `"`, ""), " ")
	if program == "ip" || program == "bridge" {
		_, _ = n.try(program, args)
		return
	}
	n.run(func() { _ = n.k.do(&o) })
}

// parse reads the JSON that ip(8) prints; nothing printed is an empty list.
func parse[T any](t testing.TB, text string) (out []T) {
	t.Helper()
	if strings.TrimSpace(text) == "" {
		return nil
	}
	if err := json.Unmarshal([]byte(text), &out); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return out
}

func ours(name string) (model.Tunnel, bool) {
	for k := range model.Tunnel(kinds) {
		if k.Device() == name {
			return k, true
		}
	}
	return 0, false
}

// dump reads the namespace with ip(8) and bridge(8). What is not there any more at the next
// command makes a dump that matches nothing; the caller looks again.
func (n *netns) dump() []string {
	n.t.Helper()
	var out []string
	links := parse[struct {
		Name  string   `json:"ifname"`
		MTU   int      `json:"mtu"`
		Flags []string `json:"flags"`
		MAC   string   `json:"address"`
		Alias string   `json:"ifalias"`
		Info  struct {
			Kind string `json:"info_kind"`
			Data struct {
				ID       int    `json:"id"`
				Port     int    `json:"port"`
				Local    string `json:"local"`
				Local6   string `json:"local6"`
				Learning bool   `json:"learning"`
				GBP      bool   `json:"gbp"`
				Group    string `json:"group"`
			} `json:"info_data"`
		} `json:"linkinfo"`
	}](n.t, n.ip("-d -j link show"))
	for _, l := range links {
		k, ok := ours(l.Name)
		if !ok || k == model.TunnelIPIP && l.Alias == "" && !slices.Contains(l.Flags, "UP") && l.MTU == 1480 {
			continue // tunl0 as the module makes it
		}
		s := linkState{kind: l.Info.Kind, mtu: l.MTU, up: slices.Contains(l.Flags, "UP"), alias: l.Alias}
		if k != model.TunnelIPIP && l.Info.Kind == "vxlan" {
			v := l.Info.Data
			local, _ := netip.ParseAddr(v.Local + v.Local6)
			s.mac, s.vxlan = mac(hw(l.MAC)), vxlan{vni: v.ID, port: v.Port, local: local}
			if v.Learning {
				s.vxlan.odd = "learning"
			}
			if v.GBP || v.Group != "" {
				s.vxlan.odd += "more"
			}
		}
		n.run(func() {
			if k != model.TunnelIPIP {
				s.offload, _ = n.k.(*rtnetlink).tx.checksum(l.Name)
			}
			for _, x := range sysctls(k) {
				out = append(out, "sysctl "+x.name+"="+n.k.sysctl(x.name))
			}
		})
		out = append(out, linkLine(l.Name, &s))
	}
	for _, l := range parse[struct {
		Name  string `json:"ifname"`
		Addrs []struct {
			Local string `json:"local"`
			Bits  int    `json:"prefixlen"`
			Scope string `json:"scope"`
			Label string `json:"label"`
		} `json:"addr_info"`
	}](n.t, n.ip("-j addr show")) {
		if _, ok := ours(l.Name); !ok {
			continue
		}
		for _, x := range l.Addrs {
			if x.Scope != "link" {
				out = append(out, addrLine(l.Name, netip.PrefixFrom(a(x.Local), x.Bits), strings.TrimPrefix(x.Label, l.Name+"\x00")))
			}
		}
	}
	for i, line := range out { // the kernel's own label is the link's name
		for k := range model.Tunnel(kinds) {
			if strings.HasPrefix(line, "addr ") && strings.HasSuffix(line, " "+k.Device()) {
				out[i] = strings.TrimSuffix(line, k.Device())
			}
		}
	}
	return append(out, n.dumpPeers()...)
}

func (n *netns) dumpPeers() (out []string) {
	n.t.Helper()
	fdb, err := n.try("bridge", "-j fdb show")
	if err != nil {
		n.t.Fatalf("bridge fdb: %v: %s", err, fdb)
	}
	for _, e := range parse[struct {
		Name string `json:"ifname"`
		MAC  string `json:"mac"`
		Dst  string `json:"dst"`
	}](n.t, fdb) {
		if k, ok := ours(e.Name); ok && k != model.TunnelIPIP && e.Dst != "" {
			out = append(out, fdbLine(e.Name, mac(hw(e.MAC)), a(e.Dst)))
		}
	}
	for _, e := range parse[struct {
		Name string `json:"dev"`
		Dst  string `json:"dst"`
		MAC  string `json:"lladdr"`
	}](n.t, n.ip("-j neigh show nud permanent")) {
		if _, ok := ours(e.Name); ok && e.MAC != "" {
			out = append(out, neighLine(e.Name, a(e.Dst), mac(hw(e.MAC))))
		}
	}
	return out
}

// tunl0 is the kernel's, or nil.
func tunl0(t *testing.T, w world) (l *linkState) {
	t.Helper()
	switch w := w.(type) {
	case *fakeWorld:
		l, _ = w.link("tunl0")
	case *netns:
		w.run(func() { l, _ = w.k.link("tunl0") })
		if l != nil && l.alias == "" && !l.up && l.mtu == 1480 {
			return nil
		}
	}
	return l
}

// eventually polls until check returns an empty string.
func eventually(t testing.TB, check func() string) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		what := check()
		if what == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// want waits until the kernel has what devices say, and nothing else.
func want(t *testing.T, w world, devices []model.TunnelDevice, story ...string) {
	t.Helper()
	eventually(t, func() string {
		have, should := w.dump(), golden(devices, tunl0(t, w))
		if !slices.ContainsFunc(devices, func(d model.TunnelDevice) bool { return d.Tunnel == model.TunnelIPIP }) {
			have = slices.DeleteFunc(have, func(s string) bool { return strings.Contains(s, "conf/tunl0/") })
		}
		slices.Sort(have)
		if slices.Equal(have, should) {
			return ""
		}
		return fmt.Sprintf("the kernel has\n%s\nand not\n%s\nafter\n%s", strings.Join(have, "\n"), strings.Join(should, "\n"), strings.Join(story, "\n"))
	})
}

// startIn runs d in w until stop.
func startIn(t testing.TB, w world, d *Devices) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		if n, ok := w.(*netns); ok {
			if err := n.inside(); err != nil {
				done <- err
				return
			}
		}
		done <- d.Run(ctx)
	}()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
	t.Cleanup(stop)
	return stop
}

// wait is Wait with a deadline.
func wait(t testing.TB, d *Devices) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	err := d.Wait(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		t.Fatal("Wait does not return")
	}
	return err
}
