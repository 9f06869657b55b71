package iptables_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/causeway-net/causeway/felix/iptables"
	"github.com/causeway-net/causeway/felix/iptables/iptablestest"
)

// rig is one iptables that a scenario runs on.
type rig struct {
	family  iptables.Family
	backend iptables.Backend
	kernel  *spy
	// foreign runs a transaction as somebody else does.
	foreign func(script string) error
	// dump is iptables-save with counters, of one table.
	dump func(table iptables.Table) string
	// traffic lets rules of table filter, chain OUTPUT count.
	traffic func()
	// generation changes whenever rules are rewritten; empty where nothing tells.
	generation func() string
	netns      string // name, or empty for the fake
}

// rigs runs a scenario on the fake and on real namespaces, both backends each.
func rigs(t *testing.T, family iptables.Family, f func(*testing.T, *rig)) {
	for _, b := range []iptables.Backend{iptables.NFT, iptables.Legacy} {
		t.Run("fake-"+string(b), func(t *testing.T) { t.Parallel(); f(t, fakeRig(family, b)) })
		t.Run(string(b), func(t *testing.T) { t.Parallel(); f(t, realRig(t, family, b)) })
	}
}

func fakeRig(family iptables.Family, b iptables.Backend) *rig {
	k := iptablestest.New(family, b)
	return &rig{family: family, backend: b, kernel: &spy{Kernel: k}, foreign: k.Foreign,
		dump: func(table iptables.Table) string {
			_, rest, _ := strings.Cut(k.Dump(), "*"+string(table)+"\n")
			text, _, _ := strings.Cut(rest, "COMMIT")
			return text
		},
		traffic: k.Count, generation: func() string { return fmt.Sprint(k.Changes()) }}
}

var serial atomic.Int64

// namespace makes a network namespace that lives as long as the test.
func namespace(t testing.TB) string {
	t.Helper()
	name := fmt.Sprintf("ipt-%d-%d", os.Getpid(), serial.Add(1))
	shell(t, "ip", "netns", "add", name)
	t.Cleanup(func() { shell(t, "ip", "netns", "del", name) })
	shell(t, "ip", "-n", name, "link", "set", "lo", "up")
	return name
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
		if err := setns(there); err != nil {
			return err
		}
		err = f()
		if back := setns(home); back != nil {
			panic(back)
		}
		return err
	}
}

func setns(f *os.File) error {
	if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("setns: %w", err)
	}
	return nil
}

func program(family iptables.Family, b iptables.Backend, suffix string) string {
	base := "iptables"
	if family == iptables.IPv6 {
		base = "ip6tables"
	}
	return base + "-" + string(b) + suffix
}

func realRig(t testing.TB, family iptables.Family, b iptables.Backend) *rig {
	ns := namespace(t)
	r := &rig{family: family, backend: b, netns: ns}
	r.kernel = &spy{Kernel: iptables.NewHost(family, b, 0).Within(entering(ns))}
	r.foreign = func(script string) error {
		cmd := exec.Command("ip", "netns", "exec", ns, program(family, b, "-restore"), "--noflush", "-w", "10")
		cmd.Stdin = strings.NewReader(script)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
	r.dump = func(table iptables.Table) string {
		var out bytes.Buffer
		cmd := exec.Command("ip", "netns", "exec", ns, program(family, b, "-save"), "-c", "-t", string(table))
		cmd.Stdout = &out
		if err := cmd.Run(); err != nil {
			t.Fatalf("%s: %v", cmd, err)
		}
		_, rest, _ := strings.Cut(out.String(), "*"+string(table)+"\n")
		text, _, _ := strings.Cut(rest, "COMMIT")
		return text
	}
	r.traffic = func() {
		to := "127.0.0.1"
		if family == iptables.IPv6 {
			to = "::1"
		}
		shell(t, "ip", "netns", "exec", ns, "ping", "-q", "-c", "1", "-W", "1", to)
	}
	r.generation = func() string { return "" }
	if b == iptables.NFT {
		r.generation = func() string { return shell(t, "ip", "netns", "exec", ns, "nft", "-a", "-s", "list", "ruleset") }
	}
	return r
}

// spy counts the transactions of a Kernel and can break them.
type spy struct {
	iptables.Kernel
	mu      sync.Mutex
	scripts []string // that passed and were no comparisons
	breakIt func(script []byte, run func() error) error
}

func (s *spy) Restore(ctx context.Context, script []byte) error {
	s.mu.Lock()
	f := s.breakIt
	s.mu.Unlock()
	run := func() error { return s.Kernel.Restore(ctx, script) }
	var err error
	if f != nil {
		err = f(script, run)
	} else {
		err = run()
	}
	if err == nil && !strings.Contains(string(script), "\n-C ") {
		s.mu.Lock()
		s.scripts = append(s.scripts, string(script))
		s.mu.Unlock()
	}
	return err
}

// took returns the transactions since the last call.
func (s *spy) took() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.scripts
	s.scripts = nil
	return out
}

