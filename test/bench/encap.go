package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/causeway-net/causeway/test/lab"
	"github.com/causeway-net/causeway/test/lab/traffic"
	"github.com/causeway-net/causeway/test/topology/fabric"
)

// path is one way between pods of two racks.
type path struct {
	name  string
	pool  string // the pool's modes
	felix string // FelixConfiguration's spec
	mtu   int    // of the pods
	// device makes the plain nodes' tunnel, where OWN and OTHER are the nodes' numbers; empty:
	// the router knows the pods.
	device []string
	noTx   bool // the plain nodes' device computes no checksums itself
}

var paths = []path{
	{name: "direct", pool: "ipipMode: Never, vxlanMode: Never", mtu: 1500},
	{name: "VXLAN", pool: "ipipMode: Never, vxlanMode: Always", mtu: 1450, device: vxlanDevice, noTx: true},
	{name: "VXLAN with checksum offload", pool: "ipipMode: Never, vxlanMode: Always", felix: "featureDetectOverride: ChecksumOffloadBroken=false",
		mtu: 1450, device: vxlanDevice},
	{name: "IPIP", pool: "ipipMode: Always, vxlanMode: Never", mtu: 1480,
		device: []string{"ip link add tunnel type ipip remote any local 10.60.OWN.2 ttl 64"}},
}

var vxlanDevice = []string{
	"ip link add tunnel address 02:00:00:00:00:0OWN type vxlan id 4096 dstport 4789 local 10.60.OWN.2 nolearning",
	"bridge fdb append 02:00:00:00:00:0OTHER dev tunnel dst 10.60.OTHER.2 self permanent",
	"ip neigh replace 10.60.OTHER.2 lladdr 02:00:00:00:00:0OTHER dev tunnel nud permanent",
}

// encapBench compares throughput between pods with that between pods that were wired by
// hand, over each path. Without IPIP in the kernel it leaves that out, and says so.
func (b *bench) encapBench(ctx context.Context) error {
	if _, err := exec.LookPath("iperf3"); err != nil {
		return fmt.Errorf("%w (apt-get install iperf3)", err)
	}
	l, err := b.up(ctx, "test/bench/encap/encap.clab.yml", "cwb-encap")
	if err != nil {
		return err
	}
	defer b.down(ctx, l)
	f := &fabric.Fabric{Lab: l}
	for _, p := range paths {
		if p.name == "IPIP" && !hasIPIP(ctx, l.Node("p1")) {
			b.say("this kernel has no IPIP: BENCH=vm measures it under one that has")
			continue
		}
		if err := b.onPath(ctx, f, p); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return nil
}

func hasIPIP(ctx context.Context, n *lab.Node) bool {
	if _, err := n.Exec(ctx, "ip", "link", "add", "probe", "type", "ipip", "remote", "192.0.2.1"); err != nil {
		return false
	}
	_, err := n.Exec(ctx, "ip", "link", "delete", "probe")
	return err == nil
}

func (b *bench) onPath(ctx context.Context, f *fabric.Fabric, p path) (err error) {
	ours, down1, err := b.causewayPods(ctx, f, p)
	defer func() { err = errors.Join(err, down1()) }()
	if err != nil {
		return err
	}
	plain, down2, err := plainPods(ctx, f.Lab, p)
	defer func() { err = errors.Join(err, down2()) }()
	if err != nil {
		return err
	}
	for _, w := range []*wire{ours, plain} {
		if err := b.poll(ctx, lab.Slow(30*time.Second), "pods reach each other", func() error { return reaches(ctx, w) }); err != nil {
			return err
		}
		stop, err := w.serve(ctx)
		if err != nil {
			return err
		}
		defer stop()
	}
	versus := "ip link, ip route"
	if p.noTx {
		versus += ", no checksum offload"
	}
	sides := [...]side{
		{wire: ours},
		{wire: plain, name: versus, prepare: func() error { return track(ctx, f.Lab, false) }},
		{wire: plain, name: versus + ", connections tracked", prepare: func() error { return track(ctx, f.Lab, true) }},
	}
	measure := func(name, unit string, least float64, one func(*wire) (float64, error)) error {
		var cs []*Comparison
		for _, s := range sides[1:] {
			cs = append(cs, &Comparison{Name: "pod to pod, " + p.name + ", " + name, Versus: s.name, Unit: unit, Least: least})
		}
		// Throughput moves with what else the machine does: many short rounds say more than few
		// long ones.
		rounds := 2 * b.size.pairs
		for i := range rounds {
			var got [len(sides)]float64
			for k := range sides { // each is the first one in turn
				k = (k + i) % len(sides)
				err := sides[k].ready()
				if err == nil {
					got[k], err = one(sides[k].wire)
				}
				if err != nil {
					return err
				}
			}
			for k, c := range cs {
				c.add(got[0], got[k+1])
			}
			b.say("%s, round %d/%d: %.2f against %.2f and %.2f %s", cs[0].Name, i+1, rounds, got[0], got[1], got[2], unit)
		}
		b.compare(cs...)
		return nil
	}
	if err := measure("processor time of one packet", "µs", 0, (*wire).packet); err != nil {
		return err
	}
	for _, streams := range []int{1, 8} {
		name := fmt.Sprintf("TCP, %d streams", streams)
		if streams == 1 {
			name = "TCP, 1 stream"
		}
		err := measure(name, "Gbit/s", 0.97, func(w *wire) (float64, error) { return w.throughput(ctx, streams, time.Second) })
		if err != nil {
			return err
		}
	}
	return nil
}

// side is one of those that are compared: a path, and what its nodes do with its packets.
type side struct {
	*wire
	name    string
	prepare func() error // nil: nothing
}

func (s *side) ready() error {
	if s.prepare == nil {
		return nil
	}
	return s.prepare()
}

// track has the plain nodes track connections, as all nodes do where anything translates Services or
// asks which packets answer others; or not. One rule makes the kernel do so.
func track(ctx context.Context, l *lab.Lab, on bool) error {
	rules := "add table inet track\ndelete table inet track\n"
	if on {
		rules += "table inet track { chain forward { type filter hook forward priority filter; ct state established,related accept; }; }\n"
	}
	for _, name := range []string{"p1", "p2"} {
		cmd := l.Node(name).Command(ctx, "nft", "-f", "-")
		cmd.Stdin = strings.NewReader(rules)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: nft: %w: %s", name, err, out)
		}
	}
	return nil
}

