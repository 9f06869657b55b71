// Package cluster is a real Kubernetes cluster on one computer, for tests and for people:
// four nodes in two racks, each a machine of its own (kubelet, containerd, runc,
// kube-proxy), a control plane (etcd, kube-apiserver, kube-controller-manager,
// kube-scheduler), and a fabric of FRR routers that speak BGP to the nodes.
//
// It owns everything of a cluster from Up to Down: machines, fabric, keys, folders. It
// brings no pod network: nodes stay NotReady until one is installed, see InstallManifest.
//
// A program that uses it calls Reexec first thing in main or TestMain. The programs it
// runs come from `make kubernetes`.
package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/causeway-net/causeway/test/cluster/internal/machine"
	"github.com/causeway-net/causeway/test/lab"
)

// Reexec must be the first call of main or TestMain of every program that uses this
// package: the program starts itself again as the first process of machines.
func Reexec() {
	machine.Reexec()
	lab.Reexec()
}

// Defaults of Config.
const (
	DefaultName = "cluster"
	DefaultDir  = "/var/lib/causeway-cluster"
)

// Config of a cluster. The zero value does.
type Config struct {
	// Name tells clusters of one computer apart; default DefaultName.
	Name string `json:"name"`
	// Dir holds a folder for each cluster that is up; default DefaultDir. It must be on a
	// disk, for images, and its path short, for sockets.
	Dir string `json:"dir"`
	// ProxyMode of kube-proxy: "nftables" (default) or "iptables".
	ProxyMode string `json:"proxyMode"`
	// Log takes progress; default: discarded.
	Log *slog.Logger `json:"-"`
}

