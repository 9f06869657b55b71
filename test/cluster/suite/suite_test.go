package suite

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"

	"github.com/causeway-net/causeway/test/cluster"
	"github.com/causeway-net/causeway/test/cluster/bench/driver"
)

// The cluster of all scenarios, and a client of its API.
var (
	c      *cluster.Cluster
	client kubernetes.Interface
)

func TestMain(m *testing.M) {
	cluster.Reexec()
	driver.Reexec()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, "suite:", err)
		return 1
	}
	cfg := cluster.Config{Name: os.Getenv("CAUSEWAY_CLUSTER"), ProxyMode: os.Getenv("CAUSEWAY_PROXY_MODE"), Log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	var err error
	c, err = cluster.Attach(cfg)
	if errors.Is(err, cluster.ErrNotUp) {
		if c, err = cluster.Up(ctx, cfg); err == nil && os.Getenv("CAUSEWAY_CLUSTER_KEEP") == "" {
			defer func() {
				if err := c.Down(context.Background()); err != nil {
					fmt.Fprintln(os.Stderr, "suite:", err)
				}
			}()
		}
	}
	if err != nil {
		return fail(err)
	}
	if client, err = kubernetes.NewForConfig(c.Config()); err != nil {
		return fail(err)
	}
	if !installed(ctx) {
		err = install(ctx)
	} else {
		err = c.AwaitReady(ctx)
	}
	code := 1
	if err != nil {
		fail(err)
	} else {
		code = m.Run()
	}
	if code != 0 {
		dir := logsDir()
		logs, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		if err := c.CollectLogs(logs, dir); err != nil {
			fail(err)
		}
		fmt.Fprintln(os.Stderr, "suite: logs are in", dir)
	}
	return code
}

// logsDir is the folder for logs of a failure.
func logsDir() string {
	if dir := os.Getenv("CAUSEWAY_CLUSTER_LOGS"); dir != "" {
		return dir
	}
	return filepath.Join(os.TempDir(), "causeway-suite-logs")
}

// viaHelm says how Causeway is installed, and removed: with its chart, not its manifest.
func viaHelm() bool { return os.Getenv("CAUSEWAY_INSTALL") == "helm" }

func install(ctx context.Context) error {
	if viaHelm() {
		return c.InstallHelm(ctx)
	}
	return c.InstallManifest(ctx)
}

func installed(ctx context.Context) bool {
	_, err := c.Kubectl(ctx, "-n", "kube-system", "get", "daemonset", "causeway-agent")
	return err == nil
}
