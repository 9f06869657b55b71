// Package lab builds networks out of Linux namespaces: it reads containerlab topology
// files and gives every node a network, mount, PID, UTS and IPC namespace of its own,
// wires nodes with veth pairs, runs real routing daemons and Causeway agents in them, and
// attaches pods through the real CNI plugin.
//
// It owns the namespaces, links, processes and folders of its labs, from Up to Down, and
// leaves nothing behind even when the process that called Up is killed. It never touches
// links, routes or sysctls of the root namespace.
//
// A program that uses it calls Reexec first thing in main (or TestMain).
package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// DefaultStateRoot is the folder that holds one folder for each lab that is up.
const DefaultStateRoot = "/run/causeway-lab"

// Options of Up. The zero value is a persistent lab with binaries from ./bin.
type Options struct {
	// Name replaces the topology's name, so that one file can be up several times.
	Name string
	// StateRoot is the folder for the state of labs; default DefaultStateRoot. Its
	// path must be short (a unix socket's path has 107 bytes at most).
	StateRoot string
	// BinDir holds causeway, causeway-cni and causewayctl; default ./bin. It is also
	// where CNI plugins are found.
	BinDir string
	// CNIPath are further folders with CNI plugins.
	CNIPath []string
	// Ephemeral makes the lab die with this process, however it ends.
	Ephemeral bool
	// NoAgents leaves nodes that run causeway without their agent.
	NoAgents bool
	// Log takes progress (Info) and warnings about the topology; default: discarded.
	Log *slog.Logger

	onStep func(step string) // tests end the process here
}

