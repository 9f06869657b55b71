package watch

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/internal/model"
)

// What holds without a BGPConfiguration; Calico's defaults.
const (
	DefaultASN           = 64512
	DefaultListenPort    = 179
	DefaultRoutePriority = 1024

	defaultConfiguration = "default"
	nodeConfiguration    = "node."
)

// bgpConfiguration is the converted form of a BGPConfiguration: the default one's in full,
// or the overrides of one node, where a zero value or nil leaves what the default says.
type bgpConfiguration struct {
	node     string // empty: the default
	config   model.BGPConfig
	password *passwordRef
	prefixes []model.PrefixCommunities // nil: not set
}

// passwordRef says where a password is.
type passwordRef struct {
	field     string // of the object that refers to it
	name, key string
	optional  bool
}

func (c *checker) bgpConfiguration(b *v3.BGPConfiguration) bgpConfiguration {
	out := bgpConfiguration{prefixes: c.prefixCommunities(&b.Spec)}
	node, isNode := strings.CutPrefix(b.Name, nodeConfiguration)
	switch {
	case isNode && node != "":
		out.node = node
	case b.Name != defaultConfiguration && b.Name != "":
		c.bad(".metadata.name", `is %q; must be "default" for the cluster or "node." and the name of a node`, b.Name)
	}
	s := &b.Spec
	if p := s.ListenPort; p != nil {
		if *p < 1 || *p > 65535 {
			c.bad(".spec.listenPort", "is %d; must be 1 to 65535", *p)
		}
		out.config.ListenPort = uint16(*p)
	}
	c.bgpUnused(s)
	if out.node != "" {
		c.defaultOnly(s)
		return out
	}

	cfg := &out.config
	cfg.ASN, cfg.Mesh = DefaultASN, true
	if cfg.ListenPort == 0 {
		cfg.ListenPort = DefaultListenPort
	}
	if s.ASNumber != nil {
		if cfg.ASN = *s.ASNumber; cfg.ASN == 0 {
			c.bad(".spec.asNumber", "is 0; must be 1 to 4294967295")
		}
	}
	if s.NodeToNodeMeshEnabled != nil {
		cfg.Mesh = *s.NodeToNodeMeshEnabled
	}
	out.password = c.password(".spec.nodeMeshPassword", s.NodeMeshPassword)
	if out.password != nil && !cfg.Mesh {
		c.bad(".spec.nodeMeshPassword", "is set while nodeToNodeMeshEnabled is false; remove one of them")
	}
	cfg.MeshRestartTime = c.restartTime(".spec.nodeMeshMaxRestartTime", s.NodeMeshMaxRestartTime)
	if s.NodeMeshMaxRestartTime != nil && !cfg.Mesh {
		c.bad(".spec.nodeMeshMaxRestartTime", "is set while nodeToNodeMeshEnabled is false; remove one of them")
	}
	if m := s.BindMode; m != nil {
		cfg.BindNodeIP = enum(c, ".spec.bindMode", *m, v3.BindModeNone, v3.BindModeNodeIP) == v3.BindModeNodeIP
	}
	cfg.RoutePriority4 = c.priority(".spec.ipv4NormalRoutePriority", s.IPv4NormalRoutePriority)
	cfg.RoutePriority6 = c.priority(".spec.ipv6NormalRoutePriority", s.IPv6NormalRoutePriority)
	return out
}

func (c *checker) priority(field string, p *int) int {
	if p == nil {
		return DefaultRoutePriority
	}
	if *p < 1 || *p > 2147483646 {
		c.bad(field, "is %d; must be 1 to 2147483646", *p)
	}
	return *p
}

var logSeverities = regexp.MustCompile(`^(?i)(Trace|Debug|Info|Warning|Error|Fatal)?$`)

