// Command watchers measures what the agents of a cluster cost its API server: it runs the
// watches of 1,000 agents (internal/watch/kube, each with a connection of its own) against a
// real kube-apiserver, and does what happens in a cluster, one thing at a time.
//
// It needs root, for a network namespace of its own, and the programs of `make kubernetes`.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/client-go/rest"

	"github.com/causeway-net/causeway/internal/kubeapi"
	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/internal/watch/kube"
	"github.com/causeway-net/causeway/test/cluster/apiserver"
)

// inside marks the process that runs in the namespace.
const inside = "CAUSEWAY_BENCH_WATCHERS_NETNS"

func main() {
	var o options
	flag.IntVar(&o.agents, "agents", 1000, "agents that watch")
	flag.IntVar(&o.times, "times", 100, "how often each thing is done")
	flag.StringVar(&o.crds, "crds", "deploy/crds", "folder of the CRDs")
	flag.Parse()
	if o.agents < 2 || o.times < 1 || flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "watchers: --agents must be at least 2 and --times at least 1; there are no arguments")
		os.Exit(2)
	}
	if os.Getenv(inside) == "" {
		os.Exit(enter())
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	err := run(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "watchers:", err)
		os.Exit(1)
	}
}

// enter runs this program again in a network namespace of its own.
func enter() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: unix.SIGTERM}
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return exit.ExitCode()
	case err != nil:
		fmt.Fprintln(os.Stderr, "watchers: a network namespace (needs root):", err)
		return 1
	}
	return 0
}

type options struct {
	agents, times int
	crds          string
}

func nodeName(i int) string { return fmt.Sprintf("node-%04d", i) }

func run(ctx context.Context, o options) error {
	// Each agent has a connection.
	limit := unix.Rlimit{Cur: uint64(o.agents)*2 + 4096, Max: uint64(o.agents)*2 + 4096}
	var now unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &now); err != nil {
		return err
	}
	if limit.Max = max(limit.Max, now.Max); limit.Cur > now.Cur {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			return fmt.Errorf("%d open files: %w", limit.Cur, err)
		}
	}
	dir, err := os.MkdirTemp("", "causeway-watchers-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	server, err := apiserver.Start(dir)
	if err != nil {
		return fmt.Errorf("kube-apiserver: %w", err)
	}
	defer server.Stop()
	if err := apiserver.Apply(ctx, server.Config, o.crds); err != nil {
		return err
	}
	c, err := newCluster(ctx, server.Config, o.agents)
	if err != nil {
		return err
	}

	before, err := c.meter(ctx, nil)
	if err != nil {
		return err
	}
	agents, wait, err := startAgents(ctx, server.Config, o.agents)
	if err != nil {
		return err
	}
	defer wait()
	begin := time.Now()
	if err := agents.synced(ctx); err != nil {
		return err
	}
	took := time.Since(begin)
	if err := agents.quiet(ctx); err != nil {
		return err
	}
	after, err := c.meter(ctx, agents)
	if err != nil {
		return err
	}
	watches := agents.watches()
	fmt.Printf("%d agents with %d watches in %d connections; all were synced after %.1f s, with %.1f s of the API server's CPU and %s to all of them.\n",
		o.agents, watches, agents.connections(), took.Seconds(), after.cpu-before.cpu, size(float64(after.bytes)))
	fmt.Printf("The API server's memory grew by %s, %s for each watch.\n\n", size(after.memory-before.memory), size((after.memory-before.memory)/float64(watches)))

	idle, err := c.idle(ctx, agents)
	if err != nil {
		return err
	}
	fmt.Printf("Idle, all agents together: %s a second, %.1f %% of one CPU.\n\n", size(idle.bytes), idle.cpu*100)
	fmt.Println("| what happens once | API requests | agents that hear of it | to all agents | CPU of the API server |")
	fmt.Println("|---|---|--:|--:|--:|")
	for _, e := range c.events() {
		r, err := c.measure(ctx, agents, idle, o.times, e)
		if err != nil {
			return fmt.Errorf("%s: %w", e.name, err)
		}
		fmt.Printf("| %s | %s | %d | %s | %.1f ms |\n", e.name, r.requests, r.hearers, size(r.bytes), r.cpu*1000)
	}
	return nil
}

