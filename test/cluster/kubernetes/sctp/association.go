package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"time"
)

// Chunk types of RFC 9260 §3.2.
const (
	chunkInit       = 1
	chunkInitAck    = 2
	chunkAbort      = 6
	chunkCookieEcho = 10
	chunkCookieAck  = 11
)

const (
	protocol    = 132
	headerSize  = 12
	paramCookie = 7 // RFC 9260 §3.3.3
	// retransmit is how long a chunk waits for its answer; RTO.Min of RFC 9260 §16.
	retransmit = time.Second
)

var (
	errAborted = errors.New("the association was aborted")
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// packet is an SCTP packet with one chunk, which is all that setting up an association
// needs.
type packet struct {
	from, to uint16 // ports
	tag      uint32 // verification tag
	chunk    byte
	value    []byte
}

func (p packet) marshal() []byte {
	length := 4 + len(p.value)
	b := make([]byte, headerSize+(length+3)/4*4)
	binary.BigEndian.PutUint16(b[0:], p.from)
	binary.BigEndian.PutUint16(b[2:], p.to)
	binary.BigEndian.PutUint32(b[4:], p.tag)
	b[headerSize] = p.chunk
	binary.BigEndian.PutUint16(b[headerSize+2:], uint16(length))
	copy(b[headerSize+4:], p.value)
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, castagnoli)) // over a zero checksum
	return b
}

// parse reads a packet's first chunk. One with a wrong checksum is no packet: whoever
// translated its ports must have made it anew.
func parse(b []byte) (packet, bool) {
	if len(b) < headerSize+4 {
		return packet{}, false
	}
	sum := binary.LittleEndian.Uint32(b[8:])
	zeroed := append([]byte(nil), b...)
	clear(zeroed[8:12])
	length := int(binary.BigEndian.Uint16(b[headerSize+2:]))
	if crc32.Checksum(zeroed, castagnoli) != sum || length < 4 || headerSize+length > len(b) {
		return packet{}, false
	}
	return packet{from: binary.BigEndian.Uint16(b[0:]), to: binary.BigEndian.Uint16(b[2:]), tag: binary.BigEndian.Uint32(b[4:]),
		chunk: b[headerSize], value: b[headerSize+4 : headerSize+length]}, true
}

// initValue is that of an INIT or INIT ACK chunk: tag, window, streams each way, TSN.
func initValue(tag uint32) []byte {
	b := make([]byte, 16)
	binary.BigEndian.PutUint32(b[0:], tag)
	binary.BigEndian.PutUint32(b[4:], 64<<10)
	binary.BigEndian.PutUint16(b[8:], 1)
	binary.BigEndian.PutUint16(b[10:], 1)
	binary.BigEndian.PutUint32(b[12:], 1)
	return b
}

// newTag is a verification tag: random and not zero.
func newTag() uint32 { return rand.Uint32N(1<<32-1) + 1 }

func listen(family string) (*net.IPConn, error) {
	return net.ListenIP(fmt.Sprintf("%s:%d", family, protocol), nil)
}

// associate sets up an association, all four packets of it, and aborts it.
func associate(ctx context.Context, to netip.AddrPort) error {
	family := "ip4"
	if to.Addr().Is6() {
		family = "ip6"
	}
	conn, err := listen(family)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	peer := &net.IPAddr{IP: to.Addr().AsSlice(), Zone: to.Addr().Zone()}
	port, own := uint16(32768+rand.IntN(28000)), newTag()
	send := func(tag uint32, chunk byte, value []byte) error {
		_, err := conn.WriteToIP(packet{from: port, to: to.Port(), tag: tag, chunk: chunk, value: value}.marshal(), peer)
		return err
	}
	ack, err := exchange(ctx, conn, port, own, chunkInitAck, func() error { return send(0, chunkInit, initValue(own)) })
	if err != nil {
		return err
	}
	tag, cookie, err := parseInitAck(ack.value)
	if err != nil {
		return err
	}
	if _, err := exchange(ctx, conn, port, own, chunkCookieAck, func() error { return send(tag, chunkCookieEcho, cookie) }); err != nil {
		return err
	}
	return send(tag, chunkAbort, nil)
}