// wire is two pods and what one reaches the other at.
type wire struct {
	from, to *lab.Pod
	at       netip.Addr
}

func reaches(ctx context.Context, w *wire) error {
	to := traffic.Endpoint{Space: w.to, Addrs: []netip.Addr{w.at}}
	if m := traffic.PingAll(ctx, []traffic.Endpoint{{Space: w.from}}, []traffic.Endpoint{to}, traffic.PingConfig{}); len(m.Failed()) > 0 {
		return errors.New(m.String())
	}
	return nil
}

// serve runs iperf3's server in the target until stop is called.
func (w *wire) serve(ctx context.Context) (stop func(), err error) {
	cmd := w.to.Command(ctx, "iperf3", "-s")
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }, nil
}

// throughput is what the target took in, in Gbit/s.
func (w *wire) throughput(ctx context.Context, streams int, d time.Duration) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, d+lab.Slow(30*time.Second))
	defer cancel()
	var v struct {
		Error string `json:"error"`
		End   struct {
			Received struct {
				BitsPerSecond float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		} `json:"end"`
	}
	err := fabric.Poll(ctx, "iperf3", func() error { // its server takes a moment to listen, and to be free again
		out, err := w.from.Exec(ctx, "iperf3", "-J", "-c", w.at.String(), "-P", strconv.Itoa(streams), "-t", strconv.Itoa(int(d.Seconds())))
		v.Error = ""
		if jerr := json.Unmarshal([]byte(out), &v); jerr != nil {
			return errors.Join(err, jerr)
		}
		if v.Error != "" {
			return errors.New(v.Error)
		}
		return err
	})
	if err == nil && v.End.Received.BitsPerSecond == 0 {
		err = errors.New("iperf3 measured nothing")
	}
	return v.End.Received.BitsPerSecond / 1e9, err
}

