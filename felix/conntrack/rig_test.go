package conntrack_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/causeway-net/causeway/felix/conntrack"
)

const bit = 0x00100000

var serial atomic.Int64

// namespace makes a network namespace that lives as long as the test.
func namespace(t testing.TB) string {
	t.Helper()
	name := fmt.Sprintf("ct-%d-%d", os.Getpid(), serial.Add(1))
	shell(t, "ip netns add "+name)
	t.Cleanup(func() { shell(t, "ip netns del "+name) })
	shell(t, "ip -n "+name+" link set lo up")
	return name
}

func shell(t testing.TB, command string) string {
	t.Helper()
	args := strings.Fields(command)
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
	return string(out)
}

// entering runs functions on a thread inside a network namespace.
func entering(name string) func(func() error) error {
	return func(f func() error) error {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			return err
		}
		defer home.Close()
		there, err := os.Open("/run/netns/" + name)
		if err != nil {
			return err
		}
		defer there.Close()
		if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		err = f()
		if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
			panic(back)
		}
		return err
	}
}

// until polls until ok, and fails the test after a while.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

// node is a host with three pods behind it, each in its own network.
type node struct {
	name  string
	pods  [3]string // namespaces
	table *conntrack.Table
}

func podAddr(v6 bool, i int) netip.Addr {
	if v6 {
		return netip.MustParseAddr(fmt.Sprintf("fd65:%d::2", i))
	}
	return netip.MustParseAddr(fmt.Sprintf("10.65.%d.2", i))
}

func hostAddr(v6 bool, i int) netip.Addr { return podAddr(v6, i).Prev() }

func newNode(t testing.TB) *node {
	n := &node{name: namespace(t)}
	n.table = conntrack.NewTableIn(entering(n.name))
	for _, s := range []string{"net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"} {
		shell(t, "ip netns exec "+n.name+" sysctl -qw "+s)
	}
	for i := range n.pods {
		ns := namespace(t)
		n.pods[i] = ns
		link := fmt.Sprintf("cali%d", i)
		shell(t, "ip -n "+n.name+" link add "+link+" type veth peer name eth0 netns "+ns)
		for _, v6 := range []bool{false, true} {
			size, end := "/24", ""
			if v6 {
				size, end = "/64", " nodad"
			}
			shell(t, "ip -n "+n.name+" addr add "+hostAddr(v6, i).String()+size+" dev "+link+end)
			shell(t, "ip -n "+ns+" addr add "+podAddr(v6, i).String()+size+" dev eth0"+end)
		}
		shell(t, "ip -n "+n.name+" link set "+link+" up")
		shell(t, "ip -n "+ns+" link set eth0 up")
		for _, v6 := range []bool{false, true} {
			shell(t, "ip -n "+ns+" route add default via "+hostAddr(v6, i).String())
		}
	}
	return n
}

// talk is one connection whose ends both send a numbered frame every few milliseconds,
// whatever they hear.
type talk struct {
	name         string
	ends         [2]net.Conn // client, server
	heard        [2]atomic.Int64
	span         [2]atomic.Int64 // how many frames from the first to the highest that was heard
	last         [2]atomic.Int64 // when the last frame was heard, unix ns
	wg           sync.WaitGroup
	peer         atomic.Pointer[netip.AddrPort] // of a UDP server
	listenPacket *net.UDPConn
	quit         chan struct{}
}

