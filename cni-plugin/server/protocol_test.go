package server

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"golang.org/x/sys/unix"

	"github.com/causeway-net/causeway/cni-plugin/internal/sandbox"
	"github.com/causeway-net/causeway/cni-plugin/wire"
	"github.com/causeway-net/causeway/internal/model"
)

// TestPeerRefused: another user who can open the socket is refused all the same.
func TestPeerRefused(t *testing.T) {
	r := newRig(t)
	r.start()
	if err := os.Chmod(filepath.Dir(r.socket), 0o755); err != nil {
		t.Fatal(err)
	}
	plugin := func() string {
		cmd := exec.Command(filepath.Join(sandbox.Bin(), "causeway-cni"))
		cmd.Env = []string{"CNI_COMMAND=DEL", "CNI_CONTAINERID=c1", "CNI_IFNAME=eth0"}
		cmd.Stdin = strings.NewReader(fmt.Sprintf(`{"cniVersion":"1.1.0","name":"net","socket":%q}`, r.socket))
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := cmd.Output()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 1 {
			t.Errorf("plugin as nobody: %v", err)
		}
		return string(out)
	}
	if out := plugin(); !strings.Contains(out, "permission denied") {
		t.Errorf("socket of mode 0600: %s", out)
	}
	if err := os.Chmod(r.socket, 0o666); err != nil {
		t.Fatal(err)
	}
	if out := plugin(); !strings.Contains(out, "only root may attach pods") {
		t.Errorf("socket of mode 0666: %s", out)
	}
	if len(r.ipam.called()) != 0 {
		t.Errorf("ipam was called: %v", r.ipam.called())
	}
}

