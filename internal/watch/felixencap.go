package watch

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/internal/model"
)

// The least MTU of a device that carries a family (RFC 791 section 3.1; RFC 8200 section 5).
const (
	leastMTU4 = 576
	leastMTU6 = 1280
	mostMTU   = 65535
)

// leastResync bounds how often routes and rules may be read in full.
const leastResync = time.Second

// felixTunnels reads what is said of encapsulation.
func (c *checker) felixTunnels(s *v3.FelixConfigurationSpec, out *felixConfiguration) {
	v := &out.values
	flag := func(field string, from *bool, to *bool, negated bool) {
		if from != nil {
			*to = *from != negated
			out.give(field)
		}
	}
	flag("ipipEnabled", s.IPIPEnabled, &v.IPIPOff, true)
	flag("vxlanEnabled", s.VXLANEnabled, &v.VXLANOff, true)
	flag("allowIPIPPacketsFromWorkloads", s.AllowIPIPPacketsFromWorkloads, &v.PodsIPIP, false)
	flag("allowVXLANPacketsFromWorkloads", s.AllowVXLANPacketsFromWorkloads, &v.PodsVXLAN, false)

	number := func(field string, from *int, to *int, least, most int, zero string) {
		if from == nil {
			return
		}
		if *from != 0 && (*from < least || *from > most) {
			c.bad(".spec."+field, "is %d; must be %d to %d, or 0 for %s", *from, least, most, zero)
		}
		*to = *from
		out.give(field)
	}
	const found = "the uplink's less the overhead"
	number("ipipMTU", s.IPIPMTU, &v.TunnelMTU[model.TunnelIPIP], leastMTU4, mostMTU, found)
	number("vxlanMTU", s.VXLANMTU, &v.TunnelMTU[model.TunnelVXLAN4], leastMTU4, mostMTU, found)
	number("vxlanMTUV6", s.VXLANMTUV6, &v.TunnelMTU[model.TunnelVXLAN6], leastMTU6, mostMTU, found)
	number("vxlanVNI", s.VXLANVNI, &v.VXLANVNI, 1, 1<<24-1, "4096")
	number("vxlanPort", s.VXLANPort, &v.VXLANPort, 1, 65535, "4789")

	if p := s.MTUIfacePattern; p != "" {
		if _, err := regexp.Compile(p); err != nil {
			c.bad(".spec.mtuIfacePattern", `is %q, which is no regular expression: %v; must be one such as "^(eth|bond).*"`, p, err)
		}
		v.MTULinks = p
		out.give("mtuIfacePattern")
	}
	if list := s.ExternalNodesList; list != nil {
		for i, text := range *list {
			v.ExternalNodes = append(v.ExternalNodes, c.addressOrCIDR(".spec.externalNodesList", i, text))
		}
		slices.SortFunc(v.ExternalNodes, comparePrefix)
		v.ExternalNodes = slices.Compact(v.ExternalNodes)
		out.give("externalNodesList")
	}
}

// felixRest reads what is said of how the dataplane works.
func (c *checker) felixRest(s *v3.FelixConfigurationSpec, out *felixConfiguration) {
	v := &out.values
	if s.FeatureDetectOverride != "" {
		v.ChecksumOffload = c.checksumOffload(s.FeatureDetectOverride)
		out.give("featureDetectOverride")
	}
	if b := s.IptablesBackend; b != nil && *b != "" {
		switch text := strings.ToLower(*b); text {
		case "legacy", "nft":
			v.IPTables = text
		case "auto":
		default:
			c.bad(".spec.iptablesBackend", "is %q; must be one of Auto, Legacy, NFT", *b)
		}
		out.give("iptablesBackend")
	}
	if m := s.NftablesMode; m != nil && *m != "" {
		enum(c, ".spec.nftablesMode", string(*m), "Auto", "Disabled", "Enabled")
		v.NFTables = *m == "Enabled"
		out.give("nftablesMode")
	}
	interval := func(field string, from *metav1.Duration, to *time.Duration) {
		if from == nil {
			return
		}
		switch d := from.Duration; {
		case d == 0:
			c.ignored(".spec."+field, "is 0, which would end that drift is healed; what the kernel has is read again at the agent's own interval")
		case d < leastResync:
			c.bad(".spec."+field, "is %v; must be %v at least", d, leastResync)
		default:
			*to = d
		}
		out.give(field)
	}
	interval("routeRefreshInterval", s.RouteRefreshInterval, &v.RoutesResync)
	interval("iptablesRefreshInterval", s.IptablesRefreshInterval, &v.RulesResync)
}

// checksumOffload reads featureDetectOverride, of which one entry has a meaning here:
// whether VXLAN's checksums can be left to the hardware.
func (c *checker) checksumOffload(text string) bool {
	const field = ".spec.featureDetectOverride"
	offload := false
	for entry := range strings.SplitSeq(text, ",") {
		if entry = strings.TrimSpace(entry); entry == "" {
			continue
		}
		name, value, ok := strings.Cut(entry, "=")
		switch {
		case !ok || name == "" || value != "true" && value != "false" && value != "":
			c.bad(field, `has %q; must be name=true or name=false, such as "ChecksumOffloadBroken=false"`, entry)
		case name == "ChecksumOffloadBroken":
			offload = value == "false"
		case value != "":
			c.ignored(field, "has %q, which is not acted on: ChecksumOffloadBroken is", entry)
		}
	}
	return offload
}

// addressOrCIDR reads one of a list, in which an address stands for itself alone.
func (c *checker) addressOrCIDR(field string, i int, s string) netip.Prefix {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen())
	}
	return c.cidr(fmt.Sprintf("%s[%d]", field, i), s)
}
