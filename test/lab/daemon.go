package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Daemon is one of a node's main processes: "zebra", "bgpd", "bird", "gobgpd", "agent",
// or "cmd" on a plain host.
type Daemon struct {
	Name string

	node *Node
	argv []string
	// ready are files, in the node, that a daemon which takes commands has made; they
	// are removed before it starts.
	ready []string
	// configure runs in the node when the daemon is ready.
	configure []string
	// after names daemons that must be ready before this one starts.
	after []string
}

// DaemonStatus is what a daemon is doing.
type DaemonStatus struct {
	Name    string    `json:"name"`
	Running bool      `json:"running"`
	PID     int       `json:"pid,omitempty"`  // on this machine; 0 when it does not run
	Exit    string    `json:"exit,omitempty"` // how it ended last
	Started time.Time `json:"started"`        // zero when it was never started
	Starts  int       `json:"starts"`
}

// checkBinaries says early what is missing.
func (l *Lab) checkBinaries() error {
	var errs []error
	missing := map[string]bool{}
	for _, spec := range l.Topology.Nodes {
		ds, err := (&Node{Spec: spec, lab: l}).daemons()
		if err != nil {
			errs = append(errs, fmt.Errorf("node %s: %w", spec.Name, err))
			continue
		}
		for _, d := range ds {
			bin := d.argv[0]
			if _, err := os.Stat(bin); err == nil || missing[bin] || d.Name == "cmd" {
				continue
			}
			if d.Name == "agent" && l.opts.NoAgents {
				continue
			}
			missing[bin] = true
			errs = append(errs, fmt.Errorf("node %s needs %s: %s", spec.Name, bin, howToGet[spec.Role]))
		}
	}
	return errors.Join(errs...)
}

var howToGet = map[Role]string{
	RoleCauseway: "build it (`make build`) or name the folder that has it (BinDir, --bin)",
	RoleFRR:      "apt-get install frr",
	RoleBIRD:     "apt-get install bird2",
	RoleGoBGP:    "apt-get install gobgpd",
}

// daemons tells what runs on the node, in starting order.
func (n *Node) daemons() ([]*Daemon, error) {
	switch n.Spec.Role {
	case RoleCauseway:
		args := n.Spec.Cmd
		if len(args) == 0 {
			args = []string{"agent"}
		}
		return []*Daemon{{Name: "agent", node: n, argv: append([]string{filepath.Join(n.lab.opts.BinDir, "causeway")}, args...)}}, nil
	case RoleFRR:
		return n.frrDaemons()
	case RoleBIRD:
		argv := []string{"/usr/sbin/bird", "-f", "-c", "/etc/bird/bird.conf", "-s", "/run/bird/bird.ctl"}
		if len(n.Spec.Cmd) > 0 {
			argv = n.Spec.Cmd
		} else if n.bindOf("/etc/bird/bird.conf") == "" {
			return nil, errors.New("BIRD needs its configuration: bind a file to /etc/bird/bird.conf")
		}
		return []*Daemon{{Name: "bird", node: n, argv: argv, ready: []string{"/run/bird/bird.ctl"}}}, nil
	case RoleGoBGP:
		argv := n.Spec.Cmd
		if len(argv) == 0 {
			argv = []string{"/usr/bin/gobgpd"}
			for _, ext := range []string{"toml", "yaml", "yml", "conf", "json"} {
				file := "/etc/gobgp/gobgp." + ext
				if n.bindOf(file) == "" {
					continue
				}
				argv = append(argv, "-f", file)
				if ext == "yaml" || ext == "yml" || ext == "json" {
					argv = append(argv, "-t", strings.Replace(ext, "yml", "yaml", 1))
				}
				break
			}
		}
		return []*Daemon{{Name: "gobgpd", node: n, argv: argv}}, nil
	case RoleHost:
		if len(n.Spec.Cmd) > 0 {
			return []*Daemon{{Name: "cmd", node: n, argv: n.Spec.Cmd}}, nil
		}
	}
	return nil, nil
}

// bindOf returns the source of what the topology binds at target, directly or within a
// bound folder, or "".
func (n *Node) bindOf(target string) string {
	for dir, rest := target, ""; dir != "/"; dir, rest = path.Dir(dir), path.Join(path.Base(dir), rest) {
		for _, b := range n.Spec.Binds {
			if b.Target == dir {
				source := filepath.Join(b.Source, rest)
				if strings.HasPrefix(b.Source, "__clab") {
					return source
				}
				if _, err := os.Stat(source); err == nil {
					return source
				}
			}
		}
	}
	return ""
}

// Daemons returns the node's daemons in starting order.
func (n *Node) Daemons() []*Daemon {
	ds, err := n.daemons()
	if err != nil {
		return nil // Up has refused such a node
	}
	return ds
}

// Daemon returns the daemon with that name, or nil.
func (n *Node) Daemon(name string) *Daemon {
	for _, d := range n.Daemons() {
		if d.Name == name {
			return d
		}
	}
	return nil
}

