package watch

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/util/intstr"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/internal/model"
)

// felixConfiguration is the converted form of a FelixConfiguration. What is not given leaves
// what a wider object, or the default, says.
type felixConfiguration struct {
	node   string // empty: the default
	values model.Felix
	given  []string // keys of felixFields, sorted
	host   hostPolicy
}

// felixFields are the fields of a FelixConfiguration that something acts on, and how one
// object's value takes the place of another's.
var felixFields = map[string]func(to, from *model.Felix){
	"natOutgoingAddress":                 func(to, from *model.Felix) { to.NATOutgoingAddress = from.NATOutgoingAddress },
	"natPortRange":                       func(to, from *model.Felix) { to.NATPorts = from.NATPorts },
	"natOutgoingExclusions":              func(to, from *model.Felix) { to.NATExcludesHosts = from.NATExcludesHosts },
	"iptablesNATOutgoingInterfaceFilter": func(to, from *model.Felix) { to.NATInterface = from.NATInterface },
	"ipipEnabled":                        func(to, from *model.Felix) { to.IPIPOff = from.IPIPOff },
	"vxlanEnabled":                       func(to, from *model.Felix) { to.VXLANOff = from.VXLANOff },
	"ipipMTU":                            mergeMTU(model.TunnelIPIP),
	"vxlanMTU":                           mergeMTU(model.TunnelVXLAN4),
	"vxlanMTUV6":                         mergeMTU(model.TunnelVXLAN6),
	"mtuIfacePattern":                    func(to, from *model.Felix) { to.MTULinks = from.MTULinks },
	"vxlanVNI":                           func(to, from *model.Felix) { to.VXLANVNI = from.VXLANVNI },
	"vxlanPort":                          func(to, from *model.Felix) { to.VXLANPort = from.VXLANPort },
	"allowIPIPPacketsFromWorkloads":      func(to, from *model.Felix) { to.PodsIPIP = from.PodsIPIP },
	"allowVXLANPacketsFromWorkloads":     func(to, from *model.Felix) { to.PodsVXLAN = from.PodsVXLAN },
	"externalNodesList":                  func(to, from *model.Felix) { to.ExternalNodes = from.ExternalNodes },
	"featureDetectOverride":              func(to, from *model.Felix) { to.ChecksumOffload = from.ChecksumOffload },
	"iptablesBackend":                    func(to, from *model.Felix) { to.IPTables = from.IPTables },
	"nftablesMode":                       func(to, from *model.Felix) { to.NFTables = from.NFTables },
	"routeRefreshInterval":               func(to, from *model.Felix) { to.RoutesResync = from.RoutesResync },
	"iptablesRefreshInterval":            func(to, from *model.Felix) { to.RulesResync = from.RulesResync },
}

func mergeMTU(t model.Tunnel) func(to, from *model.Felix) {
	return func(to, from *model.Felix) { to.TunnelMTU[t] = from.TunnelMTU[t] }
}

// The values of natOutgoingExclusions.
const (
	natExcludesPools         = "IPPoolsOnly"
	natExcludesPoolsAndHosts = "IPPoolsAndHostIPs"
)

var interfaceFilter = regexp.MustCompile(`^[a-zA-Z0-9:._-]{1,15}$|^[a-zA-Z0-9:._-]{1,14}\+$`)

func (c *checker) felixConfiguration(f *v3.FelixConfiguration) felixConfiguration {
	var out felixConfiguration
	node, isNode := strings.CutPrefix(f.Name, nodeConfiguration)
	switch {
	case isNode && node != "":
		out.node = node
	case f.Name != defaultConfiguration && f.Name != "":
		c.bad(".metadata.name", `is %q; must be "default" for the cluster or "node." and the name of a node: objects for the nodes that a selector selects are not acted on yet`, f.Name)
	}
	s := &f.Spec
	c.felixNAT(s, &out)
	c.felixTunnels(s, &out)
	c.felixRest(s, &out)
	if c.opt.Policy {
		out.host = c.hostPolicy(s)
	}
	slices.Sort(out.given)
	c.felixUnused(s)
	return out
}

// give notes that the object says something of a field.
func (f *felixConfiguration) give(field string) { f.given = append(f.given, field) }

