package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/causeway-net/causeway/cni-plugin/internal/sandbox"
	"github.com/causeway-net/causeway/cni-plugin/wire"
	"github.com/causeway-net/causeway/internal/model"
)

// TestSpecVersions attaches, checks and detaches a pod in every version of the
// specification, through libcni and the real plugin, and pings it.
func TestSpecVersions(t *testing.T) {
	for _, v := range wire.SpecVersions {
		t.Run(v, func(t *testing.T) {
			r := newRig(t)
			r.start()
			ns := sandbox.Pod(t)
			l, rt := r.list(v, `,"dns":{"nameservers":["10.96.0.10"]}`), runtime("c1", ns)
			raw, err := r.cni.AddNetworkList(context.Background(), l, rt)
			if err != nil {
				t.Fatal(err)
			}
			if text := marshal(t, raw); !strings.Contains(text, fmt.Sprintf(`"cniVersion":%q`, v)) || strings.Contains(text, `"mtu"`) != (v == "1.1.0") {
				t.Errorf("result %s", text)
			}
			res, err := current.NewResultFromResult(raw)
			if err != nil {
				t.Fatal(err)
			}
			ep, _ := r.ipam.Endpoint(model.AttachmentKey{ContainerID: "c1", IfName: "eth0"})
			if ep.Namespace != "default" || ep.Pod != "pod-c1" || ep.PodUID != "uid-c1" || ep.Network != "net" || ep.MTU != 1450 || ep.NetNSInode == 0 || ep.SettingsDigest == "" || ep.HostInterface != hostNameOf(rt) {
				t.Errorf("record %+v", ep)
			}
			if len(res.Interfaces) != 2 || res.Interfaces[0].Name != ep.HostInterface || res.Interfaces[0].Sandbox != "" || res.Interfaces[0].Mac != "ee:ee:ee:ee:ee:ee" ||
				res.Interfaces[1].Name != "eth0" || res.Interfaces[1].Sandbox != ns || res.Interfaces[1].Mac != ep.ContainerMAC {
				t.Errorf("interfaces %s", marshal(t, res.Interfaces))
			}
			if len(res.IPs) != 2 || res.IPs[0].Address.String() != "10.9.0.1/32" || *res.IPs[0].Interface != 1 || res.IPs[0].Gateway.String() != "169.254.1.1" ||
				res.IPs[1].Address.String() != "fd00:9::1/128" || res.IPs[1].Gateway.String() != "fe80::ecee:eeff:feee:eeee" {
				t.Errorf("ips %s", marshal(t, res.IPs))
			}
			if len(res.Routes) != 2 || res.Routes[0].Dst.String() != "0.0.0.0/0" || res.Routes[1].Dst.String() != "::/0" {
				t.Errorf("routes %s", marshal(t, res.Routes))
			}
			if len(res.DNS.Nameservers) != 1 {
				t.Errorf("dns %+v", res.DNS)
			}
			sandbox.Run(t, "ping", "-c1", "-W2", "10.9.0.1")
			sandbox.Run(t, "ping", "-c1", "-W2", "fd00:9::1")
			err = r.check(l, rt)
			if old := v == "0.3.0" || v == "0.3.1"; old != (err != nil) {
				t.Errorf("CHECK: %v", err)
			}
			if err := r.cni.GetStatusNetworkList(context.Background(), l); err != nil {
				t.Errorf("STATUS: %v", err)
			}
			for range 2 {
				r.del(l, rt)
				r.clean()
			}
			if want := []string{"Assign", "Wired", "Release", "Release"}; !slices.Equal(r.ipam.called(), want) {
				t.Errorf("ipam calls %v, want %v", r.ipam.called(), want)
			}
		})
	}
}