// bgpUnused checks the fields that are accepted and not acted on.
func (c *checker) bgpUnused(s *v3.BGPConfigurationSpec) {
	switch {
	case !logSeverities.MatchString(s.LogSeverityScreen):
		c.bad(".spec.logSeverityScreen", "is %q; must be one of Trace, Debug, Info, Warning, Error, Fatal", s.LogSeverityScreen)
	case s.LogSeverityScreen != "" && !strings.EqualFold(s.LogSeverityScreen, "Info"):
		c.ignored(".spec.logSeverityScreen", "is not acted on; the log level is the agent's own option")
	}
	for i, x := range s.ServiceClusterIPs {
		c.cidr(fmt.Sprintf(".spec.serviceClusterIPs[%d].cidr", i), x.CIDR)
	}
	for i, x := range s.ServiceExternalIPs {
		c.cidr(fmt.Sprintf(".spec.serviceExternalIPs[%d].cidr", i), x.CIDR)
	}
	for i, x := range s.ServiceLoadBalancerIPs {
		c.cidr(fmt.Sprintf(".spec.serviceLoadBalancerIPs[%d].cidr", i), x.CIDR)
	}
	const services = notYet + ": addresses of Services are not advertised"
	if len(s.ServiceClusterIPs) > 0 {
		c.ignored(".spec.serviceClusterIPs", services)
	}
	if len(s.ServiceExternalIPs) > 0 {
		c.ignored(".spec.serviceExternalIPs", services)
	}
	if len(s.ServiceLoadBalancerIPs) > 0 {
		c.ignored(".spec.serviceLoadBalancerIPs", services)
	}
	if enum(c, ".spec.serviceLoadBalancerAggregation", s.ServiceLoadBalancerAggregation,
		v3.ServiceLoadBalancerAggregationEnabled, v3.ServiceLoadBalancerAggregationDisabled) == v3.ServiceLoadBalancerAggregationDisabled {
		c.ignored(".spec.serviceLoadBalancerAggregation", services)
	}
	if len(s.IgnoredInterfaces) > 0 {
		c.ignored(".spec.ignoredInterfaces", "is not acted on: routes are never read from interfaces")
	}
	for _, f := range []struct {
		field, value string
		v4           bool
	}{
		{".spec.localWorkloadPeeringIPV4", s.LocalWorkloadPeeringIPV4, true},
		{".spec.localWorkloadPeeringIPV6", s.LocalWorkloadPeeringIPV6, false},
	} {
		if f.value == "" {
			continue
		}
		if a, err := netip.ParseAddr(f.value); err != nil || a.Is4() != f.v4 {
			c.bad(f.field, "is %q; must be an address of that family", f.value)
		}
		c.ignored(f.field, notYet+": there are no sessions with local workloads")
	}
	if p := s.ProgramClusterRoutes; p != nil {
		enum(c, ".spec.programClusterRoutes", *p, v3.ProgramClusterRoutesEnabled, v3.ProgramClusterRoutesDisabled,
			v3.ProgramClusterRoutesEnabledIPIPOnly, v3.ProgramClusterRoutesEnabledNoEncapOnly)
		if *p != v3.ProgramClusterRoutesEnabled {
			c.ignored(".spec.programClusterRoutes", "is %s, which "+notYet+": all routes that BGP carries are programmed (Enabled)", *p)
		}
	}
}

// defaultOnly checks that the configuration of one node leaves alone what holds for the
// cluster. Calico refuses the first two and reads the others from "default" only.
func (c *checker) defaultOnly(s *v3.BGPConfigurationSpec) {
	if s.ASNumber != nil {
		c.bad(".spec.asNumber", `can be set in "default" only; a node's own AS number is its annotation %s`, AnnotationASNumber)
	}
	if s.NodeToNodeMeshEnabled != nil {
		c.bad(".spec.nodeToNodeMeshEnabled", `can be set in "default" only`)
	}
	for _, f := range []struct {
		field string
		set   bool
	}{
		{".spec.nodeMeshPassword", s.NodeMeshPassword != nil},
		{".spec.nodeMeshMaxRestartTime", s.NodeMeshMaxRestartTime != nil},
		{".spec.bindMode", s.BindMode != nil},
		{".spec.ipv4NormalRoutePriority", s.IPv4NormalRoutePriority != nil},
		{".spec.ipv6NormalRoutePriority", s.IPv6NormalRoutePriority != nil},
	} {
		if f.set {
			c.ignored(f.field, `is not acted on in the configuration of one node; it is read from "default" only`)
		}
	}
}

