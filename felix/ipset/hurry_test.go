package ipset_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/causeway-net/causeway/felix/ipset"
	"github.com/causeway-net/causeway/felix/ipset/ipsettest"
)

// gate is a kernel that stops at calls that name a set, until it is told to go on.
type gate struct {
	*ipsettest.Kernel
	name  string
	stops chan string   // what it stopped at
	goOn  chan struct{} // one for each stop
}

func newGate(name string) *gate {
	return &gate{Kernel: ipsettest.New(), name: name, stops: make(chan string), goOn: make(chan struct{})}
}

func (g *gate) stop(ctx context.Context, what string) {
	select {
	case g.stops <- what:
	case <-ctx.Done():
		return
	}
	select {
	case <-g.goOn:
	case <-ctx.Done():
	}
}

func (g *gate) Apply(ctx context.Context, commands []ipset.Command) ([]error, error) {
	if i := slices.IndexFunc(commands, func(c ipset.Command) bool { return c.Name == g.name }); i >= 0 {
		g.stop(ctx, "apply")
	}
	return g.Kernel.Apply(ctx, commands)
}

func (g *gate) List(ctx context.Context, name string, begin func(ipset.Header), each func(ipset.Listed)) error {
	if name == g.name {
		g.stop(ctx, "list")
	}
	return g.Kernel.List(ctx, name, begin, each)
}

// at waits for the next stop.
func (g *gate) at(t *testing.T, want string) {
	t.Helper()
	select {
	case what := <-g.stops:
		if what != want {
			t.Fatalf("stopped at %s, want %s", what, want)
		}
	case <-time.After(10 * time.Second):
		t.Fatalf("no %s", want)
	}
}

// open lets everything pass from now on.
func (g *gate) open(t *testing.T) {
	t.Helper()
	done := make(chan struct{})
	t.Cleanup(func() { close(done) })
	go func() {
		g.goOn <- struct{}{}
		for {
			select {
			case <-g.stops:
				g.goOn <- struct{}{}
			case <-done:
				return
			}
		}
	}()
}

func addresses(first byte, n int) (out []ipset.Member) {
	for i := range n {
		out = append(out, address(first, i))
	}
	return out
}

// TestFailedRoundIsNotForgotten: a round failed with the way to the kernel, and the next one brings one set sooner
// than another. Wait says that the other one is not in the kernel until it is.
func TestFailedRoundIsNotForgotten(t *testing.T) {
	g := newGate("cali40a")
	rec, _ := (&rig{kernel: g}).start(t, func(c *ipset.Config) { c.Glance, c.MaxElem = time.Hour, 4 })
	for _, name := range []string{"cali40b", "cali40a"} {
		rec.Replace(ipset.Set{Name: name, Type: ipset.HashIP, Family: ipset.IPv4, Members: ips("10.0.0.1")})
	}
	g.at(t, "apply") // made
	g.goOn <- struct{}{}
	wait(t, rec)
	rec.Update("cali40a", ips("10.0.0.2"), nil)
	g.at(t, "apply")
	broken := errors.New("no way")
	g.Fail(broken)
	g.goOn <- struct{}{}
	if err := waitErr(t, rec, "cali40a"); !errors.Is(err, broken) {
		t.Fatalf("Wait says %v, want %v", err, broken)
	}
	g.at(t, "list") // the next round
	g.goOn <- struct{}{}
	g.at(t, "apply")
	for i := range 3 { // it is full now, and needs another attempt
		if err := g.Foreign(fmt.Sprintf("add cali40a 10.0.1.%d", i)); err != nil {
			t.Fatal(err)
		}
	}
	g.goOn <- struct{}{}
	g.at(t, "list")
	if err := waitErr(t, rec, "cali40b"); err != nil {
		t.Errorf("Wait says %v of the set that is as wanted", err)
	}
	if err := waitErr(t, rec, "cali40a"); !errors.Is(err, broken) {
		t.Errorf("Wait says %v of the set that is not as wanted, want %v", err, broken)
	}
	g.open(t)
	eventually(t, func() string {
		if err := waitErr(t, rec, "cali40a"); err != nil {
			return err.Error()
		}
		return ""
	})
}

// TestHurry: while thousands of members of one set are written, a small addition to another
// one is written between, and Wait for it returns; what takes away waits its turn, and so does
// what follows it in its set.
func TestHurry(t *testing.T) {
	g := newGate("cali40big")
	rec, _ := (&rig{kernel: g}).start(t, func(c *ipset.Config) { c.Glance = time.Hour })
	small := func(name string) ipset.Set {
		return ipset.Set{Name: name, Type: ipset.HashIP, Family: ipset.IPv4, Members: ips("10.0.0.1")}
	}
	rec.Replace(small("cali40a"), small("cali40b"))
	wait(t, rec)
	rec.Replace(ipset.Set{Name: "cali40big", Type: ipset.HashIP, Family: ipset.IPv4, Members: addresses(11, 5000)})
	g.at(t, "apply")
	rec.Update("cali40a", ips("10.0.0.2"), nil)
	rec.Update("cali40b", nil, ips("10.0.0.1"))
	rec.Update("cali40b", ips("10.0.0.2"), nil)
	rec.Update("cali40big", ips("10.0.0.1"), nil)
	g.goOn <- struct{}{}
	g.at(t, "apply") // the next piece
	wait(t, rec, "cali40a")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, name := range []string{"cali40b", "cali40big"} {
		if err := rec.Wait(ctx, name); err == nil {
			t.Errorf("the changes of %s did not wait", name)
		}
	}
	dump := g.Dump()
	for _, want := range []string{"add cali40a 10.0.0.2\n", "add cali40b 10.0.0.1\n"} {
		if !strings.Contains(dump, want) {
			t.Errorf("%s is not there", want)
		}
	}
	for _, no := range []string{"add cali40b 10.0.0.2\n", "add cali40big 10.0.0.1\n"} {
		if strings.Contains(dump, no) {
			t.Errorf("%s is there", no)
		}
	}
	g.open(t)
	wait(t, rec, "cali40b", "cali40big")
	if dump := g.Dump(); strings.Contains(dump, "add cali40b 10.0.0.1\n") || strings.Count(dump, "add cali40big") != 5001 {
		t.Error("what waited did not come")
	}
	wait(t, rec)
}

