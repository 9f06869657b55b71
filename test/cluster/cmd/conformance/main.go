// Command conformance runs upstream's network specs against Causeway on a test cluster of
// its own, with CoreDNS, and records the outcome in docs/conformance.md. It fails when a
// spec fails.
package main

import (
	"context"
	_ "embed"
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

	cluster "github.com/causeway-net/causeway/test/cluster"
	"github.com/causeway-net/causeway/test/cluster/apiserver"
)

//go:embed coredns.yaml
var coreDNS string

// focus picks the specs. All of upstream's conformance specs of sig-network run: those of
// its API alone are quick, and none needs what this cluster lacks.
const focus = `\[sig-network\].*\[Conformance\]`

func main() {
	cluster.Reexec()
	o := options{}
	flag.StringVar(&o.focus, "focus", focus, "`regexp` of the specs to run; the result is recorded only for the default")
	flag.StringVar(&o.record, "record", "docs/conformance.md", "`file` for the result")
	flag.StringVar(&o.proxyMode, "proxy-mode", "nftables", "of kube-proxy: nftables or iptables")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		os.Exit(1)
	}
}

type options struct {
	focus     string
	record    string
	proxyMode string
}

func run(ctx context.Context, o options) (err error) {
	cfg := cluster.Config{Name: "conformance", ProxyMode: o.proxyMode, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	// It refuses when one of that name is up: that is another run's.
	c, err := cluster.Up(ctx, cfg)
	if err != nil {
		return err
	}
	logs := filepath.Join(os.TempDir(), "causeway-conformance-logs")
	defer func() {
		over, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Minute)
		defer cancel()
		if err != nil {
			err = errors.Join(fmt.Errorf("%w (logs: %s)", err, logs), c.CollectLogs(over, logs))
		}
		err = errors.Join(err, c.Down(over))
	}()
	if err := c.InstallManifest(ctx); err != nil {
		return err
	}
	causeway, err := c.CausewayVersion(ctx)
	if err != nil {
		return err
	}
	if err := c.LoadImage(ctx, filepath.Join(cluster.Images(), "coredns.tar"), filepath.Join(cluster.Images(), "glibc-dns-testing.tar")); err != nil {
		return err
	}
	if err := c.Apply(ctx, coreDNS); err != nil {
		return err
	}
	if _, err := c.Kubectl(ctx, "-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout=120s"); err != nil {
		return err
	}
	reports, err := os.MkdirTemp("", "causeway-conformance-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(reports)
	start := time.Now()
	specs := runSpecs(ctx, c, o.focus, reports)
	r, err := read(filepath.Join(reports, "junit_01.xml"))
	if err != nil {
		return errors.Join(specs, err)
	}
	fmt.Print(r.summary(), "\n")
	switch {
	case o.focus != focus:
	case strings.HasSuffix(causeway, "-dirty"):
		fmt.Printf("not recorded in %s: the agents run %s, which is no commit\n", o.record, causeway)
	default:
		version, err := c.Kubectl(ctx, "version", "-o", "json")
		if err != nil {
			return errors.Join(specs, err)
		}
		if err := r.record(o, causeway, version, start); err != nil {
			return errors.Join(specs, err)
		}
	}
	return specs
}

// runSpecs runs upstream's suite in the control plane's network namespace.
func runSpecs(ctx context.Context, c *cluster.Cluster, focus, reports string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(apiserver.Bin(), "e2e.test"), "-kubeconfig", c.Kubeconfig(), "-provider", "skeleton",
		"-node-os-distro", "debian", "-num-nodes", "4", "-ginkgo.focus", focus, "-ginkgo.no-color", "-ginkgo.timeout", "1h", "-report-dir", reports)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.Kubeconfig(), "PATH="+apiserver.Bin()+":"+os.Getenv("PATH"))
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	// kubectl is looked for in PATH, and specs make their files where they run.
	cmd.Dir = reports
	if err := c.StartKubectl(cmd); err != nil {
		return err
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("specs: %w", err)
	}
	return nil
}