// prefixCommunities resolves prefixAdvertisements; nil when there are none.
func (c *checker) prefixCommunities(s *v3.BGPConfigurationSpec) []model.PrefixCommunities {
	named := map[string]string{}
	for i, x := range s.Communities {
		field := fmt.Sprintf(".spec.communities[%d]", i)
		if x.Name == "" {
			c.bad(field+".name", "is missing")
		} else if _, twice := named[x.Name]; twice {
			c.bad(field+".name", "is %q, which is defined already; names must differ", x.Name)
		}
		if err := checkCommunity(x.Value); err != nil {
			c.bad(field+".value", "%v", err)
		}
		named[x.Name] = x.Value
	}
	var out []model.PrefixCommunities
	for i, x := range s.PrefixAdvertisements {
		field := fmt.Sprintf(".spec.prefixAdvertisements[%d]", i)
		p := model.PrefixCommunities{CIDR: c.cidr(field+".cidr", x.CIDR)}
		for j, s := range x.Communities {
			if value, ok := named[s]; ok {
				s = value
			} else if !strings.Contains(s, ":") {
				c.bad(fmt.Sprintf("%s.communities[%d]", field, j), "is %q, a name that .spec.communities does not define", s)
			} else if err := checkCommunity(s); err != nil {
				c.bad(fmt.Sprintf("%s.communities[%d]", field, j), "%v", err)
			}
			p.Communities = append(p.Communities, s)
		}
		slices.Sort(p.Communities)
		p.Communities = slices.Compact(p.Communities)
		out = append(out, p)
	}
	slices.SortStableFunc(out, func(a, b model.PrefixCommunities) int { return comparePrefix(a.CIDR, b.CIDR) })
	return out
}

// checkCommunity accepts "aa:nn" with halves of 16 bits (RFC 1997) and "aa:nn:mm" with
// parts of 32 bits (RFC 8092).
func checkCommunity(s string) error {
	parts := strings.Split(s, ":")
	bits := 16
	if len(parts) == 3 {
		bits = 32
	}
	for _, p := range parts {
		if _, err := strconv.ParseUint(p, 10, bits); err != nil || len(parts) < 2 || len(parts) > 3 {
			return fmt.Errorf(`is %q; must be "aa:nn" with numbers up to 65535, or "aa:nn:mm" with numbers up to 4294967295`, s)
		}
	}
	return nil
}

func (c *checker) password(field string, p *v3.BGPPassword) *passwordRef {
	if p == nil {
		return nil
	}
	if p.SecretKeyRef == nil {
		c.bad(field, "has no secretKeyRef; must name the Secret and the key that hold the password")
		return nil
	}
	r := passwordRef{field: field + ".secretKeyRef", name: p.SecretKeyRef.Name, key: p.SecretKeyRef.Key}
	if r.name == "" {
		c.bad(r.field+".name", "is missing; must be the name of a Secret")
	}
	if r.key == "" {
		c.bad(r.field+".key", "is missing; must be a key of the Secret")
	}
	r.optional = p.SecretKeyRef.Optional != nil && *p.SecretKeyRef.Optional
	return &r
}

// passwordKey names a password of the secret namespace.
type passwordKey struct{ secret, key string }

// maxPassword is the length of the longest TCP MD5 key (linux/tcp.h TCP_MD5SIG_MAXKEYLEN).
const maxPassword = 80

