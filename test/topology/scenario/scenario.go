// Package scenario is what the topology tests share: a lab that is up for one test, pods
// on its nodes, and waiting with a deadline for what should become so.
package scenario

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/causeway-net/causeway/test/lab"
	"github.com/causeway-net/causeway/test/lab/traffic"
	"github.com/causeway-net/causeway/test/topology/fabric"
)

// root is the project's folder, seen from test/topology/<name>.
const root = "../../.."

// Fabric is a topology that is up.
type Fabric struct{ *fabric.Fabric }

// binVar names the environment variable for the folder of the programs, default bin: so
// that a build can be tried while tests run with another.
const binVar = "CAUSEWAY_TEST_BIN"

// Up builds deploy/containerlab/<name>/<name>.clab.yml with the programs of bin/, and
// takes it down when the test ends. When the test failed it first says what the nodes
// have to say. change may alter the lab's options.
func Up(t *testing.T, name string, change ...func(*lab.Options)) *Fabric {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), lab.Slow(time.Minute))
	defer cancel()
	bin, err := filepath.Abs(cmp.Or(os.Getenv(binVar), filepath.Join(root, "bin")))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(bin, "causeway")); err != nil {
		t.Fatalf("%v; make it with: make build plugins", err)
	}
	top, err := lab.Load(filepath.Join(root, "deploy/containerlab", name, name+".clab.yml"))
	if err != nil {
		t.Fatal(err)
	}
	o := lab.Options{
		Name: fmt.Sprintf("t%d-%s", os.Getpid()%10000, name), BinDir: bin, Ephemeral: true,
		Log: slog.New(slog.NewTextHandler(testWriter{t}, nil)),
	}
	for _, f := range change {
		f(&o)
	}
	l, err := lab.Up(ctx, top, o)
	if err != nil {
		t.Fatal(err)
	}
	f := &Fabric{&fabric.Fabric{Lab: l}}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), lab.Slow(time.Minute))
		defer cancel()
		if t.Failed() {
			f.report(t)
		}
		if err := l.Down(ctx); err != nil {
			t.Errorf("taking the lab down: %v", err)
		}
	})
	return f
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

// Context is a context that ends with the test or after d, longer on a slow computer (lab.Slow).
func Context(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), lab.Slow(d))
	t.Cleanup(cancel)
	return ctx
}

// Eventually polls until done returns nil, and fails the test when it has not by then. A
// slow computer is given longer (lab.Slow).
func Eventually(t *testing.T, within time.Duration, what string, done func() error) {
	t.Helper()
	within = lab.Slow(within)
	deadline := time.Now().Add(within)
	for {
		err := done()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s: %v", what, within, err)
		}
		select {
		case <-t.Context().Done():
			t.Fatal(t.Context().Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// AddPods attaches count pods to every agent, through the real plugin.
func (f *Fabric) AddPods(t *testing.T, count int) {
	t.Helper()
	if err := f.Fabric.AddPods(Context(t, time.Minute), count); err != nil {
		t.Fatal(err)
	}
}

// WaitEstablished waits until every session of every agent is up and its routes are in.
func (f *Fabric) WaitEstablished(t *testing.T, within time.Duration) {
	t.Helper()
	ctx := Context(t, within+time.Minute)
	Eventually(t, within, "sessions", func() error { return f.Established(ctx) })
}

// PodsTalk waits until every pod reaches every address of every other pod.
func (f *Fabric) PodsTalk(t *testing.T, within time.Duration) {
	t.Helper()
	es := f.Endpoints()
	if len(es) < 2 {
		t.Fatal("there are no pods to talk")
	}
	Reach(t, within, es, es)
}

// Reach waits until each of from reaches every address of each of to.
func Reach(t *testing.T, within time.Duration, from, to []traffic.Endpoint) {
	t.Helper()
	Eventually(t, within, "pings", func() error {
		m := traffic.PingAll(t.Context(), from, to, traffic.PingConfig{})
		if len(m) == 0 {
			return fmt.Errorf("the matrix is empty")
		}
		if failed := m.Failed(); len(failed) > 0 {
			return fmt.Errorf("%d of %d pairs:\n%s", len(failed), len(m), failed)
		}
		return nil
	})
}

// report prints what helps to find out why a test failed.
func (f *Fabric) report(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), lab.Slow(30*time.Second))
	defer cancel()
	for _, n := range f.Nodes() {
		commands := [][]string{{"ip", "route"}, {"ip", "-6", "route"}}
		switch n.Spec.Role {
		case lab.RoleCauseway:
			commands = append(commands, []string{"causewayctl", "status"}, []string{"causewayctl", "peers"},
				[]string{"ip", "-br", "link"}, []string{"bridge", "fdb"}, []string{"ip", "neigh"}, []string{"iptables-save", "-c"})
		case lab.RoleFRR:
			commands = append(commands, []string{"vtysh", "-c", "show bgp summary"})
		case lab.RoleBIRD:
			commands = append(commands, []string{"birdc", "show", "protocols"})
		}
		for _, c := range commands {
			out, err := n.Exec(ctx, c...)
			t.Logf("%s# %s\n%s%v", n.Name(), strings.Join(c, " "), out, err)
		}
		for _, d := range n.Daemons() {
			if b, err := os.ReadFile(d.LogPath()); err == nil {
				t.Logf("%s: end of %s's log:\n%s", n.Name(), d.Name, b[max(0, len(b)-4000):])
			}
		}
	}
}
