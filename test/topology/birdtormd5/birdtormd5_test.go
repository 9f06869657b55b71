// Package birdtormd5 runs the topology of two nodes under a BIRD ToR: eBGP sessions with
// an MD5 password and TTL security. The scenarios are numbered; each leaves the fabric as
// it found it.
package birdtormd5

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/causeway-net/causeway/internal/status"
	"github.com/causeway-net/causeway/test/lab"
	"github.com/causeway-net/causeway/test/lab/traffic"
	"github.com/causeway-net/causeway/test/topology/operator"
	"github.com/causeway-net/causeway/test/topology/scenario"
)

func TestMain(m *testing.M) {
	lab.Reexec()
	os.Exit(m.Run())
}

const podsPerNode = 2

// password is the value of the Secret in the topology's manifests.
const password = "a-lab-password"

func TestBirdTorMD5(t *testing.T) {
	f := scenario.Up(t, "bird-tor-md5")
	f.WaitEstablished(t, 30*time.Second)
	f.AddPods(t, podsPerNode)
	for _, s := range []struct {
		name string
		run  func(*testing.T, *scenario.Fabric)
	}{
		{"01 sessions are signed", signed},
		{"02 pods talk", podsTalk},
		{"03 the ToR hears of blocks and nothing else", aggregates},
		{"04 packets from farther away are dropped", ttlSecurity},
		{"05 a wrong password ends one session", wrongPassword},
		{"06 a Secret is gone and comes back", secretGone},
		{"07 a peer several hops away, at a port of its own", farPeer},
		{"08 the ToR's BIRD is killed", birdKilled},
		{"09 the ToR's BIRD restarts gracefully", birdRestarted},
		{"10 the password is shown nowhere", passwordHidden},
	} {
		if !t.Run(s.name, func(t *testing.T) { s.run(t, f) }) {
			t.FailNow() // the fabric is not as the next scenario needs it
		}
	}
}

// side is one end of each link, IPv4 first.
type side struct{ node, tor [2]netip.Addr }

var links = map[string]side{
	"n1": {pair("10.30.1.1", "fd00:30:1::2"), pair("10.30.1.0", "fd00:30:1::1")},
	"n2": {pair("10.30.2.1", "fd00:30:2::2"), pair("10.30.2.0", "fd00:30:2::1")},
}

func pair(v4, v6 string) [2]netip.Addr {
	return [2]netip.Addr{netip.MustParseAddr(v4), netip.MustParseAddr(v6)}
}

var families = []bool{false, true} // v6

