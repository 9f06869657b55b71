package main

import (
	"strings"
	"testing"
	"time"
)

// TestSettled finds the start of what lasts to the end.
func TestSettled(t *testing.T) {
	const rounds = 100
	// Two pairs of flows: before round 30 the forbidden ones pass, from 30 to 34 nothing does,
	// round 40 loses one packet, and the last rounds are under way.
	var shots []shot
	for n := range rounds - 2 {
		for f := range 4 {
			if n < 30 || n > 34 && f%2 == 0 && (n != 40 || f == 0) {
				shots = append(shots, shot{flow: f, n: n, sent: time.Duration(n) * startEvery})
			}
		}
	}
	if at, ok := settled(shots, 4, rounds); !ok || at != 41*startEvery {
		t.Errorf("settled after %v, %t; want 41 intervals", at, ok)
	}
	if at, ok := settled(shots[:len(shots)-40], 4, rounds); ok {
		t.Errorf("settled after %v although the last packets are missing", at)
	}
}

func TestNetlinkBytes(t *testing.T) {
	const text = `12    sendto(3<NETLINK:[ROUTE:77]>, [{nlmsg_len=20, ...}], 36, 0, {sa_family=AF_NETLINK, nl_pid=0, nl_groups=00000000}, 12) = 36
13    sendmsg(5<NETLINK:[1234]>, {msg_name={sa_family=AF_NETLINK, nl_pid=0}, msg_namelen=12, msg_iov=[{iov_base=""..., iov_len=400}], msg_iovlen=1, msg_controllen=0, msg_flags=0}, 0) = 400
12    sendto(7<TCP:[10.60.1.2:3->10.60.9.2:6443]>, ""..., 999, 0, NULL, 0) = 999
12    write(8<NETLINK:[NETFILTER:9]>, ""..., 64) = 64
12    write(2</var/log/agent>, ""..., 640) = 640
14    sendmsg(5<NETLINK:[1234]>, {msg_name={sa_family=AF_NETLINK, nl_pid=0}, msg_namelen=12, msg_iov=[{iov_len=5}], msg_iovlen=1}, 0 <unfinished ...>
15    sendto(9<UDP:[1]>, ""..., 77, 0, NULL, 0 <unfinished ...>
14    <... sendmsg resumed>)            = 5
15    <... sendto resumed>)             = 77
16    setsockopt(4<RAW:[4]>, SOL_IP, IPT_SO_SET_REPLACE, ""..., 5000) = 0
16    setsockopt(4<RAW:[4]>, SOL_IP, IPT_SO_SET_ADD_COUNTERS, ""..., 300) = 0
16    setsockopt(4<NETLINK:[4]>, SOL_SOCKET, SO_RCVBUF, [1000], 4) = 0
17    sendto(3<NETLINK:[ROUTE:77]>, [{nlmsg_len=20}], 36, 0, {sa_family=AF_NETLINK, nl_pid=0}, 12) = -1 ENOBUFS (No buffer space available)
`
	if got, want := netlinkBytes(text), 36+400+64+5+5000+300; got != want {
		t.Errorf("netlinkBytes: %d, want %d", got, want)
	}
}

// TestPolicies holds the mix to what the report says of it.
func TestPolicies(t *testing.T) {
	ps, err := parsePolicies("a", tenantPolicies)
	if err != nil {
		t.Fatal(err)
	}
	if len(ps)+1 != perTenant || tenants*perTenant != 1000 {
		t.Errorf("%d policies of Kubernetes and one of Calico's, for %d tenants, are not 1,000", len(ps), tenants)
	}
	if _, err := parsePolicies("a", probePolicies); err != nil {
		t.Error(err)
	}
	apps := map[string]int{}
	for k := range localPods {
		apps[tenantPod{k}.app()]++
	}
	if len(apps) != len(tenantApps) {
		t.Errorf("the local pods are %v, want all of %v", apps, tenantApps)
	}
	if a, b := (tenantPod{0}).address(), (tenantPod{manyPods}).address(); a.String() != "10.128.0.1" || !strings.HasPrefix(b.String(), "10.128.39.") {
		t.Errorf("addresses %s and %s", a, b)
	}
}

func TestFirstDifference(t *testing.T) {
	for _, c := range []struct{ a, b, want string }{{"a b", "a b", ""}, {"a b", "a", "gone is b"}, {"a c", "a b c", "new is b"}, {"", "x", "new is x"}, {"a b c", "a c", "gone is b"}} {
		if got := firstDifference(strings.Fields(c.a), strings.Fields(c.b)); got != c.want {
			t.Errorf("%v, %v: %q, want %q", strings.Fields(c.a), strings.Fields(c.b), got, c.want)
		}
	}
}
