package traffic

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"
)

// Endpoint takes part in a ping matrix.
type Endpoint struct {
	Space
	Addrs []netip.Addr // it is pinged at each of them
}

// PingConfig of a matrix. The zero value does.
type PingConfig struct {
	// Timeout is how long to wait for the answers; default 3 s, which leaves neighbour
	// discovery a second try. When all have answered there is no waiting.
	Timeout time.Duration
	// Interval is the time between the tries within Timeout; default 250 ms. The first
	// packet of a pair may wait for neighbour discovery.
	Interval time.Duration
}

// PingResult is one pair of a matrix.
type PingResult struct {
	From   string     `json:"from"`
	To     string     `json:"to"`
	Target netip.Addr `json:"target"`
	OK     bool       `json:"ok"`
	Tries  int        `json:"tries"`
	RTT    Millis     `json:"rtt_ms"` // of the answered try
	Error  string     `json:"error,omitempty"`
}

// Matrix is the outcome of a ping matrix.
type Matrix []PingResult

// Failed lists the pairs without an answer.
func (m Matrix) Failed() Matrix {
	var out Matrix
	for _, r := range m {
		if !r.OK {
			out = append(out, r)
		}
	}
	return out
}

// String is a line for each pair.
func (m Matrix) String() string {
	var b strings.Builder
	for _, r := range m {
		switch {
		case r.OK:
			fmt.Fprintf(&b, "%-20s -> %-20s %-28s %s\n", r.From, r.To, r.Target, r.RTT)
		default:
			fmt.Fprintf(&b, "%-20s -> %-20s %-28s no answer %s\n", r.From, r.To, r.Target, r.Error)
		}
	}
	return b.String()
}

// PingAll pings every address of every endpoint in to from every endpoint in from, all at
// once, except an endpoint from itself. An endpoint without an address of the target's
// family is no source for it; a source with no addresses at all (a router) is one for all.
// The order of the result is that of the arguments.
func PingAll(ctx context.Context, from, to []Endpoint, cfg PingConfig) Matrix {
	if cfg.Timeout == 0 {
		cfg.Timeout = 3 * time.Second
	}
	if cfg.Interval == 0 {
		cfg.Interval = 250 * time.Millisecond
	}
	var (
		all  Matrix
		wg   sync.WaitGroup
		jobs []func(Matrix)
	)
	for _, f := range from {
		for _, v6 := range []bool{false, true} {
			if !f.has(v6) {
				continue
			}
			first := len(all)
			for _, t := range to {
				for _, a := range t.Addrs {
					if a.Is6() == v6 && f.Space.String() != t.Space.String() {
						all = append(all, PingResult{From: f.String(), To: t.String(), Target: a})
					}
				}
			}
			last := len(all)
			if first == last {
				continue
			}
			jobs = append(jobs, func(m Matrix) { pingFrom(ctx, f.Space, v6, m[first:last], cfg) })
		}
	}
	for _, job := range jobs {
		wg.Add(1)
		go func() {
			defer wg.Done()
			job(all)
		}()
	}
	wg.Wait()
	return all
}

func (e Endpoint) has(v6 bool) bool {
	for _, a := range e.Addrs {
		if a.Is6() == v6 {
			return true
		}
	}
	return len(e.Addrs) == 0
}

// ICMP types (RFC 792, RFC 4443).
const (
	echoRequest4, echoReply4 = 8, 0
	echoRequest6, echoReply6 = 128, 129
)

// pingFrom pings the targets of results, which all have one family, over one raw socket.
func pingFrom(ctx context.Context, from Space, v6 bool, results []PingResult, cfg PingConfig) {
	network, any, request, want := "ip4:icmp", "0.0.0.0", byte(echoRequest4), byte(echoReply4)
	if v6 {
		network, any, request, want = "ip6:ipv6-icmp", "::", echoRequest6, echoReply6
	}
	var conn *net.IPConn
	err := from.Do(func() error {
		var err error
		conn, err = net.ListenIP(network, &net.IPAddr{IP: net.ParseIP(any)})
		return err
	})
	if err != nil {
		for i := range results {
			results[i].Error = err.Error()
		}
		return
	}
	defer conn.Close()
	id := uint16(rand.Uint32())
	end := time.Now().Add(cfg.Timeout)
	open := len(results)
	sentAt := make([]time.Time, len(results))
	buf := make([]byte, 2048)
	for open > 0 && ctx.Err() == nil && time.Now().Before(end) {
		for i := range results {
			r := &results[i]
			if r.OK {
				continue
			}
			r.Tries++
			sentAt[i] = time.Now()
			if _, err := conn.WriteTo(echo(request, id, uint16(i), v6), &net.IPAddr{IP: r.Target.AsSlice()}); err != nil {
				r.Error = err.Error()
			} else {
				r.Error = ""
			}
		}
		next := time.Now().Add(cfg.Interval)
		if next.After(end) {
			next = end
		}
		conn.SetReadDeadline(next)
		for open > 0 {
			n, peer, err := conn.ReadFrom(buf)
			if err != nil {
				break // the deadline
			}
			if n < 8 || buf[0] != want || binary.BigEndian.Uint16(buf[4:]) != id {
				continue
			}
			i := int(binary.BigEndian.Uint16(buf[6:]))
			if i >= len(results) || results[i].OK {
				continue
			}
			r := &results[i]
			if a, ok := netip.AddrFromSlice(peer.(*net.IPAddr).IP); !ok || a.Unmap() != r.Target {
				continue // somebody else answers for the target
			}
			r.OK, r.Error, r.RTT = true, "", Millis(time.Since(sentAt[i]))
			open--
		}
	}
}

// echo makes an ICMP echo request. The kernel fills in the checksum of ICMPv6 only.
func echo(typ byte, id, seq uint16, v6 bool) []byte {
	b := make([]byte, 8+32)
	b[0] = typ
	binary.BigEndian.PutUint16(b[4:], id)
	binary.BigEndian.PutUint16(b[6:], seq)
	if !v6 {
		binary.BigEndian.PutUint16(b[2:], checksum(b))
	}
	return b
}

// checksum is the Internet checksum (RFC 1071) of an even number of bytes.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
