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

// felixConfiguration is the converted form of a FelixConfiguration. What is nil leaves what
// a wider object, or the default, says.
type felixConfiguration struct {
	node       string // empty: the default
	address    *netip.Addr
	ports      *model.PortRange
	exclusions *string
	iface      *string
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
	if s.NATOutgoingAddress != "" {
		a, err := netip.ParseAddr(s.NATOutgoingAddress)
		a = a.Unmap()
		if err != nil || a.Zone() != "" || !hostAddress(a) {
			c.bad(".spec.natOutgoingAddress", `is %q; must be an address that leads back to the node, such as "192.0.2.10"`, s.NATOutgoingAddress)
		}
		out.address = &a
	}
	if s.NATPortRange != nil {
		r, err := portRange(s.NATPortRange.IntOrString)
		if err != nil {
			c.bad(".spec.natPortRange", "%v", err)
		}
		out.ports = &r
	}
	if e := s.NATOutgoingExclusions; e != nil {
		enum(c, ".spec.natOutgoingExclusions", *e, natExcludesPools, natExcludesPoolsAndHosts)
		if *e != "" {
			out.exclusions = e
		}
	}
	if i := s.IptablesNATOutgoingInterfaceFilter; i != "" {
		if !interfaceFilter.MatchString(i) {
			c.bad(".spec.iptablesNATOutgoingInterfaceFilter", `is %q; must be the name of an interface, or the beginning of names and "+", such as "eth+"`, i)
		}
		out.iface = &i
	}
	c.felixUnused(s)
	return out
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

// felixActedOn are the fields of a FelixConfiguration that something acts on.
var felixActedOn = []string{"natOutgoingAddress", "natPortRange", "natOutgoingExclusions", "iptablesNATOutgoingInterfaceFilter"}

// felixAsIs are values of other fields, in JSON, that ask for what is so anyway: those that
// the API server fills in (nftables), those that Calico writes into "default" unasked, and
// what is plainly switched off.
var felixAsIs = map[string][]string{
	"nftablesMode":                   {`"Auto"`, `"Disabled"`},
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
		if v.Field(i).IsZero() || slices.Contains(felixActedOn, name) {
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
	for _, node := range []string{"", b.opt.Node} {
		i := slices.IndexFunc(b.felixConfigs, func(o Sourced) bool { return o.value.(felixConfiguration).node == node })
		if i < 0 {
			continue
		}
		v := b.felixConfigs[i].value.(felixConfiguration)
		if v.address != nil {
			out.NATOutgoingAddress = *v.address
		}
		if v.ports != nil {
			out.NATPorts = *v.ports
		}
		if v.exclusions != nil {
			out.NATExcludesHosts = *v.exclusions == natExcludesPoolsAndHosts
		}
		if v.iface != nil {
			out.NATInterface = *v.iface
		}
	}
	return out
}