// exchange sends, again and again, until a packet for the port with the tag and the wanted
// chunk answers.
func exchange(ctx context.Context, conn *net.IPConn, port uint16, tag uint32, want byte, send func() error) (packet, error) {
	buf := make([]byte, 2048)
	for {
		if err := send(); err != nil {
			return packet{}, errors.Join(ctx.Err(), err)
		}
		if err := conn.SetReadDeadline(time.Now().Add(retransmit)); err != nil {
			return packet{}, errors.Join(ctx.Err(), err)
		}
		for {
			n, _, err := conn.ReadFromIP(buf)
			if ctx.Err() != nil {
				return packet{}, ctx.Err()
			}
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				return packet{}, err
			}
			p, ok := parse(buf[:n])
			switch {
			case !ok || p.to != port || p.tag != tag:
			case p.chunk == chunkAbort:
				return packet{}, errAborted
			case p.chunk == want:
				return p, nil
			}
		}
	}
}

func parseInitAck(value []byte) (tag uint32, cookie []byte, err error) {
	if len(value) < 16 {
		return 0, nil, errors.New("INIT ACK: too short")
	}
	tag = binary.BigEndian.Uint32(value)
	for rest := value[16:]; len(rest) >= 4; {
		kind, length := binary.BigEndian.Uint16(rest), int(binary.BigEndian.Uint16(rest[2:]))
		if length < 4 || length > len(rest) {
			break
		}
		if kind == paramCookie {
			return tag, rest[4:length], nil
		}
		rest = rest[min((length+3)/4*4, len(rest)):]
	}
	return 0, nil, errors.New("INIT ACK: no State Cookie")
}

// serve answers who sets up an association with a port, until the context ends. It keeps
// no state: the cookie says all.
func serve(ctx context.Context, port uint16) error {
	done := make(chan error, 2)
	for _, family := range []string{"ip4", "ip6"} {
		conn, err := listen(family)
		if err != nil {
			return err
		}
		defer conn.Close()
		go func() { done <- answer(conn, port) }()
	}
	fmt.Printf("SCTP port %d is served\n", port)
	select {
	case <-ctx.Done():
		return nil
	case err := <-done:
		return err
	}
}

func answer(conn *net.IPConn, port uint16) error {
	buf := make([]byte, 2048)
	for {
		n, from, err := conn.ReadFromIP(buf)
		if err != nil {
			return err
		}
		p, ok := parse(buf[:n])
		if !ok || p.to != port {
			continue
		}
		reply, ok := respond(p)
		if !ok {
			continue
		}
		// Who cannot be reached is no reason to stop serving others.
		if _, err := conn.WriteToIP(reply.marshal(), from); err != nil {
			fmt.Printf("SCTP port %d: to %s: %v\n", port, from, err)
		}
	}
}

// respond is what a server answers: INIT ACK with a cookie to INIT, COOKIE ACK to a cookie
// of ours.
func respond(p packet) (packet, bool) {
	reply := packet{from: p.to, to: p.from}
	switch {
	case p.chunk == chunkInit && p.tag == 0 && len(p.value) >= 16:
		reply.tag, reply.chunk = binary.BigEndian.Uint32(p.value), chunkInitAck
		own := newTag()
		reply.value = binary.BigEndian.AppendUint16(initValue(own), paramCookie)
		reply.value = binary.BigEndian.AppendUint16(reply.value, 12)
		reply.value = binary.BigEndian.AppendUint32(reply.value, own)
		reply.value = binary.BigEndian.AppendUint32(reply.value, reply.tag)
		return reply, true
	case p.chunk == chunkCookieEcho && len(p.value) == 8 && binary.BigEndian.Uint32(p.value) == p.tag:
		reply.tag, reply.chunk = binary.BigEndian.Uint32(p.value[4:]), chunkCookieAck
		return reply, true
	}
	return packet{}, false
}
