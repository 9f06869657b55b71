package onesubnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/causeway-net/causeway/test/lab"
	"github.com/causeway-net/causeway/test/lab/traffic"
)

func contains(err error, word string) bool { return err != nil && strings.Contains(err.Error(), word) }

// indexOfDocument is where the YAML document that holds word begins.
func indexOfDocument(t *testing.T, text, word string) int {
	t.Helper()
	at := strings.Index(text, word)
	if at < 0 {
		t.Fatalf("no %q in\n%s", word, text)
	}
	return strings.LastIndex(text[:at], "---\n")
}

// ping returns nil when the address answers.
func ping(ctx context.Context, from traffic.Space, to netip.Addr) error {
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

// dial connects to the BGP port of an address from n. It returns nil when that ends as
// wanted: with want, or with a connection when want is 0. ETIMEDOUT stands for no answer
// within the time.
func dial(ctx context.Context, n *lab.Node, to netip.Addr, within time.Duration, want syscall.Errno) error {
	var conn net.Conn
	err := n.Do(func() (err error) {
		d := net.Dialer{Timeout: within}
		d.SetMultipathTCP(false)
		conn, err = d.DialContext(ctx, "tcp", netip.AddrPortFrom(to, 179).String())
		return err
	})
	switch {
	case err == nil:
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

// hidden fails the test when a secret is in anything that the node shows or keeps.
func hidden(t *testing.T, ctx context.Context, n *lab.Node, secret string) {
	t.Helper()
	for _, c := range [][]string{
		{"causewayctl", "status", "--json"}, {"causewayctl", "status"}, {"causewayctl", "peers"}, {"causewayctl", "problems"},
		{"gobgp", "--target", "unix:///run/causeway/gobgp.sock", "neighbor", "-j"},
		{"sh", "-c", "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ; find /run/causeway /var/lib/causeway -type f | xargs -r cat"},
	} {
		out, err := n.Exec(ctx, c...)
		if err != nil {
			t.Error(err)
		}
		if strings.Contains(out, secret) {
			t.Errorf("%s: %s shows the password", n, strings.Join(c, " "))
		}
	}
	b, err := os.ReadFile(n.Daemon("agent").LogPath())
	if err != nil {
		t.Error(err)
	}
	if strings.Contains(string(b), secret) {
		t.Errorf("%s: the log shows the password", n)
	}
}
