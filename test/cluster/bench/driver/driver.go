// Package driver plays the container runtime on a node of the test cluster: libcni
// executes CNI plugins, in the node's namespaces, for network namespaces that it makes.
// It owns these namespaces, from their first use to Close.
//
// The work is done by a process in the node, so that a plugin's start costs there what it
// costs on a host, and times are taken where the plugin is executed. A program that uses
// the package calls Reexec first thing in main or TestMain.
package driver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Node is where a Driver works: a *cluster.Node.
type Node interface {
	// Start starts a prepared command in the node's namespaces.
	Start(*exec.Cmd) error
	String() string
}

// Config of a Driver.
type Config struct {
	Node Node // required
	// Name begins the names of the network namespaces, /run/netns/NAME-SANDBOX. Required,
	// and unlike that of any other Driver on the node.
	Name string
	// Plugins are the folders of the plugins, as the node sees them. Default: the
	// runtime's, /opt/cni/bin.
	Plugins []string
	// Apart gives the plugins a network namespace of their own as the host's, with
	// nothing in it but loopback: a node without an agent.
	Apart bool
}

// Pod is whom a call is for.
type Pod struct {
	ContainerID string `json:"containerID"`
	// Sandbox names the pod's network namespace; it is made by the first call that names
	// it and used again by later ones.
	Sandbox string `json:"sandbox"`
	// Namespace, Name and UID are those of the pod's object; empty for a container that
	// belongs to none.
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
	UID       string `json:"uid,omitempty"`
	// HostPort of the node leads to the pod's port 80, by TCP; 0: none does.
	HostPort int `json:"hostPort,omitempty"`
}

// call is one request to the worker, and answer what it says.
type call struct {
	ID      uint64          `json:"id"`
	Command string          `json:"command"` // ADD or DEL
	Network json.RawMessage `json:"network"`
	Pod     Pod             `json:"pod"`
}

type answer struct {
	ID    uint64        `json:"id"`
	Error string        `json:"error,omitempty"`
	Addrs []netip.Addr  `json:"addrs,omitempty"`
	Took  time.Duration `json:"took"`
}

// Driver executes plugins on one node. Its methods may be called concurrently; the
// plugins then run at the same time.
type Driver struct {
	node Node
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  sync.WaitGroup

	mu      sync.Mutex // guards what follows, and writing to in
	last    uint64
	waiting map[uint64]chan answer
	ended   error // why no more answers come
}

// Start starts a Driver. Its process ends at Close, or with this one.
func Start(ctx context.Context, cfg Config) (*Driver, error) {
	if cfg.Node == nil || cfg.Name == "" {
		return nil, errors.New("driver: Config.Node and Config.Name are required")
	}
	if len(cfg.Plugins) == 0 {
		cfg.Plugins = []string{"/opt/cni/bin"}
	}
	d := &Driver{node: cfg.Node, waiting: map[uint64]chan answer{}}
	d.cmd = exec.CommandContext(ctx, "/proc/self/exe")
	d.cmd.Args = []string{workerName, cfg.Name}
	d.cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "CNI_PATH=" + strings.Join(cfg.Plugins, ":")}
	d.cmd.Stderr = os.Stderr
	if cfg.Apart {
		d.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	}
	var err error
	if d.in, err = d.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := d.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cfg.Node.Start(d.cmd); err != nil {
		return nil, fmt.Errorf("driver on %s: %w", cfg.Node, err)
	}
	d.out.Go(func() { d.read(out) })
	return d, nil
}

// read hands answers to those who wait for them until the worker ends.
func (d *Driver) read(out io.Reader) {
	dec := json.NewDecoder(out)
	for {
		var a answer
		err := dec.Decode(&a)
		d.mu.Lock()
		if err != nil {
			d.ended = fmt.Errorf("its process ended: %w", err)
			for _, c := range d.waiting {
				close(c)
			}
			clear(d.waiting)
			d.mu.Unlock()
			return
		}
		c := d.waiting[a.ID]
		delete(d.waiting, a.ID)
		d.mu.Unlock()
		if c != nil {
			c <- a
		}
	}
}

// Close takes the network namespaces away and ends the process. Who wants nothing left
// behind calls Del for every pod before.
func (d *Driver) Close() error {
	d.mu.Lock()
	d.in.Close()
	d.mu.Unlock()
	d.out.Wait()
	if err := d.cmd.Wait(); err != nil {
		return fmt.Errorf("driver on %s: %w", d.node, err)
	}
	return nil
}

// Add executes ADD of all plugins of a network configuration list. It returns the
// addresses that the last one answers, and how long all took.
func (d *Driver) Add(network []byte, pod Pod) ([]netip.Addr, time.Duration, error) {
	a, err := d.do("ADD", network, pod)
	return a.Addrs, a.Took, err
}

// Del executes DEL of all plugins, and returns how long they took.
func (d *Driver) Del(network []byte, pod Pod) (time.Duration, error) {
	a, err := d.do("DEL", network, pod)
	return a.Took, err
}

func (d *Driver) do(command string, network []byte, pod Pod) (answer, error) {
	fail := func(err error) (answer, error) {
		return answer{}, fmt.Errorf("%s: %s of %s: %w", d.node, command, pod, err)
	}
	c := make(chan answer, 1)
	d.mu.Lock()
	if d.ended != nil {
		defer d.mu.Unlock()
		return fail(d.ended)
	}
	d.last++
	id := d.last
	d.waiting[id] = c
	err := json.NewEncoder(d.in).Encode(call{ID: id, Command: command, Network: network, Pod: pod})
	if err != nil {
		delete(d.waiting, id)
	}
	d.mu.Unlock()
	if err != nil {
		return fail(err)
	}
	a, ok := <-c
	switch {
	case !ok:
		d.mu.Lock()
		defer d.mu.Unlock()
		return fail(d.ended)
	case a.Error != "":
		return fail(errors.New(a.Error))
	}
	return a, nil
}

// String is the pod's name, or the container's id.
func (p Pod) String() string {
	if p.Name == "" {
		return "container " + p.ContainerID
	}
	return "pod " + p.Namespace + "/" + p.Name + " (container " + p.ContainerID + ")"
}
