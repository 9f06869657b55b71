package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"time"

	"github.com/containernetworking/cni/libcni"
	"golang.org/x/sys/unix"

	"github.com/causeway-net/causeway/test/lab"
)

// workerCommand is how this program is called inside a node, where it plays the container
// runtime: it stands in the node's namespaces itself, so that a plugin's start costs what
// it costs on a host.
const workerCommand = "worker"

// task is what a worker is asked for, one JSON object per line on its standard input;
// exactly one of its parts is set.
type task struct {
	Round *round     `json:"round,omitempty"`
	Exec  *execRound `json:"exec,omitempty"`
}

// round attaches pods by libcni and detaches them again.
type round struct {
	Network  json.RawMessage `json:"network"` // configuration list
	Pods     int             `json:"pods"`
	Parallel bool            `json:"parallel"` // all at once
	DAD      bool            `json:"dad"`      // leave the pods duplicate address detection for IPv6
}

// execRound executes programs in turn with CNI_COMMAND=VERSION.
type execRound struct {
	Programs []string `json:"programs"`
	Times    int      `json:"times"` // of each
}

// answer is what a worker says, one JSON object per line on its standard output.
type answer struct {
	Error string `json:"error,omitempty"`

	Pods     []podTimes    `json:"pods,omitempty"` // of a round, in order
	AddAll   time.Duration `json:"addAll"`         // from the first ADD's begin to the last one's end
	DelAll   time.Duration `json:"delAll"`
	Programs [][]float64   `json:"programs,omitempty"` // of an execRound: ms of each run, by program
}

type podTimes struct {
	ContainerID string        `json:"containerID"`
	Add         time.Duration `json:"add"`
	Del         time.Duration `json:"del"`
}

// worker is the other side, in a node.
type worker struct {
	node *lab.Node
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *json.Decoder
}

// startWorker starts this program in n. It ends with ctx, or when stop is called.
func startWorker(ctx context.Context, n *lab.Node) (*worker, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	w := &worker{node: n, cmd: n.Command(ctx, exe, workerCommand)}
	w.cmd.Stderr = os.Stderr
	if w.in, err = w.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := w.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	w.out = json.NewDecoder(out)
	if err := w.cmd.Start(); err != nil {
		return nil, fmt.Errorf("node %s: %w", n, err)
	}
	return w, nil
}

func (w *worker) stop() {
	w.in.Close()
	w.cmd.Wait() // how it ends says nothing that an answer did not
}

// do asks the worker for one thing.
func (w *worker) do(t task) (answer, error) {
	var a answer
	err := json.NewEncoder(w.in).Encode(t)
	if err == nil {
		err = w.out.Decode(&a)
	}
	if err == nil && a.Error != "" {
		err = errors.New(a.Error)
	}
	if err != nil {
		return a, fmt.Errorf("node %s: %w", w.node, err)
	}
	return a, nil
}

// runWorker is the worker's main: it answers until its input ends.
func runWorker(ctx context.Context, in io.Reader, out io.Writer) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	rt := &containerRuntime{sandboxes: map[string]string{}}
	// Plugins stand beside this program and in the last folder of PATH.
	path := filepath.SplitList(os.Getenv("PATH"))
	rt.cni = libcni.NewCNIConfigWithCacheDir([]string{path[len(path)-1], filepath.Dir(exe)}, "/var/lib/cni/cache", nil)
	requests, answers := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var t task
		if err := requests.Decode(&t); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		var a answer
		switch {
		case t.Round != nil:
			a, err = rt.round(ctx, *t.Round)
		case t.Exec != nil:
			a, err = execAll(ctx, *t.Exec)
		default:
			err = errors.New("an empty task")
		}
		if err != nil {
			a.Error = err.Error()
		}
		if err := answers.Encode(a); err != nil {
			return err
		}
	}
}

// containerRuntime does what kubelet and containerd do for a pod's network.
type containerRuntime struct {
	cni       *libcni.CNIConfig
	sandboxes map[string]string // network namespaces by name, used again and again
}

