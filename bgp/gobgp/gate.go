package gobgp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"

	api "github.com/osrg/gobgp/v3/api"
)

// The gate keeps the restart bits of all peers until they are back.
//
// When one peer's End-of-RIB arrives, GoBGP clears the restarting state of every peer that was
// added, unless some peer has sent an OPEN with graceful restart and no End-of-RIB yet
// (server.go, recvedAllEOR: a peer that has not sent an OPEN does not count). A peer whose
// session opens after that sees neither the R nor the F bit and drops our routes. So the agent
// itself is such a peer while the others return: it opens a session from a local address for a
// family that carries nothing here (GoBGP's own "opaque"; of IPv4 multicast it takes the
// End-of-RIB for one of unicast), stays silent, and sends the End-of-RIB that
// releases all when all are back. Nothing can be learned over the session, and nothing is sent.
type gate struct {
	addr netip.Addr // what the speaker knows us by
	conn net.Conn

	released  chan struct{} // closed when the speaker's own End-of-RIB arrived
	done      chan struct{} // closed when the reader has ended
	closeOnce sync.Once
}

// Message types and sizes (RFC 4271, section 4.1).
const (
	msgOpen      = 1
	msgUpdate    = 2
	msgKeepalive = 4
	headerLen    = 19
	maxMsgLen    = 4096
	asTrans      = 23456
)

// The family of the gate's session.
const (
	gateAFI  = uint16(api.Family_AFI_OPAQUE)
	gateSAFI = byte(api.Family_SAFI_KEY_VALUE)
)

const gateHold = 240 * time.Second

// gatePeer is the gate as the speaker's neighbor.
func gatePeer(addr netip.Addr, asn uint32) *api.Peer {
	return &api.Peer{
		Conf: &api.PeerConf{NeighborAddress: addr.String(), PeerAsn: asn, Description: "causeway restart gate"},
		Transport: &api.Transport{
			PassiveMode: true,
			// Whatever address the listener is reached at.
			LocalAddress: unspecified(addr).String(),
		},
		Timers: &api.Timers{Config: &api.TimersConfig{HoldTime: uint64(gateHold / time.Second), ConnectRetry: 1, IdleHoldTimeAfterReset: 1}},
		GracefulRestart: &api.GracefulRestart{
			Enabled: true, LocalRestarting: true,
			RestartTime: uint32(gateHold / time.Second), DeferralTime: uint32(gateHold / time.Second),
		},
		AfiSafis: []*api.AfiSafi{{
			Config:            &api.AfiSafiConfig{Family: &api.Family{Afi: api.Family_AFI_OPAQUE, Safi: api.Family_SAFI_KEY_VALUE}, Enabled: true},
			MpGracefulRestart: &api.MpGracefulRestart{Config: &api.MpGracefulRestartConfig{Enabled: true}},
		}},
	}
}

