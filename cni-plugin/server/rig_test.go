package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/causeway-net/causeway/cni-plugin/internal/sandbox"
	"github.com/causeway-net/causeway/cni-plugin/veth"
	"github.com/causeway-net/causeway/cni-plugin/wire"
	"github.com/causeway-net/causeway/internal/model"
)

func TestMain(m *testing.M) {
	sandbox.Main(m,
		"github.com/causeway-net/causeway/cmd/causeway-cni",
		"github.com/containernetworking/cni/cnitool",
		"github.com/containernetworking/plugins/plugins/meta/portmap",
		"github.com/containernetworking/plugins/plugins/meta/bandwidth",
		"github.com/containernetworking/plugins/plugins/main/ptp",
		"github.com/containernetworking/plugins/plugins/ipam/host-local",
	)
}

// rig is a server with fakes behind it and the real plugin in front.
type rig struct {
	t      testing.TB
	socket string
	ipam   *fakeIPAM
	dp     *fakeDataplane
	ready  atomic.Pointer[error] // what Ready returns; nil is nil
	config Config
	stop   func() // ends the server and waits for it
	cni    *libcni.CNIConfig
}

func newRig(t testing.TB) *rig {
	t.Helper()
	dir, err := os.MkdirTemp("/run", "rig")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	r := &rig{t: t, socket: filepath.Join(dir, "cni.sock"), ipam: newIPAM(), dp: newDataplane()}
	r.config = Config{
		Socket: r.socket, Log: slog.New(slog.NewTextHandler(io.Discard, nil)), IPAM: r.ipam, Dataplane: r.dp, MTU: func() int { return 1450 },
		Ready: func() error {
			if err := r.ready.Load(); err != nil {
				return *err
			}
			return nil
		},
	}
	r.cni = libcni.NewCNIConfigWithCacheDir([]string{sandbox.Bin()}, filepath.Join(dir, "cache"),
		// Given, since libcni makes its own at the first call, unguarded against a second one.
		&invoke.DefaultExec{RawExec: &invoke.RawExec{Stderr: os.Stderr}, PluginDecoder: version.PluginDecoder{}})
	return r
}

func (r *rig) notReady(err error) {
	if err == nil {
		r.ready.Store(nil)
		return
	}
	r.ready.Store(&err)
}

// start runs a server until the test ends or stop is called, and waits until it listens.
func (r *rig) start() *Server {
	r.t.Helper()
	s, err := New(r.config)
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stopped := false
	r.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			r.t.Error(err)
		}
	}
	stop := r.stop
	r.t.Cleanup(stop)
	eventually(r.t, "the server listens", func() bool {
		resp, err := r.raw(wire.Request{Version: wire.Version, Command: "VERSION"}, "")
		return err == nil && resp.Error == nil
	})
	return s
}

// eventually polls until ok or a deadline.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

// list is a network with our plugin, with keys added to its configuration, and further
// plugins in the chain.
func (r *rig) list(specVersion, keys string, chain ...string) *libcni.NetworkConfigList {
	r.t.Helper()
	plugins := append([]string{fmt.Sprintf(`{"type":"causeway-cni","socket":%q%s}`, r.socket, keys)}, chain...)
	l, err := libcni.NetworkConfFromBytes(fmt.Appendf(nil, `{"cniVersion":%q,"name":"net","plugins":[%s]}`, specVersion, strings.Join(plugins, ",")))
	if err != nil {
		r.t.Fatal(err)
	}
	return l
}

func runtime(container, ns string) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{ContainerID: container, NetNS: ns, IfName: "eth0", Args: [][2]string{
		{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "default"}, {"K8S_POD_NAME", "pod-" + container}, {"K8S_POD_UID", "uid-" + container}}}
}

// add attaches and sees to it that the pod is detached at the end.
func (r *rig) add(l *libcni.NetworkConfigList, rt *libcni.RuntimeConf) *current.Result {
	r.t.Helper()
	res, err := r.cni.AddNetworkList(context.Background(), l, rt)
	if err != nil {
		r.t.Fatalf("ADD: %v", err)
	}
	out, err := current.NewResultFromResult(res)
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

func (r *rig) check(l *libcni.NetworkConfigList, rt *libcni.RuntimeConf) error {
	return r.cni.CheckNetworkList(context.Background(), l, rt)
}

func (r *rig) del(l *libcni.NetworkConfigList, rt *libcni.RuntimeConf) {
	r.t.Helper()
	if err := r.cni.DelNetworkList(context.Background(), l, rt); err != nil {
		r.t.Fatalf("DEL: %v", err)
	}
}

// clean fails the test unless nothing is left: no record, no host link, no route.
func (r *rig) clean() {
	r.t.Helper()
	if n := r.ipam.endpoints(); n != 0 {
		r.t.Errorf("%d addresses are left", n)
	}
	if out := sandbox.Run(r.t, "sh", "-c", "ip -o link | grep cali || true; ip route | grep cali || true"); out != "" {
		r.t.Errorf("left in the kernel:\n%s", out)
	}
}

// raw sends one request as the plugin does and returns the answer.
func (r *rig) raw(req wire.Request, ns string) (wire.Response, error) {
	var resp wire.Response
	conn, err := dial(r.socket)
	if err != nil {
		return resp, err
	}
	defer conn.Close()
	frame, err := wire.Frame(req)
	if err != nil {
		return resp, err
	}
	var fds []*os.File
	if ns != "" {
		fds = append(fds, sandbox.Open(r.t, ns))
	}
	if err := send(conn, frame, fds...); err != nil {
		return resp, err
	}
	conn.SetReadDeadline(time.Now().Add(30 * time.Second))
	return resp, wire.ReadFrame(conn, &resp)
}

// request is one for the container in the network of list("1.1.0").
func (r *rig) request(command, container string) wire.Request {
	return wire.Request{Version: wire.Version, Command: command, ContainerID: container, IfName: "eth0", NetNS: "/run/netns/x",
		Stdin: fmt.Appendf(nil, `{"cniVersion":"1.1.0","name":"net","type":"causeway-cni"}`)}
}

// code returns the CNI error code of err, or 0.
func code(err error) uint {
	var e *types.Error
	if !errors.As(err, &e) {
		return 0
	}
	return e.Code
}

func marshal(t testing.TB, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func hostNameOf(rt *libcni.RuntimeConf) string {
	return veth.HostName(model.AttachmentKey{ContainerID: rt.ContainerID, IfName: rt.IfName}, "default", "pod-"+rt.ContainerID)
}