func (c *checker) felixNAT(s *v3.FelixConfigurationSpec, out *felixConfiguration) {
	if s.NATOutgoingAddress != "" {
		a, err := netip.ParseAddr(s.NATOutgoingAddress)
		a = a.Unmap()
		if err != nil || a.Zone() != "" || !hostAddress(a) {
			c.bad(".spec.natOutgoingAddress", `is %q; must be an address that leads back to the node, such as "192.0.2.10"`, s.NATOutgoingAddress)
		}
		out.values.NATOutgoingAddress = a
		out.give("natOutgoingAddress")
	}
	if s.NATPortRange != nil {
		r, err := portRange(s.NATPortRange.IntOrString)
		if err != nil {
			c.bad(".spec.natPortRange", "%v", err)
		}
		out.values.NATPorts = r
		out.give("natPortRange")
	}
	if e := s.NATOutgoingExclusions; e != nil && *e != "" {
		enum(c, ".spec.natOutgoingExclusions", *e, natExcludesPools, natExcludesPoolsAndHosts)
		out.values.NATExcludesHosts = *e == natExcludesPoolsAndHosts
		out.give("natOutgoingExclusions")
	}
	if i := s.IptablesNATOutgoingInterfaceFilter; i != "" {
		if !interfaceFilter.MatchString(i) {
			c.bad(".spec.iptablesNATOutgoingInterfaceFilter", `is %q; must be the name of an interface, or the beginning of names and "+", such as "eth+"`, i)
		}
		out.values.NATInterface = i
		out.give("iptablesNATOutgoingInterfaceFilter")
	}
}

// portRange reads a number or "first:last". 0 means any port.
func portRange(p intstr.IntOrString) (model.PortRange, error) {
	bad := fmt.Errorf(`is %q; must be a port or a range such as "32768:65535", or 0 for any port`, p.String())
	first, last, isRange := strings.Cut(p.String(), ":")
	if !isRange {
		last = first
	}
	a, err := strconv.ParseUint(first, 10, 16)
	if err != nil {
		return model.PortRange{}, bad
	}
	b, err := strconv.ParseUint(last, 10, 16)
	if err != nil || a > b || a == 0 && b != 0 {
		return model.PortRange{}, bad
	}
	return model.PortRange{First: uint16(a), Last: uint16(b)}, nil
}

// felixAsIs are values of other fields, in JSON, that ask for what is so anyway: those that
// the API server fills in (nftables), those that Calico writes into "default" unasked, and
// what is plainly switched off.
var felixAsIs = map[string][]string{
	"nftablesFlowTableOffload":       {`"Disabled"`},
	"logSeverityScreen":              {`"Info"`, `"info"`, `"INFO"`},
	"floatingIPs":                    {`"Disabled"`},
	"reportingInterval":              {`"0s"`},
	"ipv6Support":                    {"true"},
	"usageReportingEnabled":          {"false"},
	"wireguardEnabled":               {"false"},
	"wireguardEnabledV6":             {"false"},
	"bpfEnabled":                     {"false"},
	"bpfConnectTimeLoadBalancing":    {`"TCP"`},
	"bpfHostNetworkedNATWithoutCTLB": {`"Enabled"`},
}

// felixUnused reports each field that is set and not acted on.
func (c *checker) felixUnused(s *v3.FelixConfigurationSpec) {
	v := reflect.ValueOf(*s)
	for i := range v.NumField() {
		name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
		if v.Field(i).IsZero() || felixFields[name] != nil || c.opt.Policy && slices.Contains(felixPolicyFields, name) {
			continue
		}
		if as := felixAsIs[name]; as != nil {
			if text, err := json.Marshal(v.Field(i).Interface()); err == nil && slices.Contains(as, string(text)) {
				continue
			}
		}
		c.ignored(".spec."+name, notYet)
	}
}

// felix merges the default configuration with this node's: what the latter sets goes first.
func (b *builder) felix() model.Felix {
	var out model.Felix
	given := map[string]Sourced{} // where the value of a field is from
	for _, node := range []string{"", b.opt.Node} {
		i := slices.IndexFunc(b.felixConfigs, func(o Sourced) bool { return o.value.(felixConfiguration).node == node })
		if i < 0 {
			continue
		}
		o := b.felixConfigs[i]
		v := o.value.(felixConfiguration)
		for _, field := range v.given {
			felixFields[field](&out, &v.values)
			given[field] = o
		}
	}
	b.forced(given, "ipipEnabled", out.IPIPOff, "ipipMode", func(p model.Pool) model.EncapMode { return p.IPIPMode })
	b.forced(given, "vxlanEnabled", out.VXLANOff, "vxlanMode", func(p model.Pool) model.EncapMode { return p.VXLANMode })
	return out
}

// forced reports an encapsulation that is said to be on and that no pool asks for: Calico
// makes its device all the same.
func (b *builder) forced(given map[string]Sourced, field string, off bool, modeName string, mode func(model.Pool) model.EncapMode) {
	o, ok := given[field]
	if !ok || off || slices.ContainsFunc(b.s.Pools, func(p model.Pool) bool { return mode(p) != model.EncapNever }) {
		return
	}
	b.problem(o, true, ".spec."+field, "is true, and no IPPool in force has another %s than Never: the device is made when one has", modeName)
}
