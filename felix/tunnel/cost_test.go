package tunnel

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/causeway-net/causeway/internal/model"
)

// counted counts what goes to the kernel under it.
type counted struct {
	kernel
	mu    sync.Mutex
	ops   []string
	reads int
}

func (c *counted) do(o *op) error {
	c.mu.Lock()
	c.ops = append(c.ops, o.String())
	c.mu.Unlock()
	return c.kernel.do(o)
}

// take returns the counts and begins anew.
func (c *counted) take() (ops []string, reads int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ops, reads = c.ops, c.reads
	c.ops, c.reads = nil, 0
	return ops, reads
}

func (c *counted) peers(index int) (map[mac]fdbEntry, map[netip.Addr]neighEntry, error) {
	c.mu.Lock()
	c.reads++
	c.mu.Unlock()
	return c.kernel.peers(index)
}

// TestCostOfAChange: with 1,000 peers the coming, change and going of one costs one message
// for the FDB and one for the neighbour, and no reading; a Set that changes nothing costs
// none. Counted at the seam, and by the kernel's own notifications.
func TestCostOfAChange(t *testing.T) {
	t.Parallel()
	for _, k := range []model.Tunnel{model.TunnelVXLAN4, model.TunnelVXLAN6} {
		t.Run(k.String(), func(t *testing.T) {
			t.Parallel()
			n := newNetNS(t)
			d := n.devices(discard)
			c := &counted{}
			open := d.open
			d.open = func() (kernel, error) {
				var err error
				c.kernel, err = open()
				return c, err
			}
			startIn(t, n, d)
			dev := deviceOf(k, 1)
			for i := range 1000 {
				dev.Peers = append(dev.Peers, peerOf(k, i+2))
			}
			set := func() {
				t.Helper()
				d.Set([]model.TunnelDevice{dev})
				if err := wait(t, d); err != nil {
					t.Fatal(err)
				}
			}
			set()
			var ops []string
			reads := 0
			settle := func() { // every notification of our own writes has come in and was looked at
				t.Helper()
				eventually(t, func() string {
					set()
					d.inbox.mu.Lock()
					quiet := d.inbox.waits == 0 && d.inbox.doubt == [kinds]doubt{}
					d.inbox.mu.Unlock()
					o, r := c.take()
					ops, reads = append(ops, o...), reads+r
					if !quiet || len(o)+r > 0 {
						return "the loop is busy"
					}
					return ""
				})
			}
			settle()
			if s := d.Status(); len(s) != 1 || s[0].Peers != 1000 {
				t.Fatalf("status %v", s)
			}

			var notes *subscription
			n.run(func() {
				var err error
				if notes, err = subscribe(); err != nil {
					t.Error(err)
				}
			})
			if t.Failed() {
				return
			}
			m := nodeMAC("node1002", k)
			p := peerOf(k, 1002)
			moved := peerOf(k, 1003).Underlay
			for _, step := range []struct {
				name   string
				change func()
				want   []string
			}{
				{"nothing", func() {}, nil},
				{"a peer comes", func() { dev.Peers = append(dev.Peers, p) }, []string{
					op{verb: fdbSet, kind: k, mac: m, addr: p.Underlay}.String(), op{verb: neighSet, kind: k, mac: m, addr: p.Addr}.String()}},
				{"it moves", func() { dev.Peers[1000].Underlay = moved }, []string{op{verb: fdbSet, kind: k, mac: m, addr: moved}.String()}},
				{"it goes", func() { dev.Peers = dev.Peers[:1000] }, []string{
					op{verb: neighDel, kind: k, addr: p.Addr}.String(), op{verb: fdbDel, kind: k, mac: m}.String()}},
			} {
				ops, reads = nil, 0
				step.change()
				settle()
				if !slices.Equal(ops, step.want) || reads != 0 {
					t.Errorf("%s: %d readings of peers, and\n%s", step.name, reads, strings.Join(ops, "\n"))
				}
			}
			seen := map[string]int{}
			if err := notes.s.SetReceiveTimeout(&unix.Timeval{Usec: 200_000}); err != nil {
				t.Fatal(err)
			}
			for {
				msgs, _, err := notes.s.Receive()
				if err != nil {
					break
				}
				for _, msg := range msgs {
					if x, ok := parseNeigh(msg.Data); ok && (msg.Header.Type == unix.RTM_NEWNEIGH || msg.Header.Type == unix.RTM_DELNEIGH) {
						what := "neighbour"
						if x.family == unix.AF_BRIDGE && !x.full {
							continue
						} else if x.family == unix.AF_BRIDGE {
							what = "FDB entry"
						}
						seen[fmt.Sprintf("%s %s", map[bool]string{true: "set", false: "deleted"}[msg.Header.Type == unix.RTM_NEWNEIGH && x.state == unix.NUD_PERMANENT], what)]++
					}
				}
			}
			notes.close()
			if seen["set FDB entry"] != 2 || seen["set neighbour"] != 1 || seen["deleted FDB entry"] != 1 || seen["deleted neighbour"] < 1 || seen["deleted neighbour"] > 2 {
				t.Errorf("the kernel told of %v", seen)
			}
		})
	}
}
