package child_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	api "github.com/osrg/gobgp/v3/api"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/causeway-net/causeway/bgp/child"
)

const (
	ourAS  = 65001
	ourIP  = "10.9.0.1"
	within = 20 * time.Second
)

// logBuffer collects log lines.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// running is a speaker under test.
type running struct {
	*child.Instance
	api  api.GobgpApiClient
	conn *grpc.ClientConn
	run  string // its RunDir
	log  *logBuffer
}

func self(t testing.TB) string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return exe
}

// startSpeaker starts a speaker that is stopped at the test's end.
func startSpeaker(t testing.TB, change func(*child.Config)) *running {
	t.Helper()
	log := &logBuffer{}
	cfg := child.Config{
		Exe: self(t), Args: []string{"speaker"}, RunDir: t.TempDir(),
		Log: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelInfo})),
	}
	if change != nil {
		change(&cfg)
	}
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	inst, err := child.Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), within)
		defer cancel()
		if err := inst.Stop(ctx, false); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("speaker's log:\n%s", log)
		}
	})
	conn, err := inst.Dial(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &running{inst, api.NewGobgpApiClient(conn), conn, cfg.RunDir, log}
}

// startBGP opens port 179 and adds the peers.
func (r *running) startBGP(t testing.TB, change func(*api.Peer), peers ...*host) {
	t.Helper()
	_, err := r.api.StartBgp(t.Context(), &api.StartBgpRequest{Global: &api.Global{
		Asn: ourAS, RouterId: ourIP, ListenPort: 179, ListenAddresses: []string{ourIP},
		GracefulRestart: &api.GracefulRestart{Enabled: true, RestartTime: 60},
	}})
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range peers {
		p := &api.Peer{
			Conf:            &api.PeerConf{NeighborAddress: h.ip, PeerAsn: h.as},
			Transport:       &api.Transport{PassiveMode: true},
			EbgpMultihop:    &api.EbgpMultihop{Enabled: true, MultihopTtl: 64},
			GracefulRestart: &api.GracefulRestart{Enabled: true, RestartTime: 60},
			AfiSafis: []*api.AfiSafi{{
				Config:            &api.AfiSafiConfig{Family: &api.Family{Afi: api.Family_AFI_IP, Safi: api.Family_SAFI_UNICAST}, Enabled: true},
				MpGracefulRestart: &api.MpGracefulRestart{Config: &api.MpGracefulRestartConfig{Enabled: true}},
			}},
		}
		if change != nil {
			change(p)
		}
		if _, err := r.api.AddPeer(t.Context(), &api.AddPeerRequest{Peer: p}); err != nil {
			t.Fatal(err)
		}
	}
	// An idle peer closes what it accepts.
	await(t, "peers listening", func() bool {
		for _, p := range r.peers(t) {
			if p.State.SessionState < api.PeerState_ACTIVE {
				return false
			}
		}
		return true
	})
}

// peers lists what ListPeer answers, by address.
func (r *running) peers(t testing.TB) map[string]*api.Peer {
	t.Helper()
	s, err := r.api.ListPeer(t.Context(), &api.ListPeerRequest{})
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]*api.Peer{}
	for {
		m, err := s.Recv()
		if err == io.EOF {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		out[m.Peer.Conf.NeighborAddress] = m.Peer
	}
}

func (r *running) awaitEstablished(t testing.TB, hosts ...*host) {
	t.Helper()
	await(t, "all sessions Established", func() bool {
		ps := r.peers(t)
		for _, h := range hosts {
			if ps[h.ip].GetState().GetSessionState() != api.PeerState_ESTABLISHED {
				return false
			}
		}
		return true
	})
}

func (r *running) awaitDeath(t testing.TB) child.Death {
	t.Helper()
	select {
	case <-r.Died():
	case <-time.After(within):
		t.Fatal("the speaker lives on")
	}
	return r.Death()
}