func (r *containerRuntime) round(ctx context.Context, q round) (answer, error) {
	list, err := libcni.NetworkConfFromBytes(q.Network)
	if err != nil {
		return answer{}, err
	}
	pods := make([]*libcni.RuntimeConf, q.Pods)
	for i := range pods {
		var id [16]byte
		rand.Read(id[:])
		pods[i] = &libcni.RuntimeConf{ContainerID: hex.EncodeToString(id[:]), IfName: "eth0"}
		if pods[i].NetNS, err = r.sandbox(i, q.DAD); err != nil {
			return answer{}, err
		}
		pods[i].Args = [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "bench"}, {"K8S_POD_NAME", "pod-" + strconv.Itoa(i)},
			{"K8S_POD_INFRA_CONTAINER_ID", pods[i].ContainerID}}
	}
	a := answer{Pods: make([]podTimes, q.Pods)}
	a.AddAll, err = each(pods, q.Parallel, func(i int) error {
		start := time.Now()
		_, err := r.cni.AddNetworkList(ctx, list, pods[i])
		a.Pods[i] = podTimes{ContainerID: pods[i].ContainerID, Add: time.Since(start)}
		if err != nil {
			return fmt.Errorf("ADD: %w", err)
		}
		return nil
	})
	var derr error
	a.DelAll, derr = each(pods, q.Parallel, func(i int) error {
		start := time.Now()
		// The context may be what ended the ADDs; taking back must still happen.
		err := r.cni.DelNetworkList(context.WithoutCancel(ctx), list, pods[i])
		a.Pods[i].Del = time.Since(start)
		if err != nil {
			return fmt.Errorf("DEL: %w", err)
		}
		return nil
	})
	return a, errors.Join(err, derr)
}

// each calls f for all pods, one after the other or all at once, and says how long that
// took.
func each(pods []*libcni.RuntimeConf, parallel bool, f func(i int) error) (time.Duration, error) {
	errs := make([]error, len(pods))
	start := time.Now()
	var wg sync.WaitGroup
	for i := range pods {
		if parallel {
			wg.Go(func() { errs[i] = f(i) })
		} else {
			errs[i] = f(i)
		}
	}
	wg.Wait()
	return time.Since(start), errors.Join(errs...)
}

// sandbox returns the i-th network namespace, which it makes when it is not there yet.
func (r *containerRuntime) sandbox(i int, dad bool) (string, error) {
	name := fmt.Sprintf("pod-%d-%t", i, dad)
	if path := r.sandboxes[name]; path != "" {
		return path, nil
	}
	path := filepath.Join("/run/netns", name)
	if err := os.WriteFile(path, nil, 0o444); err != nil {
		return "", err
	}
	errc := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked, so that the runtime ends the thread
		errc <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("unshare: %w", err)
			}
			// /proc/sys/net is that of the thread that opens it.
			for _, conf := range []string{"all", "default"} {
				if !dad {
					if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+conf+"/accept_dad", []byte("0"), 0); err != nil {
						return err
					}
				}
			}
			return unix.Mount("/proc/thread-self/ns/net", path, "none", unix.MS_BIND, "")
		}()
	}()
	if err := <-errc; err != nil {
		return "", fmt.Errorf("network namespace %s: %w", name, err)
	}
	r.sandboxes[name] = path
	return path, nil
}

// execAll times the start, the work and the end of programs as libcni executes them.
func execAll(ctx context.Context, q execRound) (answer, error) {
	a := answer{Programs: make([][]float64, len(q.Programs))}
	for i := range q.Times {
		for j := range q.Programs {
			j = (i + j) % len(q.Programs) // no one's place is always behind the same one
			cmd := exec.CommandContext(ctx, q.Programs[j])
			cmd.Env = append(os.Environ(), "CNI_COMMAND=VERSION")
			cmd.Stdin = bytes.NewReader([]byte(`{"cniVersion":"1.0.0"}`))
			var out, complaint bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &complaint
			start := time.Now()
			if err := cmd.Run(); err != nil {
				return a, fmt.Errorf("%s: %w: %s%s", q.Programs[j], err, &out, &complaint)
			}
			a.Programs[j] = append(a.Programs[j], milliseconds(time.Since(start)))
			if !bytes.Contains(out.Bytes(), []byte("supportedVersions")) {
				return a, fmt.Errorf("%s: VERSION answered %s", q.Programs[j], &out)
			}
		}
	}
	return a, nil
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
