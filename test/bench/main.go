// Command bench measures Causeway against what does the same work: CNI ADD against ptp
// with host-local, route intake against BIRD 2, throughput between pods against what ip(8)
// alone makes, policy with 1,000 policies and 10,000 pods against none, and memory against the goals of the project. Both sides of a comparison run in turn in network namespaces of labs that it
// builds and takes down, so that what else the machine does meets both alike; a ratio is
// the median over such pairs.
//
// deploy/scripts/bench builds and runs it, as root, from the top of the source tree.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/causeway-net/causeway/test/lab"
)

// size is how much is measured.
type size struct {
	pairs   int           // of each comparison
	pods    int           // attached one after the other, per side and pair
	burst   int           // attached at once, per side and pair
	starts  int           // of each program, over all pairs
	rest    time.Duration // before memory is read
	changes int           // of each kind and size of cluster, forth and back
}

var sizes = map[string]size{
	"full":  {pairs: 10, pods: 50, burst: 50, starts: 200, rest: time.Minute, changes: 100},
	"short": {pairs: 5, pods: 20, burst: 50, starts: 50, rest: 10 * time.Second, changes: 30},
}

// part is what can be measured by itself.
type part struct {
	name string
	run  func(context.Context) error
}

// bench is one run.
type bench struct {
	size      size
	stateRoot string
	binDir    string
	backends  []string // of policy
	began     time.Time
	report    Report
}

func main() {
	lab.Reexec()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	var err error
	switch {
	case len(os.Args) == 2 && os.Args[1] == workerCommand:
		err = runWorker(ctx, os.Stdin, os.Stdout)
	case len(os.Args) == 3 && os.Args[1] == apiCommand:
		err = runAPI(os.Args[2], os.Stdin, os.Stdout)
	default:
		err = run(ctx, os.Args[1:])
	}
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	mode := fs.String("size", "full", "full: all pairs, and docs/benchmarks.md is written; short: a look, in a few minutes")
	jsonPath := fs.String("json", "", "file for the results as JSON; default: standard output")
	docs := fs.String("docs", "docs/benchmarks.md", "file whose results a full run replaces")
	command := fs.String("command", "", "the command line to show in the results; default: this one")
	state := fs.String("state", "/var/tmp/cwb", "folder for the labs' state; must be on a disk, and short")
	bin := fs.String("bin", "bin", "folder with causeway and the CNI plugins")
	only := fs.String("only", "", "parts to measure: attach, intake, memory, encap, policy; default: all, and only then are documents written")
	backendNames := make([]string, len(backends))
	for i, k := range backends {
		backendNames[i] = k.name
	}
	chosenBackends := fs.String("backends", strings.Join(backendNames, ","), "backends of policy to measure")
	if err := fs.Parse(args); err != nil {
		return err
	}
	b := &bench{stateRoot: *state, backends: strings.Split(*chosenBackends, ","), began: time.Now()}
	for _, name := range b.backends {
		if !slices.Contains(backendNames, name) {
			return fmt.Errorf("--backends %q: want some of %s", *chosenBackends, strings.Join(backendNames, ", "))
		}
	}
	var ok bool
	if b.size, ok = sizes[*mode]; !ok || fs.NArg() > 0 {
		return fmt.Errorf("--size %q %v: want full or short, and nothing more", *mode, fs.Args())
	}
	parts := []part{{"attach", b.attachBench}, {"intake", b.intakeBench}, {"memory", b.memoryBench}, {"encap", b.encapBench}, {"policy", b.policyBench}}
	chosen := strings.Split(*only, ",")
	for _, name := range chosen {
		if name != "" && name != "attach" && name != "intake" && name != "memory" && name != "encap" && name != "policy" {
			return fmt.Errorf("--only %q: want some of attach, intake, memory, encap, policy", *only)
		}
	}
	if err := kubernetesThere(); err != nil && *only == "" {
		if *mode == "full" {
			return fmt.Errorf("policy: %w; or measure a part with --only", err)
		}
		b.say("policy is left out: %v", err)
		parts = slices.DeleteFunc(parts, func(p part) bool { return p.name == "policy" })
	}
	if os.Getuid() != 0 {
		return errors.New("needs root, for network namespaces")
	}
	var err error
	if b.binDir, err = filepath.Abs(*bin); err != nil {
		return err
	}
	if err := os.MkdirAll(b.stateRoot, 0o755); err != nil {
		return err
	}
	defer os.Remove(b.stateRoot) // fails while another run's labs are there, and should
	b.report = Report{Date: b.began.UTC().Format("2006-01-02"), Command: *command, Size: *mode, Pairs: b.size.pairs}
	if b.report.Command == "" {
		b.report.Command = strings.Join(os.Args, " ")
	}
	if b.report.Machine, err = machine(b.stateRoot); err != nil {
		return err
	}
	// Labs of a run that was killed.
	if err := lab.Reap(ctx, b.stateRoot); err != nil {
		return err
	}
	for _, p := range parts {
		if *only != "" && !slices.Contains(chosen, p.name) {
			continue
		}
		if err := p.run(ctx); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	b.report.Machine.LoadAfter = load()
	b.report.Took = time.Since(b.began).Round(time.Second).String()
	fmt.Fprint(os.Stderr, "\n"+b.report.Markdown())
	if err := b.report.writeJSON(*jsonPath); err != nil {
		return err
	}
	if *mode == "full" && *only == "" {
		return b.report.writeDocs(*docs)
	}
	return nil
}

// say shows progress.
func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%4.0f s  %s\n", time.Since(b.began).Seconds(), fmt.Sprintf(format, args...))
}

func (b *bench) compare(cs ...*Comparison) {
	for _, c := range cs {
		c.finish()
		b.report.Comparisons = append(b.report.Comparisons, *c)
	}
}

func (b *bench) figure(fs ...*Figure) {
	for _, f := range fs {
		b.report.Figures = append(b.report.Figures, *f)
	}
}

// up builds a topology that ends with this process, however that ends.
func (b *bench) up(ctx context.Context, topology, name string, change ...func(*lab.Options)) (*lab.Lab, error) {
	t, err := lab.Load(topology)
	if err != nil {
		return nil, err
	}
	o := lab.Options{
		Name: name, StateRoot: b.stateRoot, BinDir: b.binDir, Ephemeral: true,
		Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
	for _, f := range change {
		f(&o)
	}
	return lab.Up(ctx, t, o)
}

// down takes a lab down; ctx may have ended.
func (b *bench) down(ctx context.Context, l *lab.Lab) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	if err := l.Down(ctx); err != nil {
		b.say("taking lab %s down: %v", l.Name, err)
	}
}
