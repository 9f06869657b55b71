package policy

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/causeway-net/causeway/test/lab"
	"github.com/causeway-net/causeway/test/lab/traffic"
	"github.com/causeway-net/causeway/test/topology/policy/probe"
	"github.com/causeway-net/causeway/test/topology/scenario"
)

// hailPort is where hails are sent to unless a scenario says another port.
const hailPort = 7777

// openTap counts what arrives at a place until the test ends.
func openTap(t *testing.T, at traffic.Space) *probe.Tap {
	t.Helper()
	tp, err := probe.OpenTap(at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tp.Close)
	return tp
}

// startHail sends datagrams until the test ends.
func startHail(t *testing.T, from traffic.Space, pps int, targets ...netip.AddrPort) *probe.Hail {
	t.Helper()
	h, err := probe.StartHail(from, pps, targets...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}

// at gives each address a port.
func at(port uint16, addrs ...netip.Addr) []netip.AddrPort {
	var out []netip.AddrPort
	for _, a := range addrs {
		out = append(out, netip.AddrPortFrom(a, port))
	}
	return out
}

// goOn waits until each hail has sent n more datagrams.
func goOn(t *testing.T, n int, hails ...*probe.Hail) {
	t.Helper()
	var until []int64
	for _, h := range hails {
		until = append(until, h.Sent()+int64(lab.SlowRate(n)))
	}
	for i, h := range hails {
		scenario.Eventually(t, time.Minute, "the hail from "+h.String()+" goes on", func() error {
			if h.Sent() < until[i] {
				return errors.New("not yet")
			}
			return nil
		})
	}
}

// flows are connections of one kind of pod.
type flows []*probe.Flow

// between opens flows of both protocols and families, which last until the test ends.
func between(t *testing.T, from, to *lab.Pod) (out flows) {
	t.Helper()
	for _, network := range []string{"tcp", "udp"} {
		for _, v6 := range families {
			fl, err := probe.OpenFlow(probe.FlowConfig{Network: network, From: from, To: to, Listen: netip.AddrPortFrom(to.Address(v6), 0)})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(fl.Close)
			out = append(out, fl)
		}
	}
	out.goOn(t, 5*time.Second)
	return out
}

// goOn waits until both ends of each flow have heard 20 numbers more.
func (fs flows) goOn(t *testing.T, within time.Duration) {
	t.Helper()
	var since [][2]int64
	for _, fl := range fs {
		since = append(since, fl.Heard())
	}
	for i, fl := range fs {
		scenario.Eventually(t, within, fl.String()+" goes on", func() error { return fl.GoesOn(since[i], 20) })
	}
}

// lost is how many numbers of the UDP flows were lost so far.
func (fs flows) lost() (sum int64) {
	for _, fl := range fs {
		sum += fl.Lost()
	}
	return sum
}