// causewayPods brings the path about by the pool's modes, and a pod on each node.
func (b *bench) causewayPods(ctx context.Context, f *fabric.Fabric, p path) (*wire, func() error, error) {
	down := func() error { return nil }
	folder := f.Shared("manifests")
	pool := "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: pods}\nspec: {cidr: 10.62.0.0/16, " + p.pool + ", natOutgoing: false}\n"
	felix := "apiVersion: projectcalico.org/v3\nkind: FelixConfiguration\nmetadata: {name: default}\nspec: {" + p.felix + "}\n"
	for file, text := range map[string]string{"pool.yaml": pool, "felix.yaml": felix} {
		if err := os.WriteFile(filepath.Join(folder, file), []byte(text), 0o644); err != nil {
			return nil, down, err
		}
	}
	for _, n := range f.Agents() {
		err := b.poll(ctx, lab.Slow(30*time.Second), n.Name()+" has the mode "+p.name, func() error {
			st, err := fabric.Status(ctx, n)
			if err == nil && (st.MTU != p.mtu || st.Encapsulation.Waiting != "") {
				err = fmt.Errorf("the pods' MTU is %d, want %d; waiting for %q", st.MTU, p.mtu, st.Encapsulation.Waiting)
			}
			if err == nil {
				err = fabric.Established(ctx, n)
			}
			if err == nil {
				err = n.CNIStatus(ctx)
			}
			return err
		})
		if err != nil {
			return nil, down, err
		}
	}
	var pods []*lab.Pod
	down = func() error {
		var errs []error
		for _, pod := range pods {
			errs = append(errs, pod.Node().DeletePod(context.WithoutCancel(ctx), pod.Name))
		}
		return errors.Join(errs...)
	}
	for i, n := range f.Agents() {
		pod, err := n.AddPod(ctx, n.Name()+"-pod", lab.PodOptions{})
		if err != nil {
			return nil, down, err
		}
		pods = append(pods, pod)
		if p.device == nil {
			if _, err := f.Node("r").Exec(ctx, "ip", "route", "replace", pod.Address(false).String(), "via", fmt.Sprintf("10.60.%d.2", i+1)); err != nil {
				return nil, down, err
			}
		}
	}
	return &wire{pods[0], pods[1], pods[1].Address(false)}, down, nil
}

// plainPods does the same by hand.
func plainPods(ctx context.Context, l *lab.Lab, p path) (*wire, func() error, error) {
	var pods []*lab.Pod
	down := func() error {
		ctx := context.WithoutCancel(ctx)
		var errs []error
		for _, pod := range pods {
			if p.device != nil {
				_, err := pod.Node().Exec(ctx, "ip", "link", "delete", "tunnel")
				errs = append(errs, err)
			}
			errs = append(errs, pod.RemoveSandbox(ctx))
		}
		return errors.Join(errs...)
	}
	for i := range 2 {
		n, own, other := l.Node(fmt.Sprintf("p%d", i+1)), 3+i, 4-i
		numbers := strings.NewReplacer("OWN", strconv.Itoa(own), "OTHER", strconv.Itoa(other))
		pod, err := n.NewSandbox(ctx, n.Name()+"-pod", lab.PodOptions{})
		if err != nil {
			return nil, down, err
		}
		pods = append(pods, pod)
		run := func(exec func(context.Context, ...string) (string, error), lines ...string) {
			for _, line := range lines {
				if err == nil {
					_, err = exec(ctx, strings.Fields(numbers.Replace(line))...)
				}
			}
		}
		run(n.Exec, fmt.Sprintf("ip link add pod mtu %d type veth peer name eth0 mtu %d netns %s", p.mtu, p.mtu, pod.Name),
			"ip link set pod up", "ip address add 10.61.OWN.1/24 dev pod")
		run(pod.Exec, "ip link set eth0 up", "ip address add 10.61.OWN.2/24 dev eth0", "ip route add default via 10.61.OWN.1")
		run(n.Exec, p.device...)
		if p.device == nil {
			run(l.Node("r").Exec, "ip route replace 10.61.OWN.0/24 via 10.60.OWN.2")
		} else {
			run(n.Exec, fmt.Sprintf("ip link set tunnel mtu %d up", p.mtu), "ip route replace 10.61.OTHER.0/24 via 10.60.OTHER.2 dev tunnel onlink")
		}
		if err == nil && p.noTx {
			err = n.Do(func() error { return txChecksumOff("tunnel") })
		}
		if err != nil {
			return nil, down, err
		}
	}
	return &wire{pods[0], pods[1], netip.MustParseAddr("10.61.4.2")}, down, nil
}

// txChecksumOff is `ethtool -K LINK tx off` (include/uapi/linux/ethtool.h), as Causeway does
// it at VXLAN devices: it is part of the mode and not of the program that is compared.
func txChecksumOff(link string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	value := struct{ cmd, data uint32 }{0x17, 0} // ETHTOOL_STXCSUM
	request := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: unsafe.Pointer(&value)}
	copy(request.name[:], link)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
		return fmt.Errorf("link %s: transmit checksums: %w", link, errno)
	}
	return nil
}
