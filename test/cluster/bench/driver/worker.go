package driver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"
)

// workerName is argv[0] of the process in the node.
const workerName = "causeway-cni-driver"

// Reexec must be the first call of main or TestMain of every program that uses this
// package: the program starts itself again, in a node.
func Reexec() {
	if len(os.Args) != 2 || os.Args[0] != workerName {
		return
	}
	if err := work(os.Args[1], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, workerName+":", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// worker is the process in the node.
type worker struct {
	name string
	cni  *libcni.CNIConfig

	mu        sync.Mutex // guards what follows
	sandboxes map[string]*sandbox
}

// sandbox is a pod's network namespace.
type sandbox struct {
	once sync.Once
	path string
	err  error
}

// work answers until its input ends, and leaves no network namespace behind.
func work(name string, in io.Reader, out io.Writer) error {
	w := &worker{name: name, sandboxes: map[string]*sandbox{}}
	w.cni = libcni.NewCNIConfigWithCacheDir(filepath.SplitList(os.Getenv("CNI_PATH")), "/var/lib/cni/cache", nil)
	var (
		calls   sync.WaitGroup
		writing sync.Mutex
	)
	requests, answers := json.NewDecoder(in), json.NewEncoder(out)
	var err error
	for {
		var c call
		if err = requests.Decode(&c); err != nil {
			break
		}
		calls.Go(func() {
			a := answer{ID: c.ID}
			var err error
			if a.Addrs, a.Took, err = w.do(c); err != nil {
				a.Error = err.Error()
			}
			writing.Lock()
			defer writing.Unlock()
			answers.Encode(a) // who does not read any more has closed the input, too
		})
	}
	calls.Wait()
	if errors.Is(err, io.EOF) {
		err = nil
	}
	for _, s := range w.sandboxes {
		err = errors.Join(err, s.remove())
	}
	return err
}

func (w *worker) do(c call) ([]netip.Addr, time.Duration, error) {
	list, err := libcni.NetworkConfFromBytes(c.Network)
	if err != nil {
		return nil, 0, err
	}
	rt := &libcni.RuntimeConf{ContainerID: c.Pod.ContainerID, IfName: "eth0", Args: [][2]string{{"IgnoreUnknown", "1"}}}
	if rt.NetNS, err = w.sandbox(c.Pod.Sandbox); err != nil {
		return nil, 0, err
	}
	if c.Pod.Name != "" { // as containerd names them
		rt.Args = append(rt.Args, [2]string{"K8S_POD_NAMESPACE", c.Pod.Namespace}, [2]string{"K8S_POD_NAME", c.Pod.Name},
			[2]string{"K8S_POD_INFRA_CONTAINER_ID", c.Pod.ContainerID}, [2]string{"K8S_POD_UID", c.Pod.UID})
	}
	if c.Pod.HostPort != 0 {
		rt.CapabilityArgs = map[string]any{"portMappings": []map[string]any{{"hostPort": c.Pod.HostPort, "containerPort": 80, "protocol": "tcp"}}}
	}
	// No caller's patience ends a plugin: the agent has its own.
	ctx := context.Background()
	start := time.Now()
	if c.Command == "DEL" {
		err := w.cni.DelNetworkList(ctx, list, rt)
		return nil, time.Since(start), err
	}
	r, err := w.cni.AddNetworkList(ctx, list, rt)
	took := time.Since(start)
	if err != nil {
		return nil, took, err
	}
	result, err := types100.NewResultFromResult(r)
	if err != nil {
		return nil, took, err
	}
	var addrs []netip.Addr
	for _, ip := range result.IPs {
		if a, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			addrs = append(addrs, a.Unmap())
		}
	}
	return addrs, took, nil
}

// sandbox returns the path of a network namespace, which it makes when it is not there.
func (w *worker) sandbox(name string) (string, error) {
	w.mu.Lock()
	s := w.sandboxes[name]
	if s == nil {
		s = &sandbox{path: filepath.Join("/run/netns", w.name+"-"+name)}
		w.sandboxes[name] = s
	}
	w.mu.Unlock()
	s.once.Do(func() {
		if s.err = s.create(); s.err != nil {
			s.err = fmt.Errorf("network namespace %s: %w", s.path, s.err)
		}
	})
	return s.path, s.err
}

func (s *sandbox) create() error {
	if err := os.MkdirAll(filepath.Dir(s.path), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(s.path, nil, 0o444); err != nil {
		return err
	}
	errc := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked, so that the runtime ends the thread
		errc <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("unshare: %w", err)
			}
			// ptp would wait seconds for duplicate address detection; causeway-cni turns it off itself.
			// /proc/sys/net is that of the thread that opens it.
			for _, conf := range []string{"all", "default"} {
				if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+conf+"/accept_dad", []byte("0"), 0); err != nil {
					return err
				}
			}
			return unix.Mount("/proc/thread-self/ns/net", s.path, "none", unix.MS_BIND, "")
		}()
	}()
	return <-errc
}

func (s *sandbox) remove() error {
	if err := unix.Unmount(s.path, unix.MNT_DETACH); err != nil && err != unix.EINVAL {
		return fmt.Errorf("%s: %w", s.path, err)
	}
	return os.Remove(s.path)
}
