// Command bench measures on the test cluster what a pod's network costs when the
// Kubernetes API is the datastore: the latency of CNI ADD against ptp with host-local, on
// one node, and the requests that agents send to the API server for an address, on all
// nodes. It uses the cluster that is up and has Causeway, or brings one up for itself.
//
// deploy/scripts/bench does the same for a folder of manifests. It needs root, and the
// results of `make kubernetes image plugins`.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/causeway-net/causeway/test/cluster"
	"github.com/causeway-net/causeway/test/cluster/bench/driver"
)

// size is how much is measured.
type size struct {
	pairs  int // of each comparison
	sparse int // ADDs of each side in a pair, one every 300 ms
	bursts int // of 8 ADDs at once, of each side in a pair
	cost   int // ADDs on each node whose requests are counted, in bursts
}

var sizes = map[string]size{
	"full":  {pairs: 10, sparse: 15, bursts: 6, cost: 100},
	"short": {pairs: 3, sparse: 8, bursts: 3, cost: 25},
}

type options struct {
	size, docs, command, bin, node string
}

func main() {
	cluster.Reexec()
	driver.Reexec()
	var o options
	flag.StringVar(&o.size, "size", "full", "full: docs/benchmarks.md is written; short: a look")
	flag.StringVar(&o.docs, "docs", "docs/benchmarks.md", "`file` whose section a full run replaces")
	flag.StringVar(&o.command, "command", "", "command line to show in the results; default: this one")
	flag.StringVar(&o.bin, "bin", "bin", "`folder` with ptp and host-local")
	flag.StringVar(&o.node, "node", "node1", "where latencies are measured")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	err := run(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (err error) {
	z, ok := sizes[o.size]
	if !ok || flag.NArg() > 0 {
		return fmt.Errorf("--size %q %v: want full or short, and nothing more", o.size, flag.Args())
	}
	if o.command == "" {
		o.command = strings.Join(os.Args, " ")
	}
	if o.bin, err = filepath.Abs(o.bin); err != nil {
		return err
	}
	began := time.Now()
	c, down, err := ready(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, down()) }()
	if c.Node(o.node) == nil {
		return fmt.Errorf("--node %q: want node1, node2, node3 or node4", o.node)
	}
	dir, err := os.MkdirTemp("", "causeway-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	build := exec.CommandContext(ctx, "go", "build", "-o", dir+"/", "./test/bench/hello")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("go build ./test/bench/hello: %w: %s", err, out)
	}
	r := Report{Date: began.UTC().Format("2006-01-02"), Command: o.command, Pairs: z.pairs, Machine: machine(c.Dir())}
	m := &measurement{cluster: c, size: z, began: began, plugins: []string{"/opt/cni/bin", o.bin, dir}}
	if err := m.prepare(ctx); err != nil {
		return errors.Join(err, m.end())
	}
	if r.Latencies, err = m.latencies(ctx, c.Node(o.node)); err == nil {
		r.Costs, err = m.costs(ctx)
	}
	if err := errors.Join(err, m.end()); err != nil {
		return err
	}
	r.Took, r.LoadAfter = time.Since(began).Round(time.Second).String(), load()
	fmt.Print(r.Markdown())
	if o.size == "full" {
		return r.writeDocs(o.docs)
	}
	return nil
}

// ready returns the cluster with Causeway, and what is to be called at the end.
func ready(ctx context.Context) (*cluster.Cluster, func() error, error) {
	cfg := cluster.Config{Name: os.Getenv("CAUSEWAY_CLUSTER"), Log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	down := func() error { return nil }
	c, err := cluster.Attach(cfg)
	if errors.Is(err, cluster.ErrNotUp) {
		if c, err = cluster.Up(ctx, cfg); err == nil {
			down = func() error { return c.Down(context.WithoutCancel(ctx)) }
		}
	}
	if err != nil {
		return nil, nil, err
	}
	if _, err := c.Kubectl(ctx, "-n", "kube-system", "get", "daemonset", "causeway-agent"); err != nil {
		err = c.InstallManifest(ctx)
		if err != nil {
			return nil, nil, errors.Join(err, down())
		}
	}
	if err := c.AwaitReady(ctx); err != nil {
		return nil, nil, errors.Join(err, down())
	}
	return c, down, nil
}