// TestOrder: the address is durable before a link bears it, the record before the rules,
// and the link is gone before the address is free (I1).
func TestOrder(t *testing.T) {
	r := newRig(t)
	var order []string
	host := hostNameOf(runtime("c1", ""))
	note := func(method string) {
		_, err := net.InterfaceByName(host)
		order = append(order, fmt.Sprintf("%s link=%v", method, err == nil))
	}
	r.ipam.callBack(note)
	r.dp.callBack(note)
	r.start()
	l, rt := r.list("1.1.0", ""), runtime("c1", sandbox.Pod(t))
	r.add(l, rt)
	r.del(l, rt)
	want := []string{"Assign link=false", "Wired link=true", "Attach link=true", "Detach link=false", "Release link=false"}
	if !slices.Equal(order, want) {
		t.Errorf("order %v, want %v", order, want)
	}
}

// TestUndo fails each step of ADD in turn: nothing is left, and the next ADD succeeds.
func TestUndo(t *testing.T) {
	for _, step := range []string{"Assign", "Wired", "Attach"} {
		t.Run(step, func(t *testing.T) {
			r := newRig(t)
			r.start()
			l, rt := r.list("1.1.0", ""), runtime("c1", sandbox.Pod(t))
			r.ipam.set(step, errors.New("made to fail"))
			r.dp.set(step, errors.New("made to fail"))
			if _, err := r.cni.AddNetworkList(context.Background(), l, rt); err == nil || !strings.Contains(err.Error(), "made to fail") {
				t.Fatalf("ADD: %v", err)
			}
			r.clean()
			r.ipam.set(step, nil)
			r.dp.set(step, nil)
			first := r.add(l, rt)
			// An ADD that fails over an endpoint that was there leaves it its address.
			r.ipam.set(step, errors.New("made to fail"))
			r.dp.set(step, errors.New("made to fail"))
			if _, err := r.cni.AddNetworkList(context.Background(), l, rt); err == nil {
				t.Fatal("ADD did not fail")
			}
			if r.ipam.endpoints() != 1 {
				t.Error("the address of a running pod was released")
			}
			sandbox.Run(t, "ip", "link", "show", hostNameOf(rt))
			r.ipam.set(step, nil)
			r.dp.set(step, nil)
			if again := r.add(l, rt); marshal(t, again) != marshal(t, first) {
				t.Errorf("ADD again: %s, want %s", marshal(t, again), marshal(t, first))
			}
			r.del(l, rt)
			r.clean()
		})
	}
	t.Run("a stranger's eth0", func(t *testing.T) {
		r := newRig(t)
		r.start()
		ns := sandbox.Pod(t)
		sandbox.In(t, ns, "ip", "link", "add", "eth0", "type", "bridge")
		if _, err := r.cni.AddNetworkList(context.Background(), r.list("1.1.0", ""), runtime("c1", ns)); err == nil || !strings.Contains(err.Error(), "has an interface eth0 already") {
			t.Errorf("ADD: %v", err)
		}
		r.clean()
		sandbox.In(t, ns, "ip", "link", "show", "eth0")
	})
}

// TestDelFails: what could not be removed keeps its address, and DEL again ends it.
func TestDelFails(t *testing.T) {
	r := newRig(t)
	r.start()
	l, rt := r.list("1.1.0", ""), runtime("c1", sandbox.Pod(t))
	r.add(l, rt)
	r.dp.set("Detach", errors.New("made to fail"))
	if err := r.cni.DelNetworkList(context.Background(), l, rt); err == nil {
		t.Error("DEL did not fail")
	}
	if r.ipam.endpoints() != 1 {
		t.Error("the address was released all the same")
	}
	r.dp.set("Detach", nil)
	r.del(l, rt)
	r.clean()
}

