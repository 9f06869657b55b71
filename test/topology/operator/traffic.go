package operator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/causeway-net/causeway/test/lab"
	"github.com/causeway-net/causeway/test/lab/traffic"
	"github.com/causeway-net/causeway/test/topology/scenario"
)

// Streams are 1 kpps each way between two pods, one way IPv4, the other IPv6.
type Streams []*traffic.Stream

// StartStreams returns when packets arrive.
func StartStreams(ctx context.Context, t *testing.T, a, b *lab.Pod) Streams {
	t.Helper()
	var out Streams
	for _, c := range []traffic.Config{
		{From: a, To: b, Target: b.Address(false), Flows: 8, PPS: 1000},
		{From: b, To: a, Target: a.Address(true), Flows: 8, PPS: 1000},
	} {
		s, err := traffic.Start(ctx, c)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Stop() })
		out = append(out, s)
	}
	out.Afterwards(t, 200*time.Millisecond)
	scenario.Eventually(t, 10*time.Second, "packets arrive", func() error {
		if out[0].Received() < 100 || out[1].Received() < 100 {
			return errors.New("not yet")
		}
		return nil
	})
	return out
}

// Afterwards lets the streams run on for d.
func (s Streams) Afterwards(t *testing.T, d time.Duration) {
	t.Helper()
	until := s[0].Elapsed() + d
	scenario.Eventually(t, d+time.Minute, "the streams go on", func() error {
		if s[0].Elapsed() < until {
			return errors.New("not yet")
		}
		return nil
	})
}

// LostNothing ends the streams and fails the test when a packet did not arrive.
func (s Streams) LostNothing(t *testing.T) {
	t.Helper()
	for _, st := range s {
		r := st.Stop()
		t.Log(r)
		if r.Sent == 0 || r.Lost != 0 {
			t.Errorf("lost %d of %d packets", r.Lost, r.Sent)
		}
	}
}

// Ping returns nil when the address answers.
func Ping(ctx context.Context, from traffic.Space, to netip.Addr) error {
	target := traffic.Endpoint{Space: elsewhere{}, Addrs: []netip.Addr{to}}
	if failed := traffic.PingAll(ctx, []traffic.Endpoint{{Space: from}}, []traffic.Endpoint{target}, traffic.PingConfig{}).Failed(); len(failed) > 0 {
		return errors.New(strings.TrimSpace(failed.String()))
	}
	return nil
}

// elsewhere is a target that is only an address.
type elsewhere struct{}

func (elsewhere) Do(func() error) error { return errors.New("it is only an address") }
func (elsewhere) String() string        { return "address" }

// Dial opens a TCP connection without a signature to the BGP port of an address. It
// returns nil when that ends as wanted: with want, or with a connection when want is 0.
// ETIMEDOUT stands for no answer within the time.
func Dial(ctx context.Context, n *lab.Node, to netip.Addr, within time.Duration, want syscall.Errno) error {
	var conn net.Conn
	err := n.Do(func() (err error) {
		d := net.Dialer{Timeout: within}
		d.SetMultipathTCP(false)
		conn, err = d.DialContext(ctx, "tcp", netip.AddrPortFrom(to, 179).String())
		return err
	})
	if err == nil {
		conn.Close()
		if want != 0 {
			return fmt.Errorf("%s accepted the connection", to)
		}
		return nil
	}
	var timeout net.Error
	if want == syscall.ETIMEDOUT && errors.As(err, &timeout) && timeout.Timeout() || want != 0 && errors.Is(err, want) {
		return nil
	}
	return err
}

// SignatureAsked fails the test unless the listener at an address drops what n sends it
// without a signature (RFC 2385), and counts it as such at the node owner.
func SignatureAsked(t *testing.T, ctx context.Context, n, owner *lab.Node, at netip.Addr) {
	t.Helper()
	const counter = "TcpExtTCPMD5NotFound"
	before, err := Counter(ctx, owner, counter)
	if err != nil {
		t.Fatal(err)
	}
	if err := Dial(ctx, n, at, time.Second, syscall.ETIMEDOUT); err != nil {
		t.Errorf("%s without a signature to %s: %v", n, at, err)
	}
	if now, err := Counter(ctx, owner, counter); err != nil || now <= before {
		t.Errorf("%s missed the signature of %d packets before and %d after a try, %v", owner, before, now, err)
	}
}

// Hidden fails the test when a secret is in anything that the node shows or keeps.
func Hidden(t *testing.T, ctx context.Context, n *lab.Node, secret string) {
	t.Helper()
	for _, c := range [][]string{
		{"causewayctl", "status", "--json"}, {"causewayctl", "status"}, {"causewayctl", "peers"}, {"causewayctl", "problems"},
		{"gobgp", "--target", "unix:///run/causeway/gobgp.sock", "neighbor"},
		{"gobgp", "--target", "unix:///run/causeway/gobgp.sock", "neighbor", "-j"},
		{"sh", "-c", "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ; find /run/causeway /var/lib/causeway -type f | xargs -r cat"},
	} {
		out, err := n.Exec(ctx, c...)
		if err != nil {
			t.Errorf("%s: %s: %v", n, strings.Join(c, " "), err)
		}
		if strings.Contains(out, secret) {
			t.Errorf("%s: %s shows the password", n, strings.Join(c, " "))
		}
	}
	for what, read := range map[string]func() ([]byte, error){
		"the log":     func() ([]byte, error) { return os.ReadFile(n.Daemon("agent").LogPath()) },
		"the metrics": func() ([]byte, error) { return metrics(ctx, n) },
	} {
		b, err := read()
		if err != nil || len(b) == 0 {
			t.Errorf("%s: %s: %v", n, what, err)
		}
		if strings.Contains(string(b), secret) {
			t.Errorf("%s: %s show the password", n, what)
		}
	}
}

// metrics asks the agent for what Prometheus would scrape.
func metrics(ctx context.Context, n *lab.Node) ([]byte, error) {
	var d net.Dialer
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return d.DialContext(ctx, "unix", n.Path("/run/causeway/agent.sock"))
	}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent/metrics", nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(resp.Body)
}