func size(bytes float64) string {
	switch {
	case bytes >= 1e9:
		return fmt.Sprintf("%.1f GB", bytes/1e9)
	case bytes >= 1e6:
		return fmt.Sprintf("%.1f MB", bytes/1e6)
	case bytes >= 1e3:
		return fmt.Sprintf("%.1f kB", bytes/1e3)
	}
	return fmt.Sprintf("%.0f bytes", bytes)
}

// agents are the watching parts of as many agents.
type agents struct {
	sources  []*kube.Source
	received []atomic.Int64 // bytes, by agent
	conns    atomic.Int64   // that are open
}

// startAgents starts them; wait ends them and returns when they have ended.
func startAgents(ctx context.Context, cfg *rest.Config, n int) (a *agents, wait func(), err error) {
	a = &agents{received: make([]atomic.Int64, n)}
	for i := range n {
		own := rest.CopyConfig(cfg)
		own.QPS, own.Burst = 100, 200 // as kubeapi.Load has it
		own.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := (&net.Dialer{}).DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			a.conns.Add(1)
			return &countedConn{Conn: c, received: &a.received[i], conns: &a.conns}, nil
		}
		clients, err := kubeapi.New(own)
		if err != nil {
			return nil, nil, err
		}
		s, err := kube.New(kube.Config{Clients: clients, Node: nodeName(i), Log: slog.New(slog.DiscardHandler), Publish: func(*model.Snapshot) {}})
		if err != nil {
			return nil, nil, err
		}
		a.sources = append(a.sources, s)
	}
	ctx, cancel := context.WithCancel(ctx)
	var all sync.WaitGroup
	for _, s := range a.sources {
		all.Go(func() { s.Run(ctx) })
	}
	return a, func() { cancel(); all.Wait() }, nil
}

// countedConn counts what arrives, as it is on the wire: encrypted.
type countedConn struct {
	net.Conn
	received, conns *atomic.Int64
	closed          atomic.Bool
}

func (c *countedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.received.Add(int64(n))
	return n, err
}

func (c *countedConn) Close() error {
	if c.closed.CompareAndSwap(false, true) {
		c.conns.Add(-1)
	}
	return c.Conn.Close()
}

// patience bounds every wait.
const patience = 15 * time.Minute

// poll asks every few milliseconds until ok.
func poll(ctx context.Context, what string, ok func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for !ok() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

func (a *agents) synced(ctx context.Context) error {
	done := 0
	err := poll(ctx, "agents synced", func() bool {
		for done < len(a.sources) && whole(a.sources[done].Status()) {
			done++
		}
		return done == len(a.sources)
	})
	if err == nil {
		return nil
	}
	missing := map[string]int{}
	for _, s := range a.sources {
		for _, w := range s.Status().Watches {
			if w.Synced.IsZero() {
				missing[w.Name+" "+w.Failing]++
			}
		}
	}
	return fmt.Errorf("%w; not synced are %v", err, missing)
}

// whole reports whether all watches of kinds that are installed stand.
func whole(s kube.Status) bool {
	for _, w := range s.Watches {
		if w.Synced.IsZero() && w.Failing == "" {
			return false
		}
	}
	return s.Synced
}

func (a *agents) watches() int {
	n := 0
	for _, s := range a.sources {
		for _, w := range s.Status().Watches {
			if !w.Synced.IsZero() && w.Failing == "" {
				n++
			}
		}
	}
	return n
}

func (a *agents) connections() int64 { return a.conns.Load() }

func (a *agents) bytes() []int64 {
	out := make([]int64, len(a.received))
	for i := range out {
		out[i] = a.received[i].Load()
	}
	return out
}

// quiet waits until what was sent has arrived: 300 ms in which next to nothing comes.
func (a *agents) quiet(ctx context.Context) error {
	total := func() (n int64) {
		for _, b := range a.bytes() {
			n += b
		}
		return n
	}
	last, since := total(), time.Now()
	return poll(ctx, "silence", func() bool {
		// Bookmarks and the connections' own frames never end.
		if n := total(); n-last > int64(len(a.received))*20 {
			last, since = n, time.Now()
		}
		return time.Since(since) > 300*time.Millisecond
	})
}