// TestAddAgain: the same ADD answers the same and mends; with another namespace it rewires.
func TestAddAgain(t *testing.T) {
	r := newRig(t)
	r.start()
	ns := sandbox.Pod(t)
	l, rt := r.list("1.1.0", ""), runtime("c1", ns)
	first := marshal(t, r.add(l, rt))
	sandbox.In(t, ns, "ip", "route", "del", "default")
	if again := marshal(t, r.add(l, rt)); again != first {
		t.Errorf("ADD again: %s, want %s", again, first)
	}
	if err := r.check(l, rt); err != nil {
		t.Error(err)
	}
	other := sandbox.Pod(t)
	rt.NetNS = other
	moved := r.add(l, rt)
	if moved.Interfaces[1].Sandbox != other || moved.IPs[0].Address.String() != "10.9.0.1/32" {
		t.Errorf("rewired: %s", marshal(t, moved))
	}
	if err := r.check(l, rt); err != nil {
		t.Error(err)
	}
	sandbox.In(t, ns, "sh", "-c", "! ip link show eth0")
	sandbox.Run(t, "ping", "-c1", "-W2", "10.9.0.1")
	r.del(l, rt)
	r.clean()
}

// TestSandboxAgain: kubelet restarts a pod's sandbox; the old one's DEL comes late.
func TestSandboxAgain(t *testing.T) {
	r := newRig(t)
	r.start()
	l, old, fresh := r.list("1.1.0", ""), runtime("c1", sandbox.Pod(t)), runtime("c2", sandbox.Pod(t))
	fresh.Args = old.Args
	r.add(l, old)
	r.add(l, fresh)
	r.del(l, old)
	if err := r.check(l, fresh); err != nil {
		t.Error(err)
	}
	sandbox.Run(t, "ping", "-c1", "-W2", "10.9.0.2")
	r.del(l, fresh)
	r.clean()
}

// TestDelOfTheGone: namespace gone, record gone, everything unknown.
func TestDelOfTheGone(t *testing.T) {
	r := newRig(t)
	r.start()
	ns := sandbox.Pod(t)
	l, rt := r.list("1.1.0", ""), runtime("c1", ns)
	r.add(l, rt)
	sandbox.Run(t, "ip", "netns", "del", filepath.Base(ns))
	r.del(l, rt)
	r.clean()

	// The path is there and no namespace any more.
	rt = runtime("c2", sandbox.Pod(t))
	r.add(l, rt)
	rt.NetNS = "/dev/null"
	r.del(l, rt)
	r.clean()

	// The record is lost: the link is found by its mark.
	rt = runtime("c3", sandbox.Pod(t))
	r.add(l, rt)
	r.ipam.mu.Lock()
	clear(r.ipam.eps)
	r.ipam.mu.Unlock()
	r.del(l, rt)
	r.clean()

	// Never heard of, and with a configuration that ADD would refuse.
	r.del(r.list("1.1.0", `,"ipam":{"type":"host-local"},"mtu":-1`), runtime("never", "/run/netns/never"))
	rt = runtime("never", "")
	r.del(l, rt)
}

