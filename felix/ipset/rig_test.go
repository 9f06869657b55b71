package ipset_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/causeway-net/causeway/felix/ipset"
	"github.com/causeway-net/causeway/felix/ipset/ipsettest"
)

// rig is one kernel's ipsets that a scenario runs on.
type rig struct {
	kernel  ipset.Kernel
	fake    *ipsettest.Kernel // nil: a real namespace
	foreign func(command string) error
	dump    func() string // sorted, as ipsettest's
	refer   func(name string)
	release func(name string)
	netns   string
}

// rigs runs a scenario on the fake and in a real namespace.
func rigs(t *testing.T, f func(*testing.T, *rig)) {
	t.Run("fake", func(t *testing.T) { t.Parallel(); f(t, fakeRig()) })
	t.Run("kernel", func(t *testing.T) { t.Parallel(); f(t, realRig(t)) })
}

func fakeRig() *rig {
	k := ipsettest.New()
	return &rig{kernel: k, fake: k, foreign: k.Foreign, dump: k.Dump,
		refer: func(name string) { k.Refer(name, 1) }, release: func(name string) { k.Refer(name, -1) }}
}

var serial atomic.Int64

func realRig(t testing.TB) *rig {
	t.Helper()
	name := fmt.Sprintf("ips-%d-%d", os.Getpid(), serial.Add(1))
	shell(t, "ip", "netns", "add", name)
	t.Cleanup(func() { shell(t, "ip", "netns", "del", name) })
	in := func(words ...string) (string, error) {
		out, err := exec.Command("ip", append([]string{"netns", "exec", name}, words...)...).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%s: %w: %s", strings.Join(words, " "), err, out)
		}
		return string(out), err
	}
	rule := func(what, set string) {
		if _, err := in("iptables-nft", "-w", what, "INPUT", "-m", "set", "--match-set", set, "src", "-j", "DROP"); err != nil {
			t.Error(err)
		}
	}
	host := ipset.NewHost().Within(entering(name))
	t.Cleanup(func() { host.Close() })
	return &rig{
		kernel: host, netns: name,
		foreign: func(command string) error {
			_, err := in(append([]string{"ipset"}, strings.Fields(command)...)...)
			return err
		},
		dump: func() string {
			out, err := in("ipset", "save")
			if err != nil {
				t.Fatal(err)
			}
			return sortDump(out)
		},
		refer:   func(set string) { rule("-A", set) },
		release: func(set string) { rule("-D", set) },
	}
}

// sortDump orders what ipset save printed as ipsettest does, and leaves out what it leaves out.
func sortDump(text string) string {
	type block struct {
		head    string
		members []string
	}
	var blocks []block
	for l := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(l, "create "); ok {
			w := strings.Fields(rest)
			blocks = append(blocks, block{head: fmt.Sprintf("create %s %s family %s\n", w[0], w[1], w[3])})
			continue
		}
		b := &blocks[len(blocks)-1]
		b.members = append(b.members, l)
	}
	slices.SortFunc(blocks, func(a, b block) int { return strings.Compare(a.head, b.head) })
	var out strings.Builder
	for _, b := range blocks {
		slices.Sort(b.members)
		out.WriteString(b.head + strings.Join(b.members, ""))
	}
	return out.String()
}

func shell(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
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

// start runs a Reconciler until stop or the test's end.
func (r *rig) start(t testing.TB, change func(*ipset.Config)) (rec *ipset.Reconciler, stop func()) {
	t.Helper()
	cfg := ipset.Config{Kernel: r.kernel, Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Owners: []string{"test"},
		Resync: time.Hour, Glance: 10 * time.Millisecond}
	if change != nil {
		change(&cfg)
	}
	rec, err := ipset.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- rec.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	return rec, stop
}

func wait(t testing.TB, rec *ipset.Reconciler, names ...string) {
	t.Helper()
	if err := waitErr(t, rec, names...); err != nil {
		t.Fatal(err)
	}
}

func waitErr(t testing.TB, rec *ipset.Reconciler, names ...string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	err := rec.Wait(ctx, names...)
	if ctx.Err() != nil {
		t.Fatal("Wait took longer than 20 s")
	}
	return err
}

// eventually polls until ok says nothing.
func eventually(t testing.TB, ok func() string) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		s := ok()
		if s == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(s)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (r *rig) must(t testing.TB, commands ...string) {
	t.Helper()
	for _, c := range commands {
		if err := r.foreign(c); err != nil {
			t.Fatal(err)
		}
	}
}

func (r *rig) becomes(t testing.TB, lines ...string) {
	t.Helper()
	want := ""
	if len(lines) > 0 {
		want = strings.Join(lines, "\n") + "\n"
	}
	eventually(t, func() string {
		if got := r.dump(); got != want {
			return fmt.Sprintf("the kernel holds\n%swant\n%s", got, want)
		}
		return ""
	})
}

// is is becomes without patience.
func (r *rig) is(t testing.TB, lines ...string) {
	t.Helper()
	want := strings.Join(lines, "\n") + "\n"
	if got := r.dump(); got != want {
		t.Fatalf("the kernel holds\n%swant\n%s", got, want)
	}
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// on makes a member with an interface.
func on(prefix, iface string) ipset.Member {
	m := ips(prefix)[0]
	m.Interface = iface
	return m
}

// ips makes members without ports.
func ips(texts ...string) []ipset.Member {
	var out []ipset.Member
	for _, s := range texts {
		if !strings.Contains(s, "/") {
			a := netip.MustParseAddr(s)
			s = fmt.Sprintf("%s/%d", s, a.BitLen())
		}
		out = append(out, ipset.Member{Prefix: netip.MustParsePrefix(s)})
	}
	return out
}