// Start starts those of the node's daemons that do not run.
func (n *Node) Start(ctx context.Context) error {
	for _, d := range n.Daemons() {
		st, err := d.Status(ctx)
		if err == nil && !st.Running {
			err = d.Start(ctx)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Kill sends sig to all of the node's daemons that run; with SIGKILL it waits until they
// are gone.
func (n *Node) Kill(ctx context.Context, sig syscall.Signal) error {
	var errs []error
	for _, d := range n.Daemons() {
		st, err := d.Status(ctx)
		if err == nil && st.Running {
			if err = d.Signal(ctx, sig); err == nil && sig == syscall.SIGKILL {
				err = d.Wait(ctx)
			}
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Restart stops all of the node's daemons (SIGTERM, then SIGKILL) and starts them.
func (n *Node) Restart(ctx context.Context) error {
	ds := n.Daemons()
	for _, d := range slices.Backward(ds) {
		if err := d.Stop(ctx); err != nil {
			return err
		}
	}
	return n.Start(ctx)
}

func (d *Daemon) fail(format string, args ...any) error {
	return fmt.Errorf("node %s: %s: %w", d.node.Spec.Name, d.Name, fmt.Errorf(format, args...))
}

// LogPath is the file, on this machine, with the daemon's standard output and error.
func (d *Daemon) LogPath() string { return filepath.Join(d.node.dir, "logs", d.Name+".log") }

// Start starts the daemon and returns when it takes commands and has its configuration.
func (d *Daemon) Start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, Slow(30*time.Second))
	defer cancel()
	for _, name := range d.after {
		if err := d.node.Daemon(name).awaitReady(ctx); err != nil {
			return err
		}
	}
	for _, f := range d.ready { // of an earlier life
		if err := os.Remove(d.node.Path(f)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return d.fail("%w", err)
		}
	}
	argv := slices.Clone(d.argv)
	var err error
	if argv[0], err = d.node.lookPath(argv[0]); err != nil {
		return d.fail("%w", err)
	}
	if _, err := ask(ctx, d.node.dir, request{Op: "start", Name: d.Name, Argv: argv, Env: d.node.environ()}); err != nil {
		return d.fail("%w", err)
	}
	if err := d.awaitReady(ctx); err != nil {
		return err
	}
	if len(d.configure) > 0 {
		if _, err := d.node.Exec(ctx, d.configure...); err != nil {
			return d.fail("configure: %w", err)
		}
	}
	return nil
}

func (d *Daemon) awaitReady(ctx context.Context) error {
	for _, f := range d.ready {
		for {
			if _, err := os.Stat(d.node.Path(f)); err == nil {
				break
			}
			st, err := d.Status(ctx)
			if err != nil {
				return err
			}
			if !st.Running {
				return d.fail("ended at once (%s): %s", st.Exit, tail(d.LogPath()))
			}
			select {
			case <-ctx.Done():
				return d.fail("%s is not there yet: %w: %s", f, ctx.Err(), tail(d.LogPath()))
			case <-time.After(5 * time.Millisecond):
			}
		}
	}
	return nil
}

// Status says what the daemon is doing.
func (d *Daemon) Status(ctx context.Context) (DaemonStatus, error) {
	out := DaemonStatus{Name: d.Name}
	r, err := ask(ctx, d.node.dir, request{Op: "list"})
	if err != nil {
		return out, d.fail("%w", err)
	}
	for _, p := range r.Processes {
		if p.Name != d.Name {
			continue
		}
		out.Running, out.Exit, out.Started, out.Starts = p.Running, p.Exit, p.Started, p.Starts
		if p.Running {
			out.PID = d.node.hostPID(p.PID)
		}
	}
	return out, nil
}

// PID is the daemon's process id on this machine.
func (d *Daemon) PID(ctx context.Context) (int, error) {
	st, err := d.Status(ctx)
	if err != nil {
		return 0, err
	}
	if st.PID == 0 {
		return 0, d.fail("does not run (%s)", first(st.Exit, "never started"))
	}
	return st.PID, nil
}

// Signal sends a signal to the daemon; it is an error if it does not run.
func (d *Daemon) Signal(ctx context.Context, sig syscall.Signal) error {
	if _, err := ask(ctx, d.node.dir, request{Op: "signal", Name: d.Name, Signal: int(sig)}); err != nil {
		return d.fail("%w", err)
	}
	return nil
}

// Wait blocks until the daemon has ended. What it started itself may live on.
func (d *Daemon) Wait(ctx context.Context) error {
	if _, err := ask(ctx, d.node.dir, request{Op: "wait", Name: d.Name}); err != nil {
		return d.fail("%w", err)
	}
	return nil
}

// Kill ends the daemon with SIGKILL and waits until it is gone.
func (d *Daemon) Kill(ctx context.Context) error {
	if err := d.Signal(ctx, syscall.SIGKILL); err != nil {
		return err
	}
	return d.Wait(ctx)
}

// Stop ends the daemon with SIGTERM, and with SIGKILL if it takes more than 10 seconds. A
// daemon that does not run is no error.
func (d *Daemon) Stop(ctx context.Context) error {
	st, err := d.Status(ctx)
	if err != nil || !st.Running {
		return err
	}
	if err := d.Signal(ctx, syscall.SIGTERM); err != nil {
		return err
	}
	soft, cancel := context.WithTimeout(ctx, Slow(10*time.Second))
	defer cancel()
	if d.Wait(soft) == nil {
		return nil
	}
	if st, err := d.Status(ctx); err != nil || !st.Running {
		return err
	}
	return d.Kill(ctx)
}

// hostPID translates a process id of the node's pid namespace to this machine's, or 0.
func (n *Node) hostPID(inner int) int {
	want, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", n.init.PID))
	if err != nil {
		return 0
	}
	found := 0
	eachProcess(func(pid int) {
		if found != 0 {
			return
		}
		if ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid)); err != nil || ns != want {
			return
		}
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			return
		}
		for line := range strings.Lines(string(b)) {
			// NSpid: ids of the process from the outermost namespace to its own.
			if rest, ok := strings.CutPrefix(line, "NSpid:"); ok {
				ids := strings.Fields(rest)
				if ids[len(ids)-1] == fmt.Sprint(inner) {
					found = pid
				}
			}
		}
	})
	return found
}