// TestCheck names the damage, each with its code.
func TestCheck(t *testing.T) {
	r := newRig(t)
	r.start()
	ns := sandbox.Pod(t)
	l, rt := r.list("1.1.0", ""), runtime("c1", ns)
	r.add(l, rt)
	host := hostNameOf(rt)
	key := model.AttachmentKey{ContainerID: "c1", IfName: "eth0"}
	record := func(change func(*model.Endpoint)) func() {
		return func() {
			r.ipam.mu.Lock()
			defer r.ipam.mu.Unlock()
			ep := r.ipam.eps[key]
			change(&ep)
			r.ipam.eps[key] = ep
		}
	}
	sh := func(command string) func() { return func() { sandbox.Run(t, "sh", "-ec", command) } }
	pod := func(command string) func() { return func() { sandbox.In(t, ns, "sh", "-ec", command) } }
	for _, tt := range []struct {
		code   uint
		says   string
		damage func()
	}{
		{CodeRecord, "no record", record(func(ep *model.Endpoint) { ep.HostInterface = "" })},
		{CodeRecord, "network namespace", record(func(ep *model.Endpoint) { ep.NetNSInode = 7 })},
		{CodeRecord, "address 10.9.0.77 is missing", record(func(ep *model.Endpoint) { ep.Addresses = []netip.Addr{netip.MustParseAddr("10.9.0.77")} })},
		{CodeRecord, "has been changed", record(func(ep *model.Endpoint) { ep.SettingsDigest = "other" })},
		{CodeHostLink, "host interface " + host + ": is down, want up", sh("ip link set " + host + " down")},
		{CodePodLink, "pod interface eth0 mtu: is 1400, want 1450", pod("ip link set eth0 mtu 1400")},
		{CodeAddress, "address 10.9.0.1/32: is missing", pod("ip addr del 10.9.0.1/32 dev eth0; ip route replace 169.254.1.1 dev eth0 scope link; ip route replace default via 169.254.1.1")},
		{CodeRoute, "route 0.0.0.0/0 via 169.254.1.1: is missing", pod("ip route del default")},
		{CodeNeighbour, "neighbour 169.254.1.1: is missing", pod("ip neigh del 169.254.1.1 dev eth0")},
		{CodeSysctl, "sysctl net.ipv4.conf." + host + ".proxy_arp: is 0, want 1", sh("sysctl -qw net.ipv4.conf." + host + ".proxy_arp=0")},
		{CodeDataplane, "route 10.9.0.1 dev " + host + " is missing", sh("ip route del 10.9.0.1")},
	} {
		before, _ := r.ipam.Endpoint(key)
		tt.damage()
		err := r.check(l, rt)
		if code(err) != tt.code || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("CHECK: code %d, %v; want %d, %q", code(err), err, tt.code, tt.says)
		}
		record(func(ep *model.Endpoint) { *ep = before })()
		r.add(l, rt)
		if err := r.check(l, rt); err != nil {
			t.Errorf("CHECK after mending %q: %v", tt.says, err)
		}
	}
	rt.NetNS = sandbox.Pod(t)
	if err := r.check(l, rt); code(err) != CodeRecord {
		t.Errorf("CHECK in another namespace: %v", err)
	}
	rt.NetNS = ns
	r.del(l, rt)
	if resp, err := r.raw(r.request("CHECK", "c1"), ns); err != nil || resp.Error == nil || resp.Error.Code != wire.CodeInvalidConfig {
		t.Errorf("CHECK without prevResult: %+v, %v", resp.Error, err)
	}
	r.clean()
}

// TestKeepLinks: what others change of a host's end is put right without a request.
func TestKeepLinks(t *testing.T) {
	r := newRig(t)
	r.config.Resync = 20 * time.Millisecond
	r.start()
	l, rt := r.list("1.1.0", ""), runtime("c1", sandbox.Pod(t))
	r.add(l, rt)
	host := hostNameOf(rt)
	sandbox.Run(t, "sysctl", "-qw", "net.ipv4.conf."+host+".rp_filter=2", "net.ipv6.conf."+host+".accept_ra=1")
	sandbox.Run(t, "ip", "link", "set", host, "mtu", "1300")
	eventually(t, "the link is mended", func() bool { return r.check(l, rt) == nil })
	r.del(l, rt)
	r.clean()
}