func (o *Options) fill() error {
	if o.StateRoot == "" {
		o.StateRoot = DefaultStateRoot
	}
	if o.BinDir == "" {
		o.BinDir = "bin"
	}
	if o.Log == nil {
		o.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	if o.onStep == nil {
		o.onStep = func(string) {}
	}
	var err error
	if o.BinDir, err = filepath.Abs(o.BinDir); err != nil {
		return fmt.Errorf("BinDir: %w", err)
	}
	if o.StateRoot, err = filepath.Abs(o.StateRoot); err != nil {
		return fmt.Errorf("StateRoot: %w", err)
	}
	return nil
}

// Lab is a topology that is up.
type Lab struct {
	Name     string
	Topology *Topology

	opts  Options
	dir   string // <StateRoot>/<Name>
	nodes []*Node
	// alive is the end of the warden's pipe that must stay open while an ephemeral
	// lab's owner lives; nil for persistent labs.
	alive *os.File
}

// Up builds the topology: namespaces, links, daemons, exec lines, agents. It returns when
// every daemon runs and has its configuration; sessions come up afterwards. When it
// fails it takes down what it built.
func Up(ctx context.Context, t *Topology, o Options) (*Lab, error) {
	if !reexecReady {
		return nil, errors.New("lab: the program must call lab.Reexec first thing in main or TestMain")
	}
	if _, err := slowness(); err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	if err := o.fill(); err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	l := &Lab{Name: t.Name, Topology: t, opts: o}
	if o.Name != "" {
		l.Name = o.Name
	}
	if !validLabName(l.Name) {
		return nil, fmt.Errorf("lab name %q: use lower-case letters, digits and '-', 30 at most", l.Name)
	}
	l.dir = filepath.Join(o.StateRoot, l.Name)
	for _, w := range t.Warnings {
		o.Log.Warn("topology", "lab", l.Name, "warning", w)
	}
	if o.Ephemeral {
		if err := Reap(ctx, o.StateRoot); err != nil {
			o.Log.Warn("reaping labs of dead owners", "error", err)
		}
	}
	unlock, err := lockLab(o.StateRoot, l.Name)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := l.build(ctx); err != nil {
		if errors.Is(err, errUpAlready) {
			return nil, err
		}
		// The context may be what ended the build; taking down must still happen.
		down, cancel := context.WithTimeout(context.WithoutCancel(ctx), Slow(30*time.Second))
		defer cancel()
		err = fmt.Errorf("lab %s: %w", l.Name, err)
		if derr := takeDown(down, o.StateRoot, l.Name); derr != nil {
			err = errors.Join(err, derr)
		}
		l.release()
		return nil, err
	}
	return l, nil
}

// step names a state between two irreversible actions of build.
func (l *Lab) step(format string, args ...any) {
	s := fmt.Sprintf(format, args...)
	l.opts.Log.Debug("lab step", "lab", l.Name, "step", s)
	l.opts.onStep(s)
}

func (l *Lab) build(ctx context.Context) error {
	start := time.Now()
	if err := l.checkBinaries(); err != nil {
		return err
	}
	// The record of what is going to exist comes before anything exists.
	st := &state{Name: l.Name, Topology: l.Topology.Path, BinDir: l.opts.BinDir, CNIPath: l.opts.CNIPath,
		NoAgents: l.opts.NoAgents, Created: time.Now().UTC()}
	if l.opts.Ephemeral {
		st.Owner = self()
	}
	for _, n := range l.Topology.Nodes {
		st.Nodes = append(st.Nodes, nodeState{Name: n.Name, NetNS: netnsName(l.Name, n.Name)})
	}
	if err := createState(l.opts.StateRoot, st); err != nil {
		return err
	}
	l.step("state")
	if l.opts.Ephemeral {
		var err error
		if l.alive, err = startWarden(l.opts.StateRoot, l.Name); err != nil {
			return err
		}
		l.step("warden")
	}
	dirs, err := newBindDirs(l.dir, l.Topology)
	if err != nil {
		return err
	}
	for _, spec := range l.Topology.Nodes {
		l.nodes = append(l.nodes, &Node{Spec: spec, lab: l, dir: filepath.Join(l.dir, "nodes", spec.Name)})
	}
	if err := l.eachNode(func(n *Node) error { return n.startInit(dirs) }); err != nil {
		return err
	}
	for _, n := range l.nodes {
		if err := n.nameNetNS(); err != nil {
			return err
		}
		l.step("netns %s", n.Spec.Name)
	}
	if err := l.wire(); err != nil {
		return err
	}
	if err := l.startDaemons(ctx, false); err != nil {
		return err
	}
	err = l.eachNode(func(n *Node) error {
		for _, line := range n.Spec.Exec {
			args, err := splitWords(line)
			if err != nil {
				return fmt.Errorf("node %s: exec %q: %w", n.Spec.Name, line, err)
			}
			if _, err := n.Exec(ctx, args...); err != nil {
				return fmt.Errorf("node %s: exec %q: %w", n.Spec.Name, line, err)
			}
			l.step("exec %s", n.Spec.Name)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := l.startDaemons(ctx, true); err != nil {
		return err
	}
	st.Complete = true
	if err := writeState(l.opts.StateRoot, st); err != nil {
		return err
	}
	l.opts.Log.Info("lab is up", "lab", l.Name, "nodes", len(l.nodes), "links", len(l.Topology.Links),
		"took", time.Since(start).Round(time.Millisecond).String())
	return nil
}

// eachNode runs f for all nodes at once and joins the errors.
func (l *Lab) eachNode(f func(*Node) error) error {
	var wg sync.WaitGroup
	errs := make([]error, len(l.nodes))
	for i, n := range l.nodes {
		wg.Add(1)
		go func() {
			defer wg.Done()
			errs[i] = f(n)
		}()
	}
	wg.Wait()
	return errors.Join(errs...)
}

// startDaemons starts the routers (agents false) or the agents. Routers come before the
// exec lines, which may configure them (vtysh); agents come after, when the node has its
// addresses.
func (l *Lab) startDaemons(ctx context.Context, agents bool) error {
	return l.eachNode(func(n *Node) error {
		if (n.Spec.Role == RoleCauseway) != agents || agents && l.opts.NoAgents {
			return nil
		}
		if err := n.Start(ctx); err != nil {
			return err
		}
		l.step("daemons %s", n.Spec.Name)
		return nil
	})
}

// Node returns the node with that name, or nil.
func (l *Lab) Node(name string) *Node {
	i := slices.IndexFunc(l.nodes, func(n *Node) bool { return n.Spec.Name == name })
	if i < 0 {
		return nil
	}
	return l.nodes[i]
}

// Nodes returns all nodes in the order of the topology file.
func (l *Lab) Nodes() []*Node { return slices.Clone(l.nodes) }

// Dir is the lab's state folder.
func (l *Lab) Dir() string { return l.dir }

// Shared returns the path, on this machine, of what the topology file binds writable from
// source (a path relative to the topology file, "manifests"). Every lab has a copy of its
// own, so that neither an edit nor a node changes the topology's folder.
func (l *Lab) Shared(source string) string {
	return filepath.Join(l.dir, "shared", sharedName(filepath.Join(l.Topology.Dir(), source)))
}

// Down ends every process of the lab and removes its links, namespaces and folders. It
// may be called again.
func (l *Lab) Down(ctx context.Context) error {
	err := Down(ctx, l.opts.StateRoot, l.Name)
	l.release()
	return err
}

// release tells the warden that there is nothing left to watch.
func (l *Lab) release() {
	if l.alive != nil {
		l.alive.Close()
		l.alive = nil
	}
}

// Open returns a lab that was brought up by another process, as `causeway-lab exec` needs.
// stateRoot is empty for the default.
func Open(stateRoot, name string) (*Lab, error) {
	o := Options{StateRoot: stateRoot}
	if err := o.fill(); err != nil {
		return nil, err
	}
	st, err := readState(o.StateRoot, name)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("lab %s is not up; up are: %s", name, strings.Join(List(o.StateRoot), ", "))
	} else if err != nil {
		return nil, err
	}
	if !st.Complete {
		return nil, fmt.Errorf("lab %s is half built: it is being brought up, or that was interrupted; `causeway-lab down %s` removes it", name, name)
	}
	t, err := Load(st.Topology)
	if err != nil {
		return nil, err
	}
	o.BinDir, o.CNIPath, o.NoAgents = st.BinDir, st.CNIPath, st.NoAgents
	l := &Lab{Name: name, Topology: t, opts: o, dir: filepath.Join(o.StateRoot, name)}
	for _, spec := range t.Nodes {
		n := &Node{Spec: spec, lab: l, dir: filepath.Join(l.dir, "nodes", spec.Name)}
		if n.init, err = readProc(filepath.Join(n.dir, "init.json")); err != nil {
			return nil, fmt.Errorf("lab %s: node %s: %w (was the topology file changed since up?)", name, spec.Name, err)
		}
		l.nodes = append(l.nodes, n)
	}
	return l, nil
}

// List names the labs that are up, whole or in part, sorted.
func List(stateRoot string) []string {
	if stateRoot == "" {
		stateRoot = DefaultStateRoot
	}
	entries, err := os.ReadDir(stateRoot)
	if err != nil {
		return nil
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names
}

func writeJSON(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	tmp := path + ".new"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
