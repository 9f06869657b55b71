package kerneltest

import (
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/causeway-net/causeway/felix/trace"
)

// ways are packets of every protocol on every kind of way.
func ways(l *Lab) (out []trace.Packet) {
	addr := netip.MustParseAddr
	for _, v6 := range []bool{false, true} {
		pod0, pod1, host, outside := addr("10.0.0.1"), addr("10.0.0.2"), addr("192.168.0.1"), addr("203.0.113.9")
		if v6 {
			pod0, pod1, host, outside = addr("fd00::1"), addr("fd00::2"), addr("fd01::1"), addr("2001:db8:9::9")
		}
		for _, ends := range [][2]netip.Addr{{pod0, pod1}, {pod0, host}, {host, pod1}, {pod1, outside}, {outside, pod0}, {outside, host}, {host, outside}} {
			for _, protocol := range protocols {
				p := trace.Packet{Src: ends[0], Dst: ends[1], Protocol: uint8(protocol), SrcPort: 4000, DstPort: 80, ICMPType: 8}
				if v6 {
					p.ICMPType = 128
				}
				p.In, _ = l.Out(p.Src)
				p.Out, _ = l.Out(p.Dst)
				if l.Possible(p) {
					out = append(out, p)
				}
			}
		}
	}
	return out
}

func lab(t *testing.T) *Lab {
	c := RandomConfig()
	for i := range 2 {
		for _, p := range []string{fmt.Sprintf("10.0.0.%d/32", i+1), fmt.Sprintf("fd00::%d/128", i+1)} {
			c.Routes[netip.MustParsePrefix(p)] = fmt.Sprintf("cali%d", i)
		}
	}
	return New(t, c)
}

// TestLab sends packets of all protocols on all ways: they arrive where nothing filters, and
// as first packets of connections that the kernel tracks and takes for valid; and none
// arrives where all are dropped.
func TestLab(t *testing.T) {
	l := lab(t)
	packets := ways(l)
	if len(packets) < 60 {
		t.Fatalf("%d packets only", len(packets))
	}
	all := make([]bool, len(packets))
	for i := range all {
		all[i] = true
	}
	check := func(what string, want []bool) {
		t.Helper()
		wrong, err := l.Check(packets, want)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range wrong {
			t.Errorf("%s: %s: arrived %v", what, packets[i], !want[i])
		}
	}
	rules := func(rule string) {
		t.Helper()
		text := "table inet t\ndelete table inet t\ntable inet t {\n"
		for _, hook := range []string{"input", "output", "forward"} {
			text += fmt.Sprintf("chain %s { type filter hook %s priority 0; %s\n}\n", hook, hook, rule)
		}
		l.Run(t, "nft", text+"}\n")
	}
	check("no filter", all)
	rules("ct state != new drop")
	check("only new connections", all)
	rules("drop")
	check("nothing", make([]bool, len(packets)))
	rules(fmt.Sprintf("meta l4proto != %d drop", unix.IPPROTO_UDP))
	udp := make([]bool, len(packets))
	for i, p := range packets {
		udp[i] = p.Protocol == unix.IPPROTO_UDP
	}
	check("only UDP", udp)
}