// resolve returns the password, or why there is none. The reason never shows a value. Only
// what is absent can be optional: what is there and cannot be used is an error.
func (r *passwordRef) resolve(secrets map[string]secret, unread map[string]Unread, namespace string) (string, error) {
	s, there := secrets[r.name]
	v, ok := s[r.key]
	u, unknown := unread[r.name]
	switch {
	case unknown && !there:
		return "", fmt.Errorf("the Secret %s/%s cannot be read: %s", namespace, r.name, u.Why)
	case !ok && r.optional:
		return "", nil
	case !there:
		return "", fmt.Errorf("there is no Secret %s/%s", namespace, r.name)
	case !ok:
		return "", fmt.Errorf("the Secret %s/%s has no key %q", namespace, r.name, r.key)
	case len(v) == 0:
		return "", fmt.Errorf("the key %q of the Secret %s/%s is empty", r.key, namespace, r.name)
	case len(v) > maxPassword:
		return "", fmt.Errorf("the key %q of the Secret %s/%s has %d bytes; a TCP MD5 password has at most %d", r.key, namespace, r.name, len(v), maxPassword)
	case slices.ContainsFunc(v, func(b byte) bool { return b < ' ' || b == 0x7f }):
		return "", fmt.Errorf("the key %q of the Secret %s/%s holds a control character, perhaps a line end; remove it", r.key, namespace, r.name)
	}
	return string(v), nil
}

// restartTime reads a graceful restart time: 12 bits of seconds (RFC 4724, section 3).
func (c *checker) restartTime(field string, d *metav1.Duration) time.Duration {
	return c.seconds(field, d, 1, 4095)
}

func (c *checker) seconds(field string, d *metav1.Duration, least, most int) time.Duration {
	if d == nil {
		return 0
	}
	s := d.Duration / time.Second
	if d.Duration%time.Second != 0 || s < time.Duration(least) || s > time.Duration(most) {
		c.bad(field, `is %q; must be whole seconds from "%ds" to "%ds"`, d.Duration, least, most)
	}
	return d.Duration
}

// bgpPeer is the converted form of a BGPPeer.
type bgpPeer struct {
	model.BGPPeer
	password *passwordRef
}

func (c *checker) bgpPeer(p *v3.BGPPeer) bgpPeer {
	s := &p.Spec
	out := bgpPeer{password: c.password(".spec.password", s.Password)}
	out.Name, out.Node, out.ASN = p.Name, s.Node, s.ASNumber
	if s.NodeSelector != "" {
		if s.Node != "" {
			c.bad(".spec.nodeSelector", "is set beside node %q; remove one of them", s.Node)
		}
		out.NodeSelector = c.selector(".spec.nodeSelector", s.NodeSelector)
	}
	c.remote(s, &out.BGPPeer)
	if s.LocalASNumber != nil {
		if out.LocalASN = *s.LocalASNumber; out.LocalASN == 0 {
			c.bad(".spec.localASNumber", "is 0; must be 1 to 4294967295, or leave it out")
		}
	}
	out.SourceNodeIP = enum(c, ".spec.sourceAddress", s.SourceAddress, v3.SourceAddressUseNodeIP, v3.SourceAddressNone) != v3.SourceAddressNone
	if t := s.TTLSecurity; t != nil {
		if *t < 1 || *t > 254 {
			c.bad(".spec.ttlSecurity", "is %d; must be the number of hops to the peer, 1 to 254, or leave it out", *t)
		}
		out.TTLSecurity = uint8(*t)
	}
	// A hold time is 16 bits of seconds and three keepalives long (RFC 4271, 4.2 and 10).
	out.KeepaliveTime = c.seconds(".spec.keepaliveTime", s.KeepaliveTime, 1, 65535/3)
	out.RestartTime = c.restartTime(".spec.maxRestartTime", s.MaxRestartTime)
	if n := s.NumAllowedLocalASNumbers; n != nil {
		if *n < 0 || *n > 255 {
			c.bad(".spec.numAllowedLocalASNumbers", "is %d; must be 0 to 255", *n)
		}
		out.AllowOwnAS = int(*n)
	}
	out.NextHopMode = c.nextHop(s)
	out.ReversePeering = true
	if r := s.ReversePeering; r != nil {
		out.ReversePeering = enum(c, ".spec.reversePeering", *r, v3.ReversePeeringAuto, v3.ReversePeeringManual) != v3.ReversePeeringManual
	}
	if len(s.Filters) > 0 {
		c.ignored(".spec.filters", notYet+": nothing is filtered in this session")
	}
	return out
}

