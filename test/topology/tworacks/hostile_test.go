package tworacks

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/causeway-net/causeway/internal/status"
	"github.com/causeway-net/causeway/test/lab"
	"github.com/causeway-net/causeway/test/topology/fabric"
	"github.com/causeway-net/causeway/test/topology/scenario"
)

// hostileAddr stands on the spine; it is a configured peer of n1 that turns bad.
var hostileAddr = netip.MustParseAddr("10.66.0.1")

const hostileASN = 64999

// hostilePeer ends the speaker of n1 twice with messages that GoBGP v3 does not survive.
func hostilePeer(t *testing.T, f *scenario.Fabric) {
	for _, m := range []struct {
		name    string
		message []byte
	}{
		{"an unknown message type", message(99, []byte{1, 2, 3})},
		{"AS4_PATH before AS_PATH", message(2, as4PathFirst())},
	} {
		t.Run(m.name, func(t *testing.T) { twoCrashes(t, f, m.message) })
	}
}

func twoCrashes(t *testing.T, f *scenario.Fabric, bad []byte) {
	ctx := scenario.Context(t, 3*time.Minute)
	n1, spine := f.Node("n1"), f.Node("spine")
	for _, c := range []struct {
		node *lab.Node
		args []string
	}{
		{spine, []string{"ip", "address", "replace", hostileAddr.String() + "/32", "dev", "lo"}},
		{f.Node("tor1a"), []string{"ip", "route", "replace", hostileAddr.String() + "/32", "via", "10.255.11.0"}},
		{n1, []string{"ip", "route", "replace", hostileAddr.String() + "/32", "via", "10.1.11.0"}},
		{spine, []string{"ip", "route", "replace", "10.1.11.1/32", "via", "10.255.11.1"}},
	} {
		if _, err := c.node.Exec(ctx, c.args...); err != nil {
			t.Fatal(err)
		}
	}
	manifest := filepath.Join(f.Shared("manifests"), "hostile.yaml")
	if err := os.WriteFile(manifest, fmt.Appendf(nil, `apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: hostile}
spec: {node: n1, peerIP: %s, asNumber: %d, sourceAddress: None}
`, hostileAddr, hostileASN), 0o644); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := os.Remove(manifest); err != nil {
			t.Error(err)
		}
		f.WaitEstablished(t, 30*time.Second)
	}()

	streams := startStreams(ctx, t, f)
	st := await(t, ctx, n1, "the hostile peer is configured", func(st status.Status) error {
		if i := hostileIndex(st); i < 0 {
			return errors.New("it is not")
		}
		return nil
	})

	// The first crash: everyone comes back, nobody is held back.
	crash(t, ctx, n1, spine, bad)
	deaths := st.Speaker.Restarts
	await(t, ctx, n1, "the others are back", func(st status.Status) error {
		if st.Speaker.Restarts == deaths {
			return errors.New("the speaker has not died")
		}
		return othersEstablished(st)
	})

	// One second later it returns, and does it again.
	streams.afterwards(t, time.Second)
	crash(t, ctx, n1, spine, bad)
	var heldAt time.Time
	await(t, ctx, n1, "the peer is held back", func(st status.Status) error {
		i := hostileIndex(st)
		if i < 0 || st.Peers[i].HeldBack == nil || st.Peers[i].State != "HeldBack" {
			return fmt.Errorf("peers: %+v", st.Peers)
		}
		heldAt = time.Now()
		return nil
	})
	pod, err := n1.AddPod(ctx, "meanwhile", lab.PodOptions{})
	if err != nil {
		t.Errorf("ADD while the speaker is away: %v", err)
	}
	await(t, ctx, n1, "every other session is up", othersEstablished)
	took := time.Since(heldAt)
	t.Logf("every other session was up %s after the peer was held back", took.Round(time.Millisecond))
	if took > lab.Slow(3*time.Second) {
		t.Errorf("that is more than %s", lab.Slow(3*time.Second))
	}
	if pod != nil {
		if err := n1.DeletePod(ctx, "meanwhile"); err != nil {
			t.Error(err)
		}
	}
	streams.afterwards(t, 12*time.Second)
	streams.lostNothing(t)
	out, err := n1.Exec(ctx, "causewayctl", "peers")
	t.Logf("%s%v", out, err)
}

func await(t *testing.T, ctx context.Context, n *lab.Node, what string, done func(status.Status) error) status.Status {
	t.Helper()
	var st status.Status
	scenario.Eventually(t, 30*time.Second, what, func() (err error) {
		if st, err = fabric.Status(ctx, n); err != nil {
			return err
		}
		return done(st)
	})
	return st
}

func hostileIndex(st status.Status) int {
	return slices.IndexFunc(st.Peers, func(p status.Peer) bool { return p.Address == hostileAddr })
}