// TestSocket: mode 0600 whatever the umask, a stale socket replaced, a live one not.
func TestSocket(t *testing.T) {
	r := newRig(t)
	defer syscall.Umask(syscall.Umask(0))
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: r.socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()
	r.start()
	st, err := os.Stat(r.socket)
	if err != nil || st.Mode() != os.ModeSocket|0o600 {
		t.Errorf("socket %v, %v", st.Mode(), err)
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(r.socket), ".new-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	second, err := New(r.config)
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "another agent answers") {
		t.Errorf("second server: %v", err)
	}
	r.stop()
	r.start()
	r.stop()
	if err := os.Remove(r.socket); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(r.socket, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	third, err := New(r.config)
	if err != nil {
		t.Fatal(err)
	}
	if err := third.Run(t.Context()); err == nil {
		t.Error("a regular file was replaced")
	}
}

// TestMalformed sends what is no request; each is answered or dropped, nothing leaks, and
// the next request is served. Every ADD has a container of its own: one that was hung up on may end a moment later.
func TestMalformed(t *testing.T) {
	r := newRig(t)
	r.start()
	whole, err := wire.Frame(r.request("DEL", "c1"))
	if err != nil {
		t.Fatal(err)
	}
	null := sandbox.Open(t, "/dev/null")
	fds := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	before := fds()
	for name, tt := range map[string]struct {
		bytes []byte
		files []*os.File
		says  string
	}{
		"nothing":           {nil, nil, "cannot read the request"},
		"half a length":     {whole[:2], nil, "cannot read the request"},
		"half a request":    {whole[:20], nil, "cannot read the request"},
		"too long":          {binary.BigEndian.AppendUint32(nil, 1<<31), nil, "frame is too long"},
		"no JSON":           {append(binary.BigEndian.AppendUint32(nil, 3), "{{{"...), nil, "cannot read the request"},
		"other version":     {frame(t, wire.Request{Version: 9, Command: "DEL"}), nil, "the plugin speaks version 9"},
		"no version":        {frame(t, wire.Request{Command: "DEL"}), nil, "install both from one release"},
		"unknown command":   {frame(t, wire.Request{Version: wire.Version, Command: "EAT"}), nil, `CNI_COMMAND "EAT"`},
		"no stdin":          {frame(t, wire.Request{Version: wire.Version, Command: "DEL"}), nil, "is not JSON"},
		"two descriptors":   {whole, []*os.File{null, null}, "2 descriptors"},
		"three descriptors": {whole, []*os.File{null, null, null}, "descriptor"},
		"a file for a namespace": {frame(t, wire.Request{Version: wire.Version, Command: "ADD", ContainerID: "c2", IfName: "eth0", NetNS: "/x",
			Stdin: []byte(`{"cniVersion":"1.1.0","name":"net"}`)}), []*os.File{null}, "not a pod's network namespace"},
		"the host's namespace": {frame(t, wire.Request{Version: wire.Version, Command: "ADD", ContainerID: "c3", IfName: "eth0", NetNS: "/x",
			Stdin: []byte(`{"cniVersion":"1.1.0","name":"net"}`)}), []*os.File{sandbox.Open(t, "/proc/self/ns/net")}, "is the host's"},
		"no namespace": {frame(t, wire.Request{Version: wire.Version, Command: "ADD", ContainerID: "c4", IfName: "eth0",
			Stdin: []byte(`{"cniVersion":"1.1.0","name":"net"}`)}), nil, "no network namespace"},
		"the kernel's own name": {frame(t, wire.Request{Version: wire.Version, Command: "ADD", ContainerID: "c5", IfName: "lo",
			Stdin: []byte(`{"cniVersion":"1.1.0","name":"net"}`)}), nil, "keeps that name"},
		"a pattern for a name": {frame(t, wire.Request{Version: wire.Version, Command: "ADD", ContainerID: "c6", IfName: "eth%d",
			Stdin: []byte(`{"cniVersion":"1.1.0","name":"net"}`)}), nil, "keeps that name"},
	} {
		conn, err := dial(r.socket)
		if err != nil {
			t.Fatal(err)
		}
		if len(tt.bytes) > 0 {
			if err := send(conn, tt.bytes, tt.files...); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		if tt.says == "cannot read the request" {
			conn.CloseWrite() // more would be waited for; after a whole request it is a hang-up
		}
		conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		var resp wire.Response
		if err := wire.ReadFrame(conn, &resp); err != nil || resp.Error == nil || !strings.Contains(resp.Error.Error(), tt.says) {
			t.Errorf("%s: answer %+v, %v; want %q", name, resp.Error, err, tt.says)
		}
		conn.Close()
	}
	eventually(t, "no descriptor is left open", func() bool { return fds() <= before+1 })
	if resp, err := r.raw(r.request("DEL", "c1"), ""); err != nil || resp.Error != nil {
		t.Errorf("DEL after all that: %v, %v", err, resp.Error)
	}
	if slices.Contains(r.ipam.called(), "Assign") {
		t.Error("an address was assigned")
	}
}

func frame(t *testing.T, req wire.Request) []byte {
	t.Helper()
	b, err := wire.Frame(req)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestPanic ends one request and nothing else, and undoes what it made.
func TestPanic(t *testing.T) {
	r := newRig(t)
	r.start()
	l, rt := r.list("1.1.0", ""), runtime("c1", sandbox.Pod(t))
	for _, step := range []string{"Assign", "Wired", "Attach"} {
		hook := func(method string) {
			if method == step {
				panic("made to panic")
			}
		}
		r.ipam.callBack(hook)
		r.dp.callBack(hook)
		if _, err := r.cni.AddNetworkList(context.Background(), l, rt); code(err) != wire.CodeInternal || !strings.Contains(err.Error(), "made to panic") {
			t.Errorf("%s: %v", step, err)
		}
		r.clean()
	}
	r.ipam.callBack(nil)
	r.dp.callBack(nil)
	r.add(l, rt)
	r.del(l, rt)
}

// TestHangUp: the runtime kills the plugin during ADD; the ADD is undone.
func TestHangUp(t *testing.T) {
	r := newRig(t)
	r.dp.stall = make(chan struct{})
	r.start()
	ns := sandbox.Pod(t)
	conn, err := dial(r.socket)
	if err != nil {
		t.Fatal(err)
	}
	if err := send(conn, frame(t, r.request("ADD", "c1")), sandbox.Open(t, ns)); err != nil {
		t.Fatal(err)
	}
	<-r.dp.stall
	conn.Close()
	eventually(t, "the ADD is undone", func() bool { return r.ipam.endpoints() == 0 })
	r.clean()
}

// TestBusy: STATUS passes while all slots are taken, and ADD waits for one.
func TestBusy(t *testing.T) {
	r := newRig(t)
	r.config.MaxInflight = 1
	r.config.Timeout = 300 * time.Millisecond
	r.start()
	reached, release := make(chan struct{}), make(chan struct{})
	r.ipam.callBack(func(method string) {
		if method == "Release" {
			close(reached)
			<-release
		}
	})
	first := make(chan error, 1)
	go func() {
		_, err := r.raw(r.request("DEL", "c1"), "")
		first <- err
	}()
	<-reached
	if resp, err := r.raw(r.request("STATUS", ""), ""); err != nil || resp.Error != nil {
		t.Errorf("STATUS: %v, %v", err, resp.Error)
	}
	if resp, err := r.raw(r.request("DEL", "c2"), ""); err != nil || resp.Error == nil || resp.Error.Code != wire.CodeTryAgain {
		t.Errorf("DEL without a slot: %v, %v", err, resp.Error)
	}
	r.ipam.callBack(nil)
	close(release)
	if err := <-first; err != nil {
		t.Error(err)
	}
}

// TestDrain: a request that is being worked on when the agent ends is finished.
func TestDrain(t *testing.T) {
	r := newRig(t)
	r.start()
	reached, release := make(chan struct{}), make(chan struct{})
	r.ipam.callBack(func(method string) {
		if method == "Release" {
			close(reached)
			<-release
		}
	})
	done := make(chan error, 1)
	go func() {
		resp, err := r.raw(r.request("DEL", "c1"), "")
		if err == nil && resp.Error != nil {
			err = resp.Error
		}
		done <- err
	}()
	<-reached
	stopped := make(chan struct{})
	go func() { r.stop(); close(stopped) }()
	eventually(t, "nobody listens any more", func() bool {
		c, err := dial(r.socket)
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	close(release)
	if err := <-done; err != nil {
		t.Errorf("request during shutdown: %v", err)
	}
	<-stopped
}

// TestDrainTooShort: of an ADD that cannot be finished while the agent ends, and of one that
// waits for its turn, nothing stays; neither is answered, and the plugin brings both to the
// next agent.
func TestDrainTooShort(t *testing.T) {
	r := newRig(t)
	r.config.Drain, r.config.MaxInflight = 50*time.Millisecond, 1
	stall := make(chan struct{})
	r.dp.stall = stall
	r.start()
	eventually(t, "the ready file is made", func() bool { return wire.WasReady(wire.ReadyFile(r.socket), time.Now()) })
	l := r.list("1.1.0", "")
	added := make(chan error, 2)
	add := func(rt *libcni.RuntimeConf) {
		_, err := r.cni.AddNetworkList(context.Background(), l, rt)
		added <- err
	}
	rts := []*libcni.RuntimeConf{runtime("c1", sandbox.Pod(t)), runtime("c2", sandbox.Pod(t))}
	go add(rts[0])
	<-stall
	r.dp.stall = nil
	go add(rts[1])
	r.stop()
	if got := r.ipam.called(); slices.Index(got, "Release") < 0 || slices.Contains(got[slices.Index(got, "Release"):], "Assign") {
		t.Errorf("calls %v: want one ADD that is undone, and no other", got)
	}
	r.clean()
	select {
	case err := <-added:
		t.Fatalf("an ADD was answered by an agent that did not finish it: %v", err)
	default:
	}
	r.start()
	for range rts {
		if err := <-added; err != nil {
			t.Errorf("ADD: %v", err)
		}
	}
	for _, rt := range rts {
		if err := r.check(l, rt); err != nil {
			t.Error(err)
		}
		r.del(l, rt)
	}
	r.clean()
}

// TestRequests reads every way to ask for addresses, and refuses what is wrong by name.
func TestRequests(t *testing.T) {
	a := func(list ...string) (out []netip.Addr) {
		for _, s := range list {
			out = append(out, netip.MustParseAddr(s))
		}
		return out
	}
	pod := func(key, value string) Workload { return Workload{Annotations: map[string]string{key: value}} }
	const noIPAM = `"feature_control":{"ip_addrs_no_ipam":true}`
	for name, tt := range map[string]struct {
		keys, args string
		of         Workload
		want       model.AddressRequest
		mac        string
		err        string
	}{
		"nothing":              {},
		"capability":           {keys: `"runtimeConfig":{"ips":["fd00::5","10.0.0.5/24"],"mac":"02:00:00:00:00:05"}`, want: model.AddressRequest{Addresses: a("10.0.0.5", "fd00::5")}, mac: "02:00:00:00:00:05"},
		"args.cni.ips":         {keys: `"args":{"cni":{"ips":["10.0.0.6"],"labels":[{"key":"a"}]}}`, want: model.AddressRequest{Addresses: a("10.0.0.6")}},
		"CNI_ARGS":             {args: "IP=10.0.0.7;MAC=02:00:00:00:00:07", want: model.AddressRequest{Addresses: a("10.0.0.7")}, mac: "02:00:00:00:00:07"},
		"annotation in args":   {keys: `"args":{"cni":{"cni.projectcalico.org/ipAddrs":"[\"10.0.0.8\",\"fd00::8\"]"}}`, want: model.AddressRequest{Addresses: a("10.0.0.8", "fd00::8")}},
		"pools in args":        {keys: `"args":{"cni":{"cni.projectcalico.org/ipv4pools":"[\"blue\",\"10.1.0.0/16\"]","cni.projectcalico.org/ipv6pools":"[\"six\"]"}}`, want: model.AddressRequest{IPv4Pools: []string{"blue", "10.1.0.0/16"}, IPv6Pools: []string{"six"}}},
		"the pod's annotation": {of: pod(annotationAddrs, `["10.0.0.9"]`), want: model.AddressRequest{Addresses: a("10.0.0.9")}},
		"the pod's MAC":        {of: pod(annotationMAC, "02:00:00:00:00:09"), mac: "02:00:00:00:00:09"},
		"the namespace's pools": {of: Workload{NamespaceAnnotations: map[string]string{annotationPools4: `["ns"]`, annotationAddrs: `["10.0.0.1"]`}},
			want: model.AddressRequest{IPv4Pools: []string{"ns"}}},
		"the pod's over the namespace's": {of: Workload{Annotations: map[string]string{annotationPools4: `["pod"]`}, NamespaceAnnotations: map[string]string{annotationPools4: `["ns"]`}},
			want: model.AddressRequest{IPv4Pools: []string{"pod"}}},
		"capability over args":  {keys: `"runtimeConfig":{"ips":["10.0.0.5"]},"args":{"cni":{"ips":["10.0.0.6"]}}`, want: model.AddressRequest{Addresses: a("10.0.0.5")}},
		"unknown args ignored":  {args: "IgnoreUnknown=1;FOO=bar"},
		"unknown args":          {args: "FOO=bar", err: "CNI_ARGS: unknown FOO"},
		"no pair":               {args: "FOO", err: `CNI_ARGS: "FOO": want KEY=VALUE`},
		"two of a family":       {keys: `"runtimeConfig":{"ips":["10.0.0.5","10.0.0.6"]}`, err: "runtimeConfig.ips: 10.0.0.5, 10.0.0.6: want at most one"},
		"no address":            {args: "IP=foo", err: `CNI_ARGS: IP: "foo" is not an address`},
		"no prefix":             {args: "IP=10.0.0.1/99", err: "is not an address"},
		"a zone":                {args: "IP=fe80::1%eth0", err: "is not an address"},
		"no list":               {of: pod(annotationAddrs, "10.0.0.1"), err: "annotation cni.projectcalico.org/ipAddrs of the pod"},
		"no string":             {keys: `"args":{"cni":{"cni.projectcalico.org/ipAddrs":["10.0.0.1"]}}`, err: "args.cni: cni.projectcalico.org/ipAddrs: want a string"},
		"no IPAM":               {keys: noIPAM, of: pod(annotationNoIPAM, `["fd00::1","192.0.2.1"]`), want: model.AddressRequest{NoIPAM: a("192.0.2.1", "fd00::1")}},
		"no IPAM, not enabled":  {of: pod(annotationNoIPAM, `["192.0.2.1"]`), err: "feature_control.ip_addrs_no_ipam"},
		"no IPAM, none named":   {keys: noIPAM, of: pod(annotationNoIPAM, `[]`), err: "want an address"},
		"no IPAM in args":       {keys: noIPAM + `,"args":{"cni":{"cni.projectcalico.org/ipAddrsNoIpam":"[\"192.0.2.1\"]"}}`, err: "annotation of the pod"},
		"with and without IPAM": {keys: noIPAM + `,"runtimeConfig":{"ips":["10.0.0.5"]}`, of: pod(annotationNoIPAM, `["192.0.2.1"]`), err: "runtimeConfig.ips both name addresses"},
		"multicast MAC":         {args: "MAC=01:00:00:00:00:01", err: "CNI_ARGS: MAC"},
		"the host's MAC":        {args: "MAC=ee:ee:ee:ee:ee:ee", err: "other than ee:ee:ee:ee:ee:ee"},
		"a MAC of 8 bytes":      {keys: `"runtimeConfig":{"mac":"02:00:00:00:00:00:00:05"}`, err: "runtimeConfig.mac"},
		"an ipam section":       {keys: `"ipam":{"type":"host-local"}`, err: `remove the section, which asks for type "host-local"`},
		"an empty ipam section": {keys: `"ipam":{}`},
		"mtu":                   {keys: `"mtu":67`, err: "mtu 67: want 68 to 65535"},
		"mtu of another type":   {keys: `"mtu":"big"`, err: "mtu: is a JSON string, want int"},
	} {
		t.Run(name, func(t *testing.T) {
			text := `{"cniVersion":"1.1.0","name":"net"`
			if tt.keys != "" {
				text += "," + tt.keys
			}
			var got model.AddressRequest
			var mac net.HardwareAddr
			c, err := parseConf("ADD", []byte(text+"}"))
			if err == nil {
				err = c.validate()
			}
			var args podArgs
			if err == nil {
				args, err = parseArgs(tt.args, false)
			}
			if err == nil {
				got, mac, err = c.request(args, tt.of)
			}
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("error %v, want %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if marshal(t, got) != marshal(t, tt.want) || mac.String() != tt.mac {
				t.Errorf("asked for %s and %s, want %s and %s", marshal(t, got), mac, marshal(t, tt.want), tt.mac)
			}
		})
	}
	for text, want := range map[string]uint{
		`{`:                                   wire.CodeDecoding,
		`[]`:                                  wire.CodeDecoding,
		`{"cniVersion":"9.0"}`:                wire.CodeIncompatibleVersion,
		`{"cniVersion":"0.2.0","name":"n"}`:   wire.CodeIncompatibleVersion,
		`{"cniVersion":"1.1.0"}`:              wire.CodeInvalidConfig,
		`{"cniVersion":"1.1.0","name":"a b"}`: wire.CodeInvalidConfig,
		`{"cniVersion":"1.1.0","name":"n","prevResult":{"ips":[{}]}}`:   wire.CodeDecoding,
		`{"cniVersion":"1.1.0","name":"n","prevResult":"what is this"}`: wire.CodeDecoding,
	} {
		if _, err := parseConf("ADD", []byte(text)); asWire(err).Code != want {
			t.Errorf("%s: %v, want code %d", text, err, want)
		}
	}
}

// FuzzStdin: no configuration, arguments or ids bring the server down, and every failure
// is a CNI error with a code.
func FuzzStdin(f *testing.F) {
	f.Add("DEL", "c1", "eth0", "K8S_POD_NAME=a;K8S_POD_NAMESPACE=b", []byte(`{"cniVersion":"1.1.0","name":"net"}`))
	f.Add("ADD", "c1", "eth0", "IP=10.0.0.1", []byte(`{"cniVersion":"0.3.1","name":"net","prevResult":{"cniVersion":"0.3.1","ips":[{"version":"4","address":"10.0.0.1/24"}]}}`))
	f.Add("CHECK", "c1", "e", ";;=;", []byte(`{"cniVersion":"1.0.0","name":"net","prevResult":{"interfaces":[null],"ips":[null],"routes":[{"dst":"0.0.0.0/0"}]}}`))
	f.Add("GC", "", "", "", []byte(`{"cniVersion":"1.1.0","name":"net","cni.dev/valid-attachments":[{"containerID":"a","ifname":"b"}]}`))
	f.Add("STATUS", "", "", "", []byte(`{"cniVersion":"1.1.0","name":"net","args":{"cni":{"ips":[1]}}}`))
	r := newRig(f)
	s, err := New(r.config)
	if err != nil {
		f.Fatal(err)
	}
	ns := sandbox.Open(f, "/proc/self/ns/net") // refused before anything is done in it
	f.Fuzz(func(t *testing.T, command, container, ifName, args string, stdin []byte) {
		_, err := s.guarded(t.Context(), t.Context(), &wire.Request{Version: 1, Command: command, ContainerID: container, IfName: ifName, Args: args, Stdin: stdin, NetNS: "/x"}, ns)
		if err == nil {
			return
		}
		var e *wire.Error
		if !errors.As(err, &e) || e.Code == 0 || strings.Contains(e.Msg, "failed on this request") {
			t.Errorf("error %#v", err)
		}
	})
}

func TestDescriptorOfGarbage(t *testing.T) {
	if f, err := descriptor(bytes.Repeat([]byte{0xff}, unix.CmsgSpace(4))); f != nil || err == nil {
		t.Errorf("%v, %v", f, err)
	}
}