// await polls until cond holds.
func await(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(within)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", within, what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// host is a network namespace on the same subnet as the speaker.
type host struct {
	ns, ip string
	as     uint32
	dir    string

	password string // MD5; empty: none
}

var links atomic.Int32

// subnet makes a bridge with our address and n hosts on it.
func subnet(t testing.TB, n int) []*host {
	t.Helper()
	ip(t, "link", "add", "cwbr", "type", "bridge")
	t.Cleanup(func() { ip(t, "link", "del", "cwbr") })
	ip(t, "addr", "add", ourIP+"/24", "dev", "cwbr")
	ip(t, "link", "set", "cwbr", "up")
	var hosts []*host
	for i := 1; i <= n; i++ {
		h := &host{ns: fmt.Sprintf("cwsp-%d-%d", os.Getpid(), i), ip: fmt.Sprintf("10.9.0.%d", i+1), as: uint32(65100 + i), dir: t.TempDir()}
		ip(t, "netns", "add", h.ns)
		t.Cleanup(func() { ip(t, "netns", "del", h.ns) })
		veth := fmt.Sprintf("cwv%d", links.Add(1)) // the kernel takes its time to delete one
		ip(t, "link", "add", veth, "master", "cwbr", "up", "type", "veth", "peer", "name", "eth0", "netns", h.ns)
		ip(t, "-n", h.ns, "addr", "add", h.ip+"/24", "dev", "eth0")
		ip(t, "-n", h.ns, "link", "set", "eth0", "up")
		ip(t, "-n", h.ns, "link", "set", "lo", "up")
		hosts = append(hosts, h)
	}
	return hosts
}

func ip(t testing.TB, args ...string) {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// bird runs Debian's BIRD as a peer with one-second keepalives and one route.
func (h *host) bird(t testing.TB) {
	t.Helper()
	n := h.as - 65100
	auth := ""
	if h.password != "" {
		auth = fmt.Sprintf("password %q;", h.password)
	}
	conf := fmt.Sprintf(`log "%[1]s/log" all;
router id %[2]s;
protocol device {}
protocol static { ipv4; route 10.20.%[3]d.0/24 blackhole; }
protocol bgp up {
	debug all;
	local %[2]s as %[4]d;
	neighbor %[5]s as %[6]d;
	hold time 3; keepalive time 1;
	connect delay time 1; connect retry time 1; error wait time 1, 1;
	graceful restart on; %[7]s
	ipv4 { import all; export all; };
}
`, h.dir, h.ip, n, h.as, ourIP, ourAS, auth)
	file := filepath.Join(h.dir, "bird.conf")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("ip", "netns", "exec", h.ns, "bird", "-f", "-c", file, "-s", filepath.Join(h.dir, "ctl"), "-P", filepath.Join(h.dir, "pid"))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
}

// log reads BIRD's log.
func (h *host) log(t testing.TB) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(h.dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// birdc asks BIRD.
func (h *host) birdc(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.Command("birdc", append([]string{"-s", filepath.Join(h.dir, "ctl")}, args...)...).CombinedOutput()
	if err != nil {
		return fmt.Sprintf("%v: %s", err, out)
	}
	return string(out)
}

// session is a raw BGP session of a configured peer that turns bad.
type session struct {
	net.Conn
	ended chan []byte // when the other end closed: the types of all messages it sent
}

func message(typ byte, body []byte) []byte {
	m := append(bytes.Repeat([]byte{0xff}, 16), 0, 0, typ)
	m = append(m, body...)
	binary.BigEndian.PutUint16(m[16:], uint16(len(m)))
	return m
}

// open brings up a session from h's namespace, with 4-octet AS numbers and IPv4 unicast.
func (h *host) open(t testing.TB) *session {
	t.Helper()
	c, err := h.dial(t)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	s := &session{c, make(chan []byte, 1)}
	go func() { s.ended <- types(c) }()
	caps := binary.BigEndian.AppendUint32([]byte{65, 4}, h.as)
	caps = append(caps, 1, 4, 0, 1, 0, 1)
	opt := append([]byte{2, byte(len(caps))}, caps...)
	body := binary.BigEndian.AppendUint16([]byte{4}, uint16(h.as))
	body = append(body, 0, 90, 2, 2, 2, byte(h.as), byte(len(opt)))
	for _, m := range [][]byte{message(1, append(body, opt...)), message(4, nil)} {
		if _, err := c.Write(m); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// types lists the types of the messages that come until the connection ends.
func types(c net.Conn) []byte {
	var out []byte
	for {
		head := make([]byte, 19)
		if _, err := io.ReadFull(c, head); err != nil {
			return out
		}
		out = append(out, head[18])
		if _, err := io.CopyN(io.Discard, c, int64(binary.BigEndian.Uint16(head[16:]))-19); err != nil {
			return out
		}
	}
}

// dial connects to the speaker from inside h's namespace.
func (h *host) dial(t testing.TB) (net.Conn, error) {
	t.Helper()
	type result struct {
		c   net.Conn
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // and end with the thread
		f, err := os.Open("/run/netns/" + h.ns)
		if err == nil {
			defer f.Close()
			err = unix.Setns(int(f.Fd()), unix.CLONE_NEWNET)
		}
		if err != nil {
			done <- result{nil, err}
			return
		}
		c, err := net.DialTimeout("tcp", netip.MustParseAddrPort(ourIP+":179").String(), within)
		done <- result{c, err}
	}()
	r := <-done
	return r.c, r.err
}

// poison are the messages that end GoBGP v3.37.0.
var poison = map[string]func(h *host) []byte{
	// A message type that does not exist: nil dereference in fsmHandler.handlingError.
	"unknown type": func(*host) []byte { return message(99, []byte{1, 2, 3}) },
	// AS4_PATH (17) before AS_PATH (2): CVE-2026-41643, index out of range.
	"AS4_PATH first": func(h *host) []byte {
		as := binary.BigEndian.AppendUint32(nil, h.as)
		path := append([]byte{2, 1}, as...)
		attrs := []byte{0x40, 1, 1, 0}
		attrs = append(append(attrs, 0xc0, 17, byte(len(path))), path...)
		attrs = append(append(attrs, 0x40, 3, 4), netip.MustParseAddr(h.ip).AsSlice()...)
		attrs = append(append(attrs, 0x40, 2, byte(len(path))), path...)
		body := append([]byte{0, 0}, binary.BigEndian.AppendUint16(nil, uint16(len(attrs)))...)
		return message(2, append(append(body, attrs...), 24, 10, 1, 1))
	},
}

// update announces one /24 with a well-formed UPDATE.
func (h *host) update(third, fourth byte) []byte {
	path := append([]byte{2, 1}, binary.BigEndian.AppendUint32(nil, h.as)...)
	attrs := []byte{0x40, 1, 1, 0}
	attrs = append(append(attrs, 0x40, 2, byte(len(path))), path...)
	attrs = append(append(attrs, 0x40, 3, 4), netip.MustParseAddr(h.ip).AsSlice()...)
	body := append([]byte{0, 0}, binary.BigEndian.AppendUint16(nil, uint16(len(attrs)))...)
	return message(2, append(append(body, attrs...), 24, 11, third, fourth))
}