func unspecified(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// gateAddr returns the local address that the speaker's listener is reached at.
func gateAddr(listen netip.Addr) netip.Addr {
	switch {
	case listen == netip.IPv4Unspecified():
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	case listen == netip.IPv6Unspecified():
		return netip.IPv6Loopback()
	}
	return listen
}

// openGate establishes the session. The speaker must know the gatePeer already.
func openGate(ctx context.Context, addr netip.Addr, port uint16, asn uint32, routerID netip.Addr) (*gate, error) {
	target := net.JoinHostPort(addr.String(), strconv.Itoa(int(port)))
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: addr.AsSlice()}}
	// The speaker closes what arrives before the neighbor has left the idle state.
	var err error
	for {
		var conn net.Conn
		if conn, err = d.DialContext(ctx, "tcp", target); err == nil {
			g := &gate{addr: addr, conn: conn, released: make(chan struct{}), done: make(chan struct{})}
			if err = g.handshake(ctx, asn, routerID); err == nil {
				go g.run()
				return g, nil
			}
			conn.Close()
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("restart gate %s: %w", target, errors.Join(err, ctx.Err()))
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func (g *gate) handshake(ctx context.Context, asn uint32, routerID netip.Addr) error {
	if t, ok := ctx.Deadline(); ok {
		if err := g.conn.SetDeadline(t); err != nil {
			return err
		}
	}
	if _, err := g.conn.Write(openMessage(asn, otherID(routerID))); err != nil {
		return err
	}
	for _, want := range []byte{msgOpen, msgKeepalive} {
		typ, _, err := readMessage(g.conn)
		if err != nil {
			return err
		}
		if typ != want {
			return fmt.Errorf("message of type %d instead of %d", typ, want)
		}
	}
	if _, err := g.conn.Write(message(msgKeepalive, nil)); err != nil {
		return err
	}
	return g.conn.SetDeadline(time.Time{})
}

// run keeps the session alive and looks for the speaker's End-of-RIB.
func (g *gate) run() {
	defer close(g.done)
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		t := time.NewTicker(gateHold / 4)
		defer t.Stop()
		for {
			select {
			case <-stop:
				return
			case <-t.C:
				if _, err := g.conn.Write(message(msgKeepalive, nil)); err != nil {
					return
				}
			}
		}
	}()
	for open := true; ; {
		typ, _, err := readMessage(g.conn)
		if err != nil {
			return
		}
		// The only UPDATE there can be in this family is the End-of-RIB.
		if typ == msgUpdate && open {
			open = false
			close(g.released)
		}
	}
}

// release sends the End-of-RIB and waits until the speaker has acted upon it: it has then queued
// our routes and End-of-RIB for every peer that is back.
func (g *gate) release(ctx context.Context) error {
	if _, err := g.conn.Write(message(msgUpdate, endOfRIB())); err != nil {
		return fmt.Errorf("restart gate: %w", err)
	}
	select {
	case <-g.released:
		return nil
	case <-g.done:
		return errors.New("restart gate: the speaker closed the session")
	case <-ctx.Done():
		return fmt.Errorf("restart gate: %w", ctx.Err())
	}
}

func (g *gate) close() {
	g.closeOnce.Do(func() { g.conn.Close() })
	<-g.done
}

// message frames a BGP message (RFC 4271, section 4.1).
func message(typ byte, body []byte) []byte {
	m := make([]byte, headerLen, headerLen+len(body))
	for i := range 16 {
		m[i] = 0xff
	}
	binary.BigEndian.PutUint16(m[16:], uint16(headerLen+len(body)))
	m[18] = typ
	return append(m, body...)
}

// openMessage offers the gate's family with graceful restart and four-octet AS numbers (RFC 4271
// section 4.2, RFC 5492, RFC 4760, RFC 4724, RFC 6793).
func openMessage(asn uint32, id netip.Addr) []byte {
	caps := []byte{
		1, 4, byte(gateAFI >> 8), byte(gateAFI & 0xff), 0, gateSAFI,
		64, 6, 0, 0, byte(gateAFI >> 8), byte(gateAFI & 0xff), gateSAFI, 0,
		65, 4, byte(asn >> 24), byte(asn >> 16), byte(asn >> 8), byte(asn),
	}
	short := uint16(asTrans)
	if asn < 1<<16 {
		short = uint16(asn)
	}
	body := []byte{4}
	body = binary.BigEndian.AppendUint16(body, short)
	body = binary.BigEndian.AppendUint16(body, uint16(gateHold/time.Second))
	body = append(body, id.AsSlice()...)
	body = append(body, byte(len(caps)+2), 2, byte(len(caps)))
	return message(msgOpen, append(body, caps...))
}

// endOfRIB is an MP_UNREACH_NLRI that withdraws nothing (RFC 4724, section 2).
func endOfRIB() []byte {
	return []byte{0, 0, 0, 6, 0x80, 15, 3, byte(gateAFI >> 8), byte(gateAFI & 0xff), gateSAFI}
}

// otherID is a router id that is not the speaker's.
func otherID(id netip.Addr) netip.Addr {
	b := id.As4()
	b[3] ^= 1
	b[0] = 127 // of no router anywhere
	return netip.AddrFrom4(b)
}

// readMessage reads one message of the speaker's. The length is bounded: bytes of a child that
// parses what the fabric sends are trusted as little as those of the fabric.
func readMessage(r io.Reader) (typ byte, body []byte, err error) {
	var h [headerLen]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return 0, nil, err
	}
	n := int(binary.BigEndian.Uint16(h[16:]))
	if n < headerLen || n > maxMsgLen {
		return 0, nil, fmt.Errorf("message of %d bytes", n)
	}
	body = make([]byte, n-headerLen)
	_, err = io.ReadFull(r, body)
	return h[18], body, err
}