// start runs a Reconciler until stop or the test's end. Where the kernel tells of changes,
// only that heals; else a short resync does.
func (r *rig) start(t testing.TB) (rec *iptables.Reconciler, stop func()) {
	t.Helper()
	cfg := iptables.Config{Family: r.family, Kernel: r.kernel, Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Resync: time.Hour}
	if r.backend == iptables.Legacy {
		cfg.Resync = 80 * time.Millisecond
	}
	rec, err := iptables.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	rec.HealEvery(10 * time.Millisecond)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- rec.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	return rec, stop
}

func wait(t testing.TB, rec *iptables.Reconciler) {
	t.Helper()
	if err := waitErr(t, rec); err != nil {
		t.Fatal(err)
	}
}

func waitErr(t testing.TB, rec *iptables.Reconciler) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	err := rec.Wait(ctx)
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
		time.Sleep(10 * time.Millisecond)
	}
}

var (
	counters = regexp.MustCompile(`(?m)^\[\d+:\d+\] | \[\d+:\d+\]$`)
	marks    = regexp.MustCompile(`-m comment --comment "?cali:[A-Za-z0-9_-]{16}"? ?`)
	anyMark  = regexp.MustCompile(`cali:[A-Za-z0-9_-]{16}`)
)

// rules is a table's content without counters and marks.
func (r *rig) rules(table iptables.Table) string {
	s := marks.ReplaceAllString(counters.ReplaceAllString(r.dump(table), ""), "")
	return strings.ReplaceAll(s, " \n", "\n")
}

// others is a table's content without everything of ours, and without counters.
func (r *rig) others(table iptables.Table) string {
	var b strings.Builder
	for l := range strings.Lines(counters.ReplaceAllString(r.dump(table), "")) {
		if !strings.HasPrefix(l, ":cali") && !strings.HasPrefix(l, "-A cali") && !anyMark.MatchString(l) {
			b.WriteString(l)
		}
	}
	return b.String()
}

// chain lists a chain's rules without counters and marks.
func (r *rig) chain(table iptables.Table, name string) []string {
	var out []string
	for l := range strings.Lines(r.rules(table)) {
		l = strings.TrimSuffix(l, "\n")
		if rest, ok := strings.CutPrefix(l, "-A "+name+" "); ok {
			out = append(out, rest)
		} else if l == "-A "+name {
			out = append(out, "")
		}
	}
	return out
}

func (r *rig) must(t testing.TB, script string) {
	t.Helper()
	if err := r.foreign(script); err != nil {
		t.Fatalf("%v\n%s", err, script)
	}
}

func discard() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

type saveCounter struct {
	iptables.Kernel
	n atomic.Int64
}

func (s *saveCounter) Save(ctx context.Context, table iptables.Table) ([]byte, error) {
	if table != "" {
		s.n.Add(1)
	}
	return s.Kernel.Save(ctx, table)
}