func birdc(t *testing.T, ctx context.Context, f *scenario.Fabric, args ...string) string {
	t.Helper()
	out, err := f.Node("tor").Exec(ctx, append([]string{"birdc"}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// protocol is BIRD's name of a session.
func protocol(node string, i int) string { return node + []string{"_v4", "_v6"}[i] }

// up waits until all sessions are, as both ends see it, and what they brought is in use.
func up(t *testing.T, f *scenario.Fabric) {
	t.Helper()
	ctx := scenario.Context(t, time.Minute)
	for _, n := range f.Agents() {
		tor := links[n.Name()].tor
		operator.Await(t, 30*time.Second, n, "sessions", func(st status.Status) error { return operator.Established(st, tor[:]...) })
		for i := range families {
			scenario.Eventually(t, 10*time.Second, "BIRD agrees", func() error {
				if out := birdc(t, ctx, f, "show", "protocols", protocol(n.Name(), i)); !strings.Contains(out, "Established") {
					return errors.New(out)
				}
				return nil
			})
		}
	}
}

func signed(t *testing.T, f *scenario.Fabric) {
	ctx := scenario.Context(t, time.Minute)
	up(t, f)
	n1, tor := f.Node("n1"), f.Node("tor")
	for i, v6 := range families {
		// The listener of either side wants a signature from the other, and the speaker's
		// own sessions came up all the same.
		operator.SignatureAsked(t, ctx, tor, n1, links["n1"].node[i])
		operator.SignatureAsked(t, ctx, n1, tor, links["n1"].tor[i])
		want := []string{"ipv4", "ipv6"}[i]
		if got, err := operator.Families(ctx, n1, links["n1"].tor[i]); err != nil || !slices.Equal(got, []string{want}) {
			t.Errorf("IPv6 %t: the session carries %v, %v", v6, got, err)
		}
	}
}

func podsTalk(t *testing.T, f *scenario.Fabric) {
	f.PodsTalk(t, 20*time.Second)
	scenario.Reach(t, 10*time.Second, []traffic.Endpoint{{Space: f.Node("tor")}}, f.Endpoints())
}

// aggregates reads what BIRD took from the nodes, and what a node has of the other one.
func aggregates(t *testing.T, f *scenario.Fabric) {
	ctx := scenario.Context(t, time.Minute)
	for _, n := range f.Agents() {
		st := operator.Status(t, n)
		for i, v6 := range families {
			scenario.Eventually(t, 10*time.Second, "BIRD's routes of "+protocol(n.Name(), i), func() error {
				out := birdc(t, ctx, f, "show", "route", "all", "protocol", protocol(n.Name(), i))
				var prefixes, blocks []string
				for _, line := range strings.Split(out, "\n") {
					if first, _, _ := strings.Cut(line, " "); strings.Contains(first, "/") {
						prefixes = append(prefixes, first)
					}
					key, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
					switch key {
					case "BGP.as_path":
						if value != "64512" {
							return fmt.Errorf("AS path %q", value)
						}
					case "BGP.next_hop":
						if first, _, _ := strings.Cut(value, " "); first != links[n.Name()].node[i].String() {
							return fmt.Errorf("next hop %q", value)
						}
					case "BGP.origin":
						if value != "IGP" {
							return fmt.Errorf("origin %q", value)
						}
					case "BGP.local_pref": // BIRD's own
					default:
						if strings.HasPrefix(key, "BGP.") {
							return fmt.Errorf("%s %q, which nobody asked for", key, value)
						}
					}
				}
				for _, b := range operator.BlocksOf(st, v6) {
					blocks = append(blocks, b.String())
					if want := []int{26, 122}[i]; b.Bits() != want {
						return fmt.Errorf("block %s is no /%d", b, want)
					}
				}
				slices.Sort(prefixes)
				slices.Sort(blocks)
				if len(blocks) == 0 || !slices.Equal(prefixes, blocks) {
					return fmt.Errorf("BIRD has %v, the node's blocks are %v", prefixes, blocks)
				}
				return nil
			})
		}
	}
	// The nodes share an AS number and take each other's routes all the same.
	for i, v6 := range families {
		rib, err := operator.RIB(ctx, f.Node("n1"), v6)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range operator.BlocksOf(operator.Status(t, f.Node("n2")), v6) {
			ps := rib[b]
			if len(ps) != 1 || !slices.Equal(ps[0].AS, []uint32{65001, 64512}) || ps[0].NextHop != links["n1"].tor[i] || ps[0].Communities != 0 {
				t.Errorf("n1 has %+v to %s", ps, b)
			}
		}
	}
}

// ttlSecurity makes the ToR's packets look as if they had crossed a router (RFC 5082).
func ttlSecurity(t *testing.T, f *scenario.Fabric) {
	ctx := scenario.Context(t, time.Minute)
	n1, tor := f.Node("n1"), f.Node("tor")
	before := operator.SinceOf(operator.Status(t, n1))
	for i, rule := range []string{
		fmt.Sprintf("ip daddr %s ip protocol tcp ip ttl set 254", links["n1"].node[0]),
		fmt.Sprintf("ip6 daddr %s ip6 nexthdr tcp ip6 hoplimit set 254", links["n1"].node[1]),
	} {
		const counter = "TcpExtTCPMinTTLDrop"
		dropped, err := operator.Counter(ctx, n1, counter)
		if err != nil {
			t.Fatal(err)
		}
		table := fmt.Sprintf("table inet farther { chain out { type filter hook postrouting priority mangle; %s; }; }", rule)
		if _, err := tor.Exec(ctx, "nft", table); err != nil {
			t.Fatal(err)
		}
		// A keepalive is due every 3 s; the hold time is 9 s.
		scenario.Eventually(t, 20*time.Second, "n1 drops what "+links["n1"].tor[i].String()+" sends", func() error {
			now, err := operator.Counter(ctx, n1, counter)
			if err == nil && now == dropped {
				err = errors.New("it takes everything")
			}
			return err
		})
		if _, err := tor.Exec(ctx, "nft", "delete", "table", "inet", "farther"); err != nil {
			t.Fatal(err)
		}
	}
	up(t, f)
	if st := operator.Status(t, n1); len(operator.SinceOf(st)) != len(before) {
		t.Errorf("sessions were %v, are %v", before, operator.SinceOf(st))
	}
}

const secretYAML = `apiVersion: v1
kind: Secret
metadata:
  name: bgp-passwords
  namespace: kube-system
stringData:
  tor: %s
  other: %s
`

// wrongPassword gives one session a key of its own and changes that.
func wrongPassword(t *testing.T, f *scenario.Fabric) {
	ctx := scenario.Context(t, 2*time.Minute)
	m := operator.ManifestsOf(f)
	n1, n2 := f.Node("n1"), f.Node("n2")
	peers, secret := m.Read(t, "peers.yaml"), m.Read(t, "secret.yaml")
	one, two := operator.SinceOf(operator.Status(t, n1)), operator.SinceOf(operator.Status(t, n2))
	m.Write(t, "secret.yaml", fmt.Sprintf(secretYAML, password, password))
	m.Edit(t, "peers.yaml", "key: tor", "key: other") // the first is n1's over IPv4
	affected := links["n1"].tor[0]

	const wrong = "not-the-lab-password"
	m.Write(t, "secret.yaml", fmt.Sprintf(secretYAML, password, wrong))
	st := operator.Await(t, 15*time.Second, n1, "the session is down", func(st status.Status) error {
		p, err := operator.Peer(st, affected)
		if err == nil && p.State == "Established" {
			err = errors.New("it is up")
		}
		return err
	})
	one.Undisturbed(t, st, affected)
	two.Undisturbed(t, operator.Status(t, n2))
	// IPv6 goes on between the pods, IPv4 does not: its routes went with the session.
	for _, v6 := range families {
		b := operator.BlocksOf(st, v6)[0]
		scenario.Eventually(t, 10*time.Second, fmt.Sprintf("the ToR's route to %s", b), func() error {
			rs, err := operator.RoutesOf(ctx, f.Node("tor"), v6)
			if err == nil && (len(rs.At(b)) > 0) != v6 {
				err = fmt.Errorf("there are %v", rs.At(b))
			}
			return err
		})
	}
	if err := operator.Ping(ctx, n2.Pods()[0], n1.Pods()[0].Address(true)); err != nil {
		t.Error(err)
	}
	operator.Hidden(t, ctx, n1, wrong)

	m.Write(t, "secret.yaml", fmt.Sprintf(secretYAML, password, password))
	up(t, f)
	m.Write(t, "peers.yaml", peers)
	m.Write(t, "secret.yaml", secret)
	operator.Await(t, 10*time.Second, n1, "no problems", operator.NoProblems)
	up(t, f)
	one.Undisturbed(t, operator.Status(t, n1), affected)
	two.Undisturbed(t, operator.Status(t, n2))
	f.PodsTalk(t, 15*time.Second)
}

// secretGone deletes the Secret: what needs it says so, and goes on with the password it has.
func secretGone(t *testing.T, f *scenario.Fabric) {
	m := operator.ManifestsOf(f)
	n1 := f.Node("n1")
	secret := m.Read(t, "secret.yaml")
	before := operator.SinceOf(operator.Status(t, n1))
	m.Remove(t, "secret.yaml")
	operator.Await(t, 10*time.Second, n1, "the missing Secret is reported for each peer", func(st status.Status) error {
		return errors.Join(
			operator.Problem(st, "n1-tor-ipv4", ".spec.password", "bgp-passwords"),
			operator.Problem(st, "n1-tor-ipv6", ".spec.password", "bgp-passwords"))
	})
	m.Write(t, "secret.yaml", secret)
	up(t, f)
	before.Undisturbed(t, operator.Status(t, n1))
	operator.Await(t, 10*time.Second, n1, "no problems", operator.NoProblems)
	f.PodsTalk(t, 15*time.Second)
}

// farPeer adds a session of n1 with BIRD's loopback, at another port, without TTL
// security: what it brings has that loopback as its next hop, which the kernel reaches
// over the link.
func farPeer(t *testing.T, f *scenario.Fabric) {
	ctx := scenario.Context(t, 2*time.Minute)
	m := operator.ManifestsOf(f)
	n1, tor := f.Node("n1"), f.Node("tor")
	before := operator.SinceOf(operator.Status(t, n1))
	config, err := os.ReadFile(tor.Path("/etc/bird/bird.conf"))
	if err != nil {
		t.Fatal(err)
	}
	const file = "/run/bird/far.conf"
	far := strings.ReplaceAll(string(config), "export all; };", "export where proto != \"beyond\"; };") + `
protocol static beyond { ipv4; route 203.0.113.0/24 blackhole; }
protocol bgp far {
	local 10.0.0.1 port 1179 as 65001;
	neighbor 10.30.1.1 port 1180 as 64512; # BIRD has one session for an address and port
	passive;
	multihop;
	password "` + password + `";
	connect retry time 2;
	error wait time 1, 4;
	ipv4 { import none; export where proto = "beyond"; };
}
`
	if err := os.WriteFile(tor.Path(file), []byte(far), 0o644); err != nil {
		t.Fatal(err)
	}
	if out := birdc(t, ctx, f, "configure", `"`+file+`"`); !strings.Contains(out, "econfigur") {
		t.Fatal(out)
	}
	m.Restore(t, "far.yaml")
	m.Write(t, "far.yaml", `apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: far}
spec:
  node: n1
  peerIP: 10.0.0.1:1179
  asNumber: 65001
  password: {secretKeyRef: {name: bgp-passwords, key: tor}}
`)
	loopback := netip.MustParseAddr("10.0.0.1")
	beyond := netip.MustParsePrefix("203.0.113.0/24")
	st := operator.Await(t, 30*time.Second, n1, "the session with the loopback", func(st status.Status) error {
		return operator.Established(st, links["n1"].tor[0], links["n1"].tor[1], loopback)
	})
	before.Undisturbed(t, st)
	scenario.Eventually(t, 10*time.Second, "its route resolves over the link", func() error {
		rib, err := operator.RIB(ctx, n1, false)
		if err != nil {
			return err
		}
		if ps := rib[beyond]; len(ps) != 1 || ps[0].NextHop != loopback || ps[0].Neighbor != loopback {
			return fmt.Errorf("the speaker has %+v", ps)
		}
		rs, err := operator.RoutesOf(ctx, n1, false)
		if err != nil {
			return err
		}
		return rs.Via(beyond, links["n1"].tor[0])
	})
	m.Remove(t, "far.yaml")
	if out := birdc(t, ctx, f, "configure", `"/etc/bird/bird.conf"`); !strings.Contains(out, "econfigur") {
		t.Fatal(out)
	}
	scenario.Eventually(t, 10*time.Second, "the route is gone with the session", func() error {
		rs, err := operator.RoutesOf(ctx, n1, false)
		if err == nil && len(rs.At(beyond)) > 0 {
			err = fmt.Errorf("%v", rs.At(beyond))
		}
		return err
	})
	up(t, f)
	before.Undisturbed(t, operator.Status(t, n1))
}

// birdKilled kills BIRD and starts it again.
func birdKilled(t *testing.T, f *scenario.Fabric) {
	restarts(t, f, func(ctx context.Context, bird *lab.Daemon) error { return bird.Kill(ctx) })
}

// birdRestarted ends BIRD as an upgrade does.
func birdRestarted(t *testing.T, f *scenario.Fabric) {
	restarts(t, f, func(ctx context.Context, bird *lab.Daemon) error {
		if _, err := f.Node("tor").Exec(ctx, "birdc", "graceful", "restart"); err != nil {
			return err
		}
		return bird.Wait(ctx)
	})
}

func restarts(t *testing.T, f *scenario.Fabric, end func(context.Context, *lab.Daemon) error) {
	ctx := scenario.Context(t, 2*time.Minute)
	n1, bird := f.Node("n1"), f.Node("tor").Daemon("bird")
	before := operator.SinceOf(operator.Status(t, n1))
	s := operator.StartStreams(ctx, t, n1.Pods()[0], f.Node("n2").Pods()[0])
	if err := end(ctx, bird); err != nil {
		t.Fatal(err)
	}
	operator.Await(t, 15*time.Second, n1, "no session is up", func(st status.Status) error {
		if now := operator.SinceOf(st); len(now) > 0 {
			return fmt.Errorf("up: %v", now)
		}
		return nil
	})
	s.Afterwards(t, 500*time.Millisecond)
	if err := bird.Start(ctx); err != nil {
		t.Fatal(err)
	}
	operator.Await(t, 30*time.Second, n1, "new sessions", before.Anew)
	up(t, f)
	// Stale routes go when a peer has told everything, and BIRD's when its recovery ends.
	scenario.Eventually(t, 30*time.Second, "BIRD's recovery ends", func() error {
		if out := birdc(t, ctx, f, "show", "status"); strings.Contains(out, "raceful restart recovery in progress") {
			return errors.New(out)
		}
		return nil
	})
	s.Afterwards(t, time.Second)
	s.LostNothing(t)
	f.PodsTalk(t, 10*time.Second)
}

func passwordHidden(t *testing.T, f *scenario.Fabric) {
	ctx := scenario.Context(t, time.Minute)
	for _, n := range f.Agents() {
		operator.Hidden(t, ctx, n, password)
	}
}
