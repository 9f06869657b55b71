// Command conformance runs upstream's specs against Causeway on a test cluster of its own
// and records the outcome in docs/conformance.md. It owns the choice of the specs, the
// combinations of packet filters that they run against, and the form of the record. It
// fails when a spec fails.
package main

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	cluster "github.com/causeway-net/causeway/test/cluster"
)

//go:embed coredns.yaml
var coreDNS string

type options struct {
	suites       []suite
	combinations []combination
	focus        string
	short        bool
	atOnce       int
	record       string
	name         string
	logs         string
}

func main() {
	cluster.Reexec()
	o, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err == nil {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
		defer stop()
		err = run(ctx, o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		os.Exit(1)
	}
}

func parse(args []string) (options, error) {
	o := options{}
	f := flag.NewFlagSet("conformance", flag.ContinueOnError)
	names := f.String("suites", "network,netpol,clusternetpol", "`names` of the suites to run")
	policies := f.String("policy", "iptables,nftables", "packet `filters` that policy is written to")
	proxies := f.String("proxy-mode", "nftables,iptables", "`modes` of kube-proxy")
	f.StringVar(&o.focus, "focus", "", "`regexp` of the specs to run instead of all of one suite's; nothing is recorded")
	f.BoolVar(&o.short, "short", false, "only the few specs of each suite that stand for all; nothing is recorded")
	f.IntVar(&o.atOnce, "at-once", 0, "`number` of specs that run at a time; default what suits the suite")
	f.StringVar(&o.record, "record", "docs/conformance.md", "`file` for the results; what it says of other suites and combinations stays")
	f.StringVar(&o.name, "cluster", "conformance", "`name` of the cluster to bring up")
	f.StringVar(&o.logs, "logs", filepath.Join(os.TempDir(), "causeway-conformance-logs"), "`folder` for the specs' output, and for the cluster's logs when they fail")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	var err error
	switch {
	case f.NArg() > 0:
		return o, fmt.Errorf("%q: give options only", f.Args())
	case o.atOnce < 0:
		return o, fmt.Errorf("-at-once %d: use a number of at least 1", o.atOnce)
	}
	if o.suites, err = chosen(*names); err != nil {
		return o, err
	}
	if o.combinations, err = combinations(*policies, *proxies); err != nil {
		return o, err
	}
	if o.focus != "" && len(o.suites) > 1 {
		return o, errors.New("-focus: name one suite with -suites")
	}
	if o.record, err = filepath.Abs(o.record); err != nil {
		return o, err
	}
	o.logs, err = filepath.Abs(o.logs)
	return o, err
}

// run goes on after a combination that failed: one that cannot be brought up, or specs
// that do not pass, say nothing about the others.
func run(ctx context.Context, o options) error {
	if err := os.RemoveAll(o.logs); err != nil {
		return err
	}
	var errs []error
	for _, on := range o.combinations {
		if err := runCombination(ctx, o, on); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", on, err))
		}
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(errs...)
}

func runCombination(ctx context.Context, o options, on combination) (err error) {
	logs := filepath.Join(o.logs, on.policy+"-"+on.proxy)
	cfg := cluster.Config{Name: o.name, ProxyMode: on.proxy, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	// It refuses when one of that name is up: that is another run's.
	c, err := cluster.Up(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() {
		over, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Minute)
		defer cancel()
		if err != nil {
			err = errors.Join(fmt.Errorf("%w (logs: %s)", err, logs), c.CollectLogs(over, filepath.Join(logs, "cluster")))
		}
		err = errors.Join(err, c.Down(over))
	}()
	for _, s := range o.suites {
		if err := applyCRDs(ctx, c, &s); err != nil {
			return err
		}
	}
	if err := c.InstallManifest(ctx); err != nil {
		return err
	}
	if err := setPolicyBackend(ctx, c, on.policy); err != nil {
		return err
	}
	run, err := c.CausewayVersion(ctx)
	if err != nil {
		return err
	}
	k8s, err := kubernetesVersion(ctx, c)
	if err != nil {
		return err
	}
	facts := map[string]string{factCommit: run, factKubernetes: k8s}
	for _, s := range o.suites {
		if s.dns {
			if err := startDNS(ctx, c); err != nil {
				return err
			}
		}
	}
	// Side by side: the suites share nothing but the cluster, and those of policy mostly wait.
	var recording sync.Mutex
	var wg sync.WaitGroup
	errs := make([]error, len(o.suites))
	for i, s := range o.suites {
		wg.Go(func() {
			start := time.Now()
			r, err := runSuite(ctx, c, &s, o, filepath.Join(logs, s.name))
			if r != nil {
				fmt.Printf("%s: %s: %s, %s\n", s.name, on, r.summary(), r.took.Round(time.Second))
				err = errors.Join(err, r.failed())
			}
			if err != nil {
				err = fmt.Errorf("%s: %w", s.name, err)
			}
			// What is recorded is all of a suite, run to its end.
			if r != nil && ctx.Err() == nil && o.focus == "" && !o.short {
				recording.Lock()
				defer recording.Unlock()
				err = errors.Join(err, o.keep(&s, on, r, facts, start))
			}
			errs[i] = err
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// keep records the outcome of a suite, unless the agents are of no commit.
func (o options) keep(s *suite, on combination, r *outcome, facts map[string]string, start time.Time) error {
	if strings.HasSuffix(facts[factCommit], "-dirty") {
		fmt.Printf("not recorded in %s: the agents run %s, which is no commit\n", o.record, facts[factCommit])
		return nil
	}
	own := maps.Clone(facts)
	own[factDate] = start.UTC().Format("2006-01-02")
	own[factSpecs] = r.summary()
	own[factTook] = fmt.Sprintf("%s, %d at once", r.took.Round(time.Second), r.atOnce)
	return record(o.record, s, column{name: on.String(), facts: own, outcome: r})
}

// setPolicyBackend tells the agents which packet filter policy is written to, and waits
// until every node has one of ours.
func setPolicyBackend(ctx context.Context, c *cluster.Cluster, policy string) error {
	mode := map[string]string{"iptables": "Disabled", "nftables": "Enabled"}[policy]
	if err := c.Apply(ctx, "apiVersion: projectcalico.org/v3\nkind: FelixConfiguration\nmetadata: {name: default}\nspec: {nftablesMode: "+mode+"}\n"); err != nil {
		return err
	}
	// Agents act on the change at once; started anew they have nothing of before it.
	if _, err := c.Kubectl(ctx, "-n", "kube-system", "rollout", "restart", "daemonset/causeway-agent"); err != nil {
		return err
	}
	if err := c.AwaitReady(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for _, n := range c.Nodes() {
		for {
			err := hasBackend(ctx, n, policy)
			if err == nil {
				break
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("%s: policy %s asked for: %w", n.Name(), policy, err)
			case <-time.After(200 * time.Millisecond):
			}
		}
	}
	return nil
}

// hasBackend is nil when a node's policy is in that packet filter and not in the other.
func hasBackend(ctx context.Context, n *cluster.Node, policy string) error {
	tables, err := n.Exec(ctx, "nft", "list", "tables")
	if err != nil {
		return err
	}
	native := false
	for line := range strings.Lines(tables) {
		fields := strings.Fields(line)
		native = native || len(fields) == 3 && strings.HasPrefix(fields[2], "causeway")
	}
	chains, err := n.Exec(ctx, "iptables-save", "-t", "filter")
	if err != nil {
		return err
	}
	switch compatible := strings.Contains(chains, ":cali-"); {
	case policy == "nftables" && !native:
		return errors.New("no nftables table named causeway")
	case policy == "iptables" && native:
		return errors.New("an nftables table named causeway is there")
	case policy == "iptables" && !compatible:
		return errors.New("no chain named cali- in iptables' table filter")
	}
	return nil
}

// applyCRDs installs the CRDs that a suite needs, from the module that Causeway is built with.
func applyCRDs(ctx context.Context, c *cluster.Cluster, s *suite) error {
	if s.crds[0] == "" {
		return nil
	}
	root, err := cluster.Repository()
	if err != nil {
		return err
	}
	list := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", s.crds[0])
	list.Dir = root
	dir, err := list.Output()
	if err != nil {
		return fmt.Errorf("CRDs of %s: go list: %w", s.crds[0], err)
	}
	_, err = c.Kubectl(ctx, "apply", "--server-side", "-f", filepath.Join(strings.TrimSpace(string(dir)), s.crds[1]))
	return err
}

func startDNS(ctx context.Context, c *cluster.Cluster) error {
	if err := c.LoadImage(ctx, filepath.Join(cluster.Images(), "coredns.tar"), filepath.Join(cluster.Images(), "glibc-dns-testing.tar")); err != nil {
		return err
	}
	if err := c.Apply(ctx, coreDNS); err != nil {
		return err
	}
	_, err := c.Kubectl(ctx, "-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout=120s")
	return err
}

func kubernetesVersion(ctx context.Context, c *cluster.Cluster) (string, error) {
	out, err := c.Kubectl(ctx, "version", "-o", "json")
	if err != nil {
		return "", err
	}
	var v struct {
		ServerVersion struct {
			GitVersion string `json:"gitVersion"`
		} `json:"serverVersion"`
	}
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		return "", fmt.Errorf("kubectl version: %w", err)
	}
	return v.ServerVersion.GitVersion, nil
}