var validName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,14}$`)

func (c *Config) fill() error {
	if c.Name == "" {
		c.Name = DefaultName
	}
	if c.Dir == "" {
		c.Dir = DefaultDir
	}
	if c.ProxyMode == "" {
		c.ProxyMode = "nftables"
	}
	if c.Log == nil {
		c.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	switch {
	case !validName.MatchString(c.Name):
		return fmt.Errorf("Name %q: use lower-case letters, digits and '-', 15 at most", c.Name)
	case !filepath.IsAbs(c.Dir):
		return fmt.Errorf("Dir %q: use an absolute path", c.Dir)
	case c.ProxyMode != "nftables" && c.ProxyMode != "iptables":
		return fmt.Errorf("ProxyMode %q: use nftables or iptables", c.ProxyMode)
	}
	return nil
}

// Cluster is a cluster that is up.
type Cluster struct {
	cfg    Config
	dir    string // cfg.Dir/cfg.Name
	fabric *lab.Lab
	cp     *machine.Machine
	nodes  []*Node
}

// state is what Dir/Name/cluster.json says; it is there before anything else is.
type state struct {
	Config
	Created  time.Time `json:"created"`
	Complete bool      `json:"complete"`
}

func statePath(dir string) string { return filepath.Join(dir, "cluster.json") }

// ErrNotUp is returned by Attach when there is no such cluster.
var ErrNotUp = errors.New("the cluster is not up")

// Up brings a cluster up. It returns when all nodes have registered, NotReady, and hold
// the images of `make kubernetes`. When it fails it takes down what it built, but for the
// logs, which the error names.
func Up(ctx context.Context, cfg Config) (*Cluster, error) {
	if err := cfg.fill(); err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	if err := checkPrograms(); err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	if err := checkInotify(); err != nil {
		return nil, fmt.Errorf("cluster %s: %w", cfg.Name, err)
	}
	unlock, err := lock(cfg)
	if err != nil {
		return nil, err
	}
	defer unlock()
	c := newCluster(cfg)
	if st, err := readState(c.dir); err == nil && st.Complete {
		return nil, fmt.Errorf("cluster %s is up already: take it down first, or choose another name", cfg.Name)
	}
	if err := remove(ctx, cfg); err != nil {
		return nil, fmt.Errorf("cluster %s: removing what an interrupted one left: %w", cfg.Name, err)
	}
	if err := c.build(ctx); err != nil {
		err = fmt.Errorf("cluster %s: %w", cfg.Name, err)
		// The context may be what ended the build; taking down must still happen.
		down, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		if kept, kerr := c.keepLogs(); kerr == nil {
			err = fmt.Errorf("%w (logs: %s)", err, kept)
		}
		return nil, errors.Join(err, remove(down, cfg))
	}
	return c, nil
}

func newCluster(cfg Config) *Cluster {
	c := &Cluster{cfg: cfg, dir: filepath.Join(cfg.Dir, cfg.Name)}
	for _, p := range plan {
		c.nodes = append(c.nodes, &Node{place: p, cluster: c})
	}
	return c
}

func (c *Cluster) build(ctx context.Context) error {
	start := time.Now()
	step := func(what string) {
		c.cfg.Log.Info(what, "cluster", c.cfg.Name, "after", time.Since(start).Round(10*time.Millisecond).String())
	}
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return err
	}
	st := state{Config: c.cfg, Created: start.UTC()}
	if err := writeState(c.dir, st); err != nil {
		return err
	}
	if err := c.writeKeys(); err != nil {
		return err
	}
	if err := all(
		func() error { return c.buildFabric(ctx) },
		func() error { return c.bootControlPlane(ctx) },
		func() error { return c.eachNode(func(n *Node) error { return n.boot(ctx) }) },
	); err != nil {
		return err
	}
	if err := c.plug(c.cp, controlPlane); err != nil {
		return err
	}
	if err := c.eachNode(func(n *Node) error { return c.plug(n.machine, n.place) }); err != nil {
		return err
	}
	step("fabric and machines are on")
	if err := all(
		func() error { return c.startControlPlane(ctx) },
		func() error { return c.eachNode(func(n *Node) error { return n.startRuntime(ctx) }) },
	); err != nil {
		return err
	}
	step("API server and container runtimes are ready")
	if err := c.eachNode(func(n *Node) error { return n.startKubelet(ctx) }); err != nil {
		return err
	}
	if err := c.awaitRegistered(ctx); err != nil {
		return err
	}
	step("nodes are registered")
	if err := c.loadImages(ctx); err != nil {
		return err
	}
	st.Complete = true
	if err := writeState(c.dir, st); err != nil {
		return err
	}
	step("cluster is up, without a pod network")
	return nil
}

// Attach returns a cluster that another process brought up; ErrNotUp when there is none.
// Of cfg it uses Name, Dir and Log.
func Attach(cfg Config) (*Cluster, error) {
	if err := cfg.fill(); err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	fail := func(err error) (*Cluster, error) { return nil, fmt.Errorf("cluster %s: %w", cfg.Name, err) }
	st, err := readState(filepath.Join(cfg.Dir, cfg.Name))
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fail(ErrNotUp)
	case err != nil:
		return fail(err)
	case !st.Complete:
		return fail(errors.New("is half built: it is being brought up, or that was interrupted; taking it down removes it"))
	}
	cfg.ProxyMode = st.ProxyMode
	c := newCluster(cfg)
	if c.fabric, err = lab.Open(c.labRoot(), cfg.Name); err != nil {
		return fail(err)
	}
	if c.cp, err = machine.Open(c.machineDir(controlPlane.name)); err != nil {
		return fail(err)
	}
	if !c.cp.On() {
		return fail(fmt.Errorf("%w any more: its control plane is off (was this computer restarted?); taking it down removes the rest", ErrNotUp))
	}
	for _, n := range c.nodes {
		if n.machine, err = machine.Open(n.dir()); err != nil {
			return fail(err)
		}
	}
	return c, nil
}

// Down ends every process of the cluster and removes its namespaces, cgroups and folders.
func (c *Cluster) Down(ctx context.Context) error { return Down(ctx, c.cfg) }

// Down takes a cluster down, whole or half built. One that is not there is no error.
func Down(ctx context.Context, cfg Config) error {
	if err := cfg.fill(); err != nil {
		return fmt.Errorf("cluster: %w", err)
	}
	unlock, err := lock(cfg)
	if err != nil {
		return err
	}
	defer unlock()
	if err := remove(ctx, cfg); err != nil {
		return fmt.Errorf("cluster %s: %w", cfg.Name, err)
	}
	return nil
}

func remove(ctx context.Context, cfg Config) error {
	c := newCluster(cfg)
	if _, err := os.Stat(c.dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	var offs []func() error
	for _, p := range append(slices.Clone(plan), controlPlane) {
		m, err := machine.Open(c.machineDir(p.name))
		if errors.Is(err, os.ErrNotExist) {
			continue
		} else if err != nil {
			return err
		}
		offs = append(offs, func() error { return m.PowerOff(ctx) })
	}
	if err := all(offs...); err != nil {
		return err
	}
	if err := lab.Down(ctx, c.labRoot(), cfg.Name); err != nil {
		return err
	}
	// All mounts were in the machines' namespaces: what is left are files.
	if err := os.RemoveAll(c.dir); err != nil {
		return err
	}
	// The last one turns off the light; others may be up.
	if err := os.Remove(cfg.Dir); err != nil && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// lock keeps two processes from building or removing one cluster at the same time.
func lock(cfg Config) (unlock func(), err error) {
	path := filepath.Join("/run", "causeway-cluster-"+cfg.Name+".lock")
	for {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			f.Close()
			return nil, fmt.Errorf("cluster %s: another process builds or removes it: %w", cfg.Name, err)
		}
		// The file may have been removed by the one who held it before.
		var mine, now unix.Stat_t
		if unix.Fstat(int(f.Fd()), &mine) == nil && unix.Stat(path, &now) == nil && mine.Ino == now.Ino {
			return func() { os.Remove(path); f.Close() }, nil
		}
		f.Close()
	}
}

func readState(dir string) (*state, error) {
	b, err := os.ReadFile(statePath(dir))
	if err != nil {
		return nil, err
	}
	var st state
	if err := json.Unmarshal(b, &st); err != nil {
		return nil, fmt.Errorf("%s: %w", statePath(dir), err)
	}
	return &st, nil
}

func writeState(dir string, st state) error {
	b, err := json.MarshalIndent(st, "", "  ")
	if err != nil {
		return err
	}
	tmp := statePath(dir) + ".new"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, statePath(dir))
}

// Node returns the node of that name ("node1" to "node4"), or nil.
func (c *Cluster) Node(name string) *Node {
	i := slices.IndexFunc(c.nodes, func(n *Node) bool { return n.place.name == name })
	if i < 0 {
		return nil
	}
	return c.nodes[i]
}

// Nodes returns all nodes, rack by rack.
func (c *Cluster) Nodes() []*Node { return slices.Clone(c.nodes) }

// Dir is the cluster's folder: logs, keys, the machines' disks.
func (c *Cluster) Dir() string { return c.dir }

func (c *Cluster) labRoot() string               { return filepath.Join(c.dir, "lab") }
func (c *Cluster) machineDir(name string) string { return filepath.Join(c.dir, name) }

// eachNode runs f for all nodes at once and joins the errors.
func (c *Cluster) eachNode(f func(*Node) error) error {
	var fs []func() error
	for _, n := range c.nodes {
		fs = append(fs, func() error {
			if err := f(n); err != nil {
				return fmt.Errorf("%s: %w", n.place.name, err)
			}
			return nil
		})
	}
	return all(fs...)
}

// all runs functions at once and joins their errors.
func all(fs ...func() error) error {
	errs := make([]error, len(fs))
	var wg sync.WaitGroup
	for i, f := range fs {
		wg.Go(func() { errs[i] = f() })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// poll asks until the answer is nil, or returns the last answer when the context ends.
func poll(ctx context.Context, every time.Duration, ask func() error) error {
	for {
		err := ask()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		case <-time.After(every):
		}
	}
}