// dial opens a talk of a client in a namespace to target, which serve in another one
// stands behind.
func dial(t testing.TB, network, clientNS string, target netip.AddrPort, serverNS string, serve netip.AddrPort) *talk {
	t.Helper()
	k := &talk{name: fmt.Sprintf("%s %s>%s", network, clientNS, target), quit: make(chan struct{})}
	var listener net.Listener
	err := entering(serverNS)(func() (err error) {
		if network == "udp" {
			k.listenPacket, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(serve))
			return err
		}
		listener, err = net.Listen("tcp", serve.String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	err = entering(clientNS)(func() (err error) {
		k.ends[0], err = (&net.Dialer{Timeout: 20 * time.Second}).Dial(network, target.String())
		return err
	})
	if err != nil {
		t.Fatalf("%s: %v", k.name, err)
	}
	if listener != nil {
		if k.ends[1], err = listener.Accept(); err != nil {
			t.Fatal(err)
		}
		listener.Close()
	}
	for side := range 2 {
		k.wg.Go(func() { k.send(side) })
		k.wg.Go(func() { k.hear(side) })
	}
	t.Cleanup(k.close)
	until(t, k.name+": both ends hear", func() bool { return k.heard[0].Load() > 3 && k.heard[1].Load() > 3 })
	return k
}

func (k *talk) close() {
	close(k.quit)
	for _, c := range k.ends {
		if c != nil {
			c.Close()
		}
	}
	if k.listenPacket != nil {
		k.listenPacket.Close()
	}
	k.wg.Wait()
}

func (k *talk) send(side int) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for n := uint64(1); ; {
		select {
		case <-k.quit:
			return
		case <-tick.C:
		}
		var err error
		frame := binary.BigEndian.AppendUint64(nil, n)
		if side == 1 && k.listenPacket != nil {
			to := k.peer.Load()
			if to == nil {
				continue
			}
			_, err = k.listenPacket.WriteToUDPAddrPort(frame, *to)
		} else {
			_, err = k.ends[side].Write(frame)
		}
		if err == nil {
			n++
		}
	}
}

func (k *talk) hear(side int) {
	var first, highest uint64
	frame := make([]byte, 8)
	for {
		var err error
		if side == 1 && k.listenPacket != nil {
			var from netip.AddrPort
			if _, from, err = k.listenPacket.ReadFromUDPAddrPort(frame); err == nil {
				k.peer.Store(&from)
			}
		} else {
			_, err = io.ReadFull(k.ends[side], frame)
		}
		if errors.Is(err, unix.ECONNREFUSED) {
			continue
		}
		if err != nil {
			return
		}
		n := binary.BigEndian.Uint64(frame)
		if first == 0 {
			first = n
		}
		highest = max(highest, n)
		k.span[side].Store(int64(highest) - int64(first) + 1)
		k.heard[side].Add(1)
		k.last[side].Store(time.Now().UnixNano())
	}
}

// whole waits until every frame has been heard that others overtook; none may be lost.
func (k *talk) whole(t testing.TB) {
	t.Helper()
	until(t, k.name+": no frame is missing", func() bool {
		return k.heard[0].Load() >= k.span[0].Load() && k.heard[1].Load() >= k.span[1].Load()
	})
}

// hears waits until both ends hear something new.
func (k *talk) hears(t testing.TB) {
	t.Helper()
	a, b := k.heard[0].Load(), k.heard[1].Load()
	until(t, k.name+": both ends hear again", func() bool { return k.heard[0].Load() > a && k.heard[1].Load() > b })
}

// cut waits until neither end has heard anything for a while, although both send, and
// tells how long after since the last frame came.
func (k *talk) cut(t testing.TB, since time.Time) time.Duration {
	t.Helper()
	var last time.Time
	until(t, k.name+": silence", func() bool {
		last = time.Unix(0, max(k.last[0].Load(), k.last[1].Load()))
		return time.Since(last) > 600*time.Millisecond
	})
	return last.Sub(since)
}

// oracle is a verdict that a test changes.
type oracle struct {
	forbidden atomic.Pointer[func(*conntrack.Flow) bool]
}

func (p *oracle) forbid(f func(*conntrack.Flow) bool) { p.forbidden.Store(&f) }

func (p *oracle) verdict(f *conntrack.Flow) conntrack.Verdict {
	if !f.FromHost && (*p.forbidden.Load())(f) {
		return conntrack.Cut
	}
	return conntrack.Pass
}

// running makes a Cutter of a node and runs it as long as the test.
func (n *node) running(t testing.TB, p *oracle) *conntrack.Cutter {
	t.Helper()
	if p.forbidden.Load() == nil {
		p.forbid(func(*conntrack.Flow) bool { return false })
	}
	return run(t, conntrack.Config{Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Bit: bit, Verdict: p.verdict, Kernel: n.table})
}

func run(t testing.TB, cfg conntrack.Config) *conntrack.Cutter {
	t.Helper()
	c, err := conntrack.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return c
}

// flows are all of the node, by what they are.
func (n *node) flows(t testing.TB) map[string]conntrack.Flow {
	t.Helper()
	out := map[string]conntrack.Flow{}
	if err := n.table.Flows(t.Context(), nil, func(f *conntrack.Flow) { out[f.String()] = f.Clone() }); err != nil {
		t.Fatal(err)
	}
	return out
}