// TestGC releases exactly what is not listed, of its own network only.
func TestGC(t *testing.T) {
	r := newRig(t)
	r.start()
	l := r.list("1.1.0", "")
	other := r.list("1.1.0", "")
	other.Name = "other"
	keep, drop, lost, foreign := runtime("keep", sandbox.Pod(t)), runtime("drop", sandbox.Pod(t)), runtime("lost", sandbox.Pod(t)), runtime("foreign", sandbox.Pod(t))
	for _, rt := range []*libcni.RuntimeConf{keep, drop, lost} {
		r.add(l, rt)
	}
	r.add(other, foreign)
	// Without libcni's cache, so that the plugin's GC does all the work.
	plain := libcni.NewCNIConfigWithCacheDir([]string{sandbox.Bin()}, t.TempDir(), nil)
	r.ipam.mu.Lock()
	delete(r.ipam.eps, model.AttachmentKey{ContainerID: "lost", IfName: "eth0"})
	unwired := model.AttachmentKey{ContainerID: "unwired", IfName: "eth0"}
	r.ipam.eps[unwired] = model.Endpoint{Key: unwired, Network: "net"}
	r.ipam.callBack(func(method string) { // at the release no link bears the address
		if _, err := net.InterfaceByName(hostNameOf(drop)); method == "Retain" && err == nil {
			t.Error("the address was released before the link was removed")
		}
	})
	r.ipam.mu.Unlock()
	gc := func(valid ...types.GCAttachment) error {
		return plain.GCNetworkList(context.Background(), l, &libcni.GCArgs{ValidAttachments: valid})
	}
	if err := gc(types.GCAttachment{ContainerID: "keep", IfName: "eth0"}); err != nil {
		t.Fatal(err)
	}
	if n := r.ipam.endpoints(); n != 2 {
		t.Errorf("%d attachments are left, want 2", n)
	}
	for _, rt := range []*libcni.RuntimeConf{drop, lost} {
		sandbox.Run(t, "sh", "-c", "! ip link show "+hostNameOf(rt))
	}
	for n, rt := range map[*libcni.NetworkConfigList]*libcni.RuntimeConf{l: keep, other: foreign} {
		if err := r.check(n, rt); err != nil {
			t.Errorf("CHECK of %s: %v", rt.ContainerID, err)
		}
	}
	// What cannot be detached keeps its address.
	r.dp.set("Detach", errors.New("made to fail"))
	if err := gc(); err == nil || r.ipam.endpoints() != 2 {
		t.Errorf("GC: %v, %d attachments are left", err, r.ipam.endpoints())
	}
	r.dp.set("Detach", nil)
	r.add(l, keep)
	if err := gc(); err != nil || r.ipam.endpoints() != 1 {
		t.Errorf("GC of all: %v, %d attachments are left", err, r.ipam.endpoints())
	}
	if err := plain.GCNetworkList(context.Background(), l, nil); code(err) != wire.CodeInvalidConfig || !strings.Contains(err.Error(), "valid-attachments: is missing") {
		t.Errorf("GC without a list: %v", err)
	}
	r.del(other, foreign)
	r.clean()
}

// TestParallel attaches and detaches 50 pods at once.
func TestParallel(t *testing.T) {
	r := newRig(t)
	r.start()
	l := r.list("1.1.0", "")
	var wg sync.WaitGroup
	for i := range 50 {
		rt := runtime(fmt.Sprintf("c%d", i), sandbox.Pod(t))
		wg.Go(func() {
			for _, step := range []func() error{
				func() error { _, err := r.cni.AddNetworkList(context.Background(), l, rt); return err },
				func() error { return r.check(l, rt) },
				func() error { return r.cni.DelNetworkList(context.Background(), l, rt) },
			} {
				if err := step(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	r.clean()
}

// TestCnitool drives the plugin with containernetworking's own tool.
func TestCnitool(t *testing.T) {
	r := newRig(t)
	r.start()
	dir := t.TempDir()
	conf := fmt.Sprintf(`{"cniVersion":"1.1.0","name":"net","plugins":[{"type":"causeway-cni","socket":%q,"capabilities":{"ips":true,"mac":true}}]}`, r.socket)
	if err := os.WriteFile(filepath.Join(dir, "10-net.conflist"), []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	ns := sandbox.Pod(t)
	tool := func(command string) string {
		t.Helper()
		cmd := exec.Command(filepath.Join(sandbox.Bin(), "cnitool"), command, "net", ns)
		cmd.Env = append(os.Environ(), "CNI_PATH="+sandbox.Bin(), "NETCONFPATH="+dir, `CAP_ARGS={"ips":["10.9.77.7/24"],"mac":"02:00:00:00:77:07"}`)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("cnitool %s: %v\n%s", command, err, out)
		}
		return string(out)
	}
	if out := tool("add"); !strings.Contains(out, "10.9.77.7/32") || !strings.Contains(out, "02:00:00:00:77:07") {
		t.Errorf("cnitool add: %s", out)
	}
	sandbox.Run(t, "ping", "-c1", "-W2", "10.9.77.7")
	tool("check")
	tool("status")
	tool("del")
	tool("del")
	r.clean()
}
