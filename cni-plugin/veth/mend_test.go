package veth

import (
	"strings"
	"testing"

	"github.com/causeway-net/causeway/cni-plugin/internal/sandbox"
)

// TestMend: what others do to the host's end is undone without the pod's namespace, and a
// link that is as it should be is not touched.
func TestMend(t *testing.T) {
	w := newWirer(t)
	s := spec(t, "mend", sandbox.Pod(t))
	remove(t, w, s)
	l := wire(t, w, s)
	whole := s
	whole.MAC = l.MAC
	s.NetNS = nil
	for _, command := range []string{
		"",
		"ip link set HOST down",
		"ip link set HOST mtu 1400",
		"ip link set HOST address 02:00:00:00:00:01",
		"ip addr flush dev HOST",
		"sysctl -qw net.ipv4.conf.HOST.rp_filter=2 net.ipv4.conf.HOST.proxy_arp=0 net.ipv4.conf.HOST.forwarding=0 net.ipv4.neigh.HOST.proxy_delay=80",
		"sysctl -qw net.ipv6.conf.HOST.accept_ra=1 net.ipv6.conf.HOST.forwarding=0",
		"sysctl -qw net.ipv6.conf.HOST.disable_ipv6=1",
	} {
		sandbox.Run(t, "sh", "-ec", strings.ReplaceAll(command, "HOST", s.HostName))
		d, err := w.Mend(s)
		if err != nil {
			t.Errorf("%s: %v", command, err)
		}
		if (len(d) > 0) != (command != "") {
			t.Errorf("%q: mended %v", command, d)
		}
		if d, err = w.Check(whole, l.Routes); err != nil || len(d) > 0 {
			t.Errorf("%q: afterwards %v %v", command, d, err)
		}
	}
	other := s
	other.Owner.Key.ContainerID = "another"
	sandbox.Run(t, "ip", "link", "set", s.HostName, "down")
	if d, err := w.Mend(other); err != nil || d != nil {
		t.Errorf("the link of another container: %v %v", d, err)
	}
	missing := s
	missing.HostName = "cali0123456789a"
	if d, err := w.Mend(missing); err != nil || d != nil {
		t.Errorf("a link that is not there: %v %v", d, err)
	}
}