// TestHurryAtResync: while all sets are read again, members come and go at once, even in a set
// that is still to be read, without its being read for that.
func TestHurryAtResync(t *testing.T) {
	g := newGate("cali40a")
	rec, _ := (&rig{kernel: g}).start(t, func(c *ipset.Config) { c.Glance = time.Hour })
	for i := range 5 {
		rec.Replace(ipset.Set{Name: fmt.Sprintf("cali40b%d", i), Type: ipset.HashIP, Family: ipset.IPv4, Members: ips("10.0.0.1", "10.0.0.2")})
	}
	wait(t, rec)
	rec.Replace(ipset.Set{Name: "cali40a", Type: ipset.HashIP, Family: ipset.IPv4})
	g.at(t, "apply")
	g.goOn <- struct{}{}
	wait(t, rec)
	if err := g.Foreign("add cali40b4 10.7.7.7"); err != nil {
		t.Fatal(err)
	}
	if err := g.Foreign("del cali40b4 10.0.0.2"); err != nil {
		t.Fatal(err)
	}
	rec.PokeResync()
	g.at(t, "list")
	rec.Update("cali40b4", ips("10.0.0.3"), ips("10.0.0.1"))
	waited := make(chan error, 1)
	go func() { waited <- rec.Wait(t.Context(), "cali40b4") }()
	// The one that is being read now is let go; the one that comes next is not.
	g.name = "cali40b0"
	g.goOn <- struct{}{}
	g.at(t, "list")
	if err := <-waited; err != nil {
		t.Error(err)
	}
	if dump := g.Dump(); !strings.Contains(dump, "add cali40b4 10.0.0.3\nadd cali40b4 10.7.7.7\n") || strings.Contains(dump, "add cali40b4 10.0.0.1\n") {
		t.Errorf("the kernel holds\n%s", dump)
	}
	g.open(t)
	eventually(t, func() string {
		if dump := g.Dump(); !strings.HasSuffix(dump, "create cali40b4 hash:ip family inet\nadd cali40b4 10.0.0.2\nadd cali40b4 10.0.0.3\n") {
			return "the kernel holds\n" + dump
		}
		return ""
	})
}

// counter is a kernel that counts its calls.
type counter struct {
	*ipsettest.Kernel
	headers, lists, applies, commands atomic.Int64
}

func (c *counter) Headers(ctx context.Context) ([]ipset.Header, error) {
	c.headers.Add(1)
	return c.Kernel.Headers(ctx)
}

func (c *counter) List(ctx context.Context, name string, begin func(ipset.Header), each func(ipset.Listed)) error {
	c.lists.Add(1)
	return c.Kernel.List(ctx, name, begin, each)
}

func (c *counter) Apply(ctx context.Context, commands []ipset.Command) ([]error, error) {
	c.applies.Add(1)
	c.commands.Add(int64(len(commands)))
	return c.Kernel.Apply(ctx, commands)
}

// TestOneMember: one member more or less is one message to the kernel and nothing else,
// whatever the number of sets (I8).
func TestOneMember(t *testing.T) {
	for _, sets := range []int{1, 1000} {
		k := &counter{Kernel: ipsettest.New()}
		rec, _ := (&rig{kernel: k}).start(t, func(c *ipset.Config) { c.Glance = time.Hour })
		for i := range sets {
			rec.Replace(ipset.Set{Name: fmt.Sprintf("cali40s%d", i), Type: ipset.HashIP, Family: ipset.IPv4, Members: addresses(10, 10)})
		}
		rec.InSync("test")
		wait(t, rec)
		headers, lists, applies, commands := k.headers.Load(), k.lists.Load(), k.applies.Load(), k.commands.Load()
		const changes = 10
		for range changes / 2 {
			rec.Update("cali40s0", ips("10.9.9.9"), nil)
			wait(t, rec, "cali40s0")
			rec.Update("cali40s0", nil, ips("10.9.9.9"))
			wait(t, rec, "cali40s0")
		}
		if h, l := k.headers.Load()-headers, k.lists.Load()-lists; h+l > 0 {
			t.Errorf("%d sets: the headers of sets were read %d times and members %d times", sets, h, l)
		}
		if a, c := k.applies.Load()-applies, k.commands.Load()-commands; a != changes || c != changes {
			t.Errorf("%d sets: %d changes took %d calls with %d commands", sets, changes, a, c)
		}
	}
}
