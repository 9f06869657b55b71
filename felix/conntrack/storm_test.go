package conntrack_test

import (
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// feed gives a command in the node's namespace its input.
func (n *node) feed(t testing.TB, command, input string) {
	t.Helper()
	cmd := exec.Command("ip", append([]string{"netns", "exec", n.name}, strings.Fields(command)...)...)
	cmd.Stdin = strings.NewReader(input)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s%s", command, err, out, input)
	}
}

// storm is a client that opens one UDP connection after the other and keeps sending on
// the youngest of them, and a server that sends to all it ever heard of.
type storm struct {
	opened atomic.Int64
	heard  [2]atomic.Int64
	last   [2]atomic.Int64 // unix ns
}

func newStorm(t *testing.T, clientNS, serverNS string, serve netip.AddrPort) *storm {
	s := &storm{}
	var server *net.UDPConn
	err := entering(serverNS)(func() (err error) {
		server, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(serve))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	const kept = 100
	var (
		wg      sync.WaitGroup
		quit    = make(chan struct{})
		mu      sync.Mutex
		closed  bool
		clients []net.Conn
		peers   []netip.AddrPort
	)
	heard := func(side int) {
		s.heard[side].Add(1)
		s.last[side].Store(time.Now().UnixNano())
	}
	every := func(d time.Duration, f func()) {
		wg.Go(func() {
			tick := time.NewTicker(d)
			defer tick.Stop()
			for {
				select {
				case <-quit:
					return
				case <-tick.C:
					f()
				}
			}
		})
	}
	every(2*time.Millisecond, func() {
		var c net.Conn
		err := entering(clientNS)(func() (err error) {
			c, err = net.Dial("udp", serve.String())
			return err
		})
		if err != nil {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		if closed {
			c.Close()
			return
		}
		_, _ = c.Write([]byte("hello"))
		s.opened.Add(1)
		clients = append(clients, c)
		if len(clients) > kept {
			clients[0].Close()
			clients = clients[1:]
		}
		wg.Go(func() {
			b := make([]byte, 16)
			for {
				if _, err := c.Read(b); err != nil {
					return
				}
				heard(0)
			}
		})
	})
	every(20*time.Millisecond, func() {
		mu.Lock()
		defer mu.Unlock()
		for _, c := range clients {
			_, _ = c.Write([]byte("again"))
		}
		for _, p := range peers[max(0, len(peers)-kept):] {
			_, _ = server.WriteToUDPAddrPort([]byte("back"), p)
		}
	})
	wg.Go(func() {
		known := map[netip.AddrPort]bool{}
		b := make([]byte, 16)
		for {
			_, from, err := server.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			heard(1)
			if !known[from] {
				known[from] = true
				mu.Lock()
				peers = append(peers, from)
				mu.Unlock()
			}
		}
	})
	t.Cleanup(func() {
		close(quit)
		server.Close()
		mu.Lock()
		closed = true
		for _, c := range clients {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return s
}