func othersEstablished(st status.Status) error {
	if len(st.Peers) != 5 {
		return fmt.Errorf("%d peers", len(st.Peers))
	}
	for _, p := range st.Peers {
		if p.Address != hostileAddr && p.State != "Established" {
			return fmt.Errorf("%s is %s", p.Address, p.State)
		}
	}
	return nil
}

// crash opens a session from the spine to n1 and sends the bad message once it is
// Established. A connection may also end for other reasons, so it counts only when n1's
// agent says that its speaker died.
func crash(t *testing.T, ctx context.Context, n1, spine *lab.Node, bad []byte) {
	t.Helper()
	before, err := fabric.Status(ctx, n1)
	if err != nil {
		t.Fatal(err)
	}
	scenario.Eventually(t, 20*time.Second, "a session with the victim that ends in its death", func() error {
		var conn net.Conn
		err := spine.Do(func() (err error) {
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: hostileAddr.AsSlice()}, Timeout: lab.Slow(2 * time.Second)}
			conn, err = d.DialContext(ctx, "tcp", "10.1.11.1:179")
			return err
		})
		if err != nil {
			return err
		}
		defer conn.Close()
		if err := session(conn, bad); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, lab.Slow(5*time.Second))
		defer cancel()
		return fabric.Poll(ctx, "the connection ended", func() error {
			st, err := fabric.Status(ctx, n1)
			if err == nil && st.Speaker.Restarts == before.Speaker.Restarts {
				err = errors.New("the speaker lives")
			}
			return err
		})
	})
}

// session speaks BGP (RFC 4271) up to Established, sends bad and waits for the end of the
// connection. It fails when the victim refuses the session.
func session(conn net.Conn, bad []byte) error {
	if err := conn.SetDeadline(time.Now().Add(lab.Slow(5 * time.Second))); err != nil {
		return err
	}
	capabilities := []byte{65, 4, 0, 0, 0, 0, 1, 4, 0, 1, 0, 1} // RFC 6793, RFC 4760: IPv4 unicast
	binary.BigEndian.PutUint32(capabilities[2:], hostileASN)
	parameter := append([]byte{2, byte(len(capabilities))}, capabilities...)
	open := binary.BigEndian.AppendUint16([]byte{4}, hostileASN)
	open = append(open, 0, 90) // hold time
	open = append(open, hostileAddr.AsSlice()...)
	open = append(append(open, byte(len(parameter))), parameter...)
	if _, err := conn.Write(message(1, open)); err != nil {
		return err
	}
	for established := false; !established; {
		kind, err := read(conn)
		switch {
		case err != nil:
			return err
		case kind == 3:
			return errors.New("the victim answered with NOTIFICATION")
		case kind == 1:
			if _, err := conn.Write(message(4, nil)); err != nil {
				return err
			}
		case kind == 4:
			established = true
		}
	}
	if _, err := conn.Write(bad); err != nil {
		return err
	}
	for {
		kind, err := read(conn)
		if kind == 3 {
			return errors.New("the victim survived and answered with NOTIFICATION")
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return errors.New("the victim survived")
		}
		if err != nil {
			return nil // its end closed the connection
		}
	}
}

func read(conn net.Conn) (kind byte, err error) {
	header := make([]byte, 19)
	for n := 0; n < len(header); {
		m, err := conn.Read(header[n:])
		if err != nil {
			return 0, err
		}
		n += m
	}
	body := make([]byte, int(binary.BigEndian.Uint16(header[16:]))-len(header))
	for n := 0; n < len(body); {
		m, err := conn.Read(body[n:])
		if err != nil {
			return 0, err
		}
		n += m
	}
	return header[18], nil
}

// message is a BGP message of that type (RFC 4271, section 4.1).
func message(kind byte, body []byte) []byte {
	m := make([]byte, 19, 19+len(body))
	for i := range 16 {
		m[i] = 0xff
	}
	binary.BigEndian.PutUint16(m[16:], uint16(19+len(body)))
	m[18] = kind
	return append(m, body...)
}

// as4PathFirst is the body of an UPDATE whose AS4_PATH stands before its AS_PATH, which
// GoBGP v3 answers with an index out of range (CVE-2026-41643).
func as4PathFirst() []byte {
	asn := binary.BigEndian.AppendUint32(nil, hostileASN)
	attrs := []byte{0x40, 1, 1, 0}                                      // ORIGIN IGP
	attrs = append(append(attrs, 0xc0, 17, 6, 2, 1), asn...)            // AS4_PATH
	attrs = append(append(attrs, 0x40, 3, 4), hostileAddr.AsSlice()...) // NEXT_HOP
	attrs = append(append(attrs, 0x40, 2, 4, 2, 1), asn[2:]...)         // AS_PATH of 2-byte numbers
	body := binary.BigEndian.AppendUint16([]byte{0, 0}, uint16(len(attrs)))
	return append(append(body, attrs...), 24, 203, 0, 113) // 203.0.113.0/24
}