// remote checks who the peer is: exactly one of peerIP, peerSelector and
// localWorkloadSelector.
func (c *checker) remote(s *v3.BGPPeerSpec, out *model.BGPPeer) {
	if s.LocalWorkloadSelector != "" {
		c.selector(".spec.localWorkloadSelector", s.LocalWorkloadSelector)
		if s.PeerIP != "" || s.PeerSelector != "" {
			c.bad(".spec.localWorkloadSelector", "is set beside peerIP or peerSelector; only one of the three can be")
		} else {
			c.bad(".spec.localWorkloadSelector", notYet+": there are no sessions with local workloads; use peerIP or peerSelector")
		}
		return
	}
	if s.ReachableBy != "" {
		gw, err := netip.ParseAddr(s.ReachableBy)
		switch {
		case err != nil:
			c.bad(".spec.reachableBy", "is %q; must be the address of the gateway to the peer", s.ReachableBy)
		case s.PeerIP == "":
			c.bad(".spec.reachableBy", "is set without peerIP; remove it")
		default:
			if ip, _, err := parsePeerIP(s.PeerIP); err == nil && ip.Is4() != gw.Is4() {
				c.bad(".spec.reachableBy", "is %q; must be of the same family as peerIP %q", s.ReachableBy, s.PeerIP)
			}
		}
		c.ignored(".spec.reachableBy", notYet+": the peer is reached as the kernel's routes say")
	}
	switch {
	case s.PeerIP != "" && s.PeerSelector != "":
		c.bad(".spec.peerSelector", "is set beside peerIP; remove one of them")
	case s.PeerIP != "":
		var err error
		if out.PeerIP, out.PeerPort, err = parsePeerIP(s.PeerIP); err != nil {
			c.bad(".spec.peerIP", "%v", err)
		}
		if s.ASNumber == 0 {
			c.bad(".spec.asNumber", "is missing; must be the AS number of the peer at peerIP, 1 to 4294967295")
		}
	case s.PeerSelector != "":
		out.PeerSelector = c.selector(".spec.peerSelector", s.PeerSelector)
		if s.ASNumber != 0 {
			c.bad(".spec.asNumber", "is set beside peerSelector; remove it, nodes have their own AS numbers")
		}
	default:
		c.bad(".spec.peerIP", "is missing; must be the address of the peer, or peerSelector must select nodes")
	}
}

// parsePeerIP reads "1.2.3.4", "1.2.3.4:179", "fd00::1", "[fd00::1]:179" and
// "fe80::1%eth0".
func parsePeerIP(s string) (ip netip.Addr, port uint16, err error) {
	bad := fmt.Errorf(`is %q; must be an address and, if wanted, a port from 1 to 65535: "192.0.2.1", "192.0.2.1:179", "2001:db8::1" or "[2001:db8::1]:179"`, s)
	ip, err = netip.ParseAddr(s)
	if err != nil {
		ap, err := netip.ParseAddrPort(s)
		if err != nil || ap.Port() == 0 {
			return netip.Addr{}, 0, bad
		}
		ip, port = ap.Addr(), ap.Port()
	}
	ip = ip.Unmap()
	switch {
	case ip.IsUnspecified() || ip.IsMulticast():
		return netip.Addr{}, 0, bad
	case ip.Is6() && ip.IsLinkLocalUnicast() && ip.Zone() == "":
		return netip.Addr{}, 0, fmt.Errorf(`is %q, a link-local address; must name its interface, as in "fe80::1%%eth0"`, s)
	}
	return ip, port, nil
}

func (c *checker) nextHop(s *v3.BGPPeerSpec) model.NextHopMode {
	if m := s.NextHopMode; m != nil && *m != "" {
		enum(c, ".spec.nextHopMode", *m, v3.NextHopModeAuto, v3.NextHopModeSelf, v3.NextHopModeKeep)
		if s.KeepOriginalNextHop && *m != v3.NextHopModeKeep {
			c.ignored(".spec.keepOriginalNextHop", "is not acted on, because nextHopMode is %s; remove one of them", *m)
		}
		return model.NextHopMode(*m)
	}
	if s.KeepOriginalNextHop {
		return model.NextHopKeep
	}
	return model.NextHopAuto
}
