package server

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/causeway-net/causeway/cni-plugin/veth"
	"github.com/causeway-net/causeway/cni-plugin/wire"
	"github.com/causeway-net/causeway/internal/model"
)

// Annotations that ask for addresses, on the pod (or, for pools, on its namespace) and as
// keys of args.cni. Their values are strings that hold a JSON list of strings.
const (
	annotationAddrs  = "cni.projectcalico.org/ipAddrs"
	annotationPools4 = "cni.projectcalico.org/ipv4pools"
	annotationPools6 = "cni.projectcalico.org/ipv6pools"
	annotationMAC    = "cni.projectcalico.org/hwAddr" // a hardware address, no list
	// annotationNoIPAM asks for addresses that no pool holds. Only this node's pods are kept
	// from having one twice, and its owner may pass for anybody: so the configuration has to
	// allow it (feature_control.ip_addrs_no_ipam, as Calico has it), and only the pod's own
	// annotation counts.
	annotationNoIPAM = "cni.projectcalico.org/ipAddrsNoIpam"
)

// conf is the network configuration, as far as Causeway acts on it.
type conf struct {
	CNIVersion string `json:"cniVersion"`
	Name       string `json:"name"`
	Type       string `json:"type"`
	// MTU of both ends, bytes; 0 leaves it to the agent.
	MTU            int             `json:"mtu"`
	IPAM           json.RawMessage `json:"ipam"`
	DNS            types.DNS       `json:"dns"`
	FeatureControl struct {
		IPAddrsNoIPAM bool `json:"ip_addrs_no_ipam"` // pods may name addresses of no pool
	} `json:"feature_control"`
	RuntimeConfig struct {
		IPs []string `json:"ips"` // capability "ips"
		MAC string   `json:"mac"` // capability "mac"
	} `json:"runtimeConfig"`
	Args struct {
		CNI map[string]json.RawMessage `json:"cni"`
	} `json:"args"`
	PrevResult       json.RawMessage `json:"prevResult"`
	ValidAttachments json.RawMessage `json:"cni.dev/valid-attachments"`

	prev *current.Result // PrevResult, converted; nil without one
}

// invalid is the error of a configuration that cannot be acted on.
func invalid(format string, args ...any) error {
	return &wire.Error{Code: wire.CodeInvalidConfig, Msg: "network configuration: " + fmt.Sprintf(format, args...)}
}

// parseConf reads and checks what every command needs.
func parseConf(command string, stdin []byte) (*conf, error) {
	c := new(conf)
	if err := json.Unmarshal(stdin, c); err != nil {
		var kind *json.UnmarshalTypeError
		if errors.As(err, &kind) && kind.Field != "" {
			return c, invalid("%s: is a JSON %s, want %s", kind.Field, kind.Value, kind.Type)
		}
		return c, &wire.Error{Code: wire.CodeDecoding, Msg: "network configuration is not JSON", Details: err.Error()}
	}
	least := map[string]string{"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}[command]
	if !slices.Contains(wire.SpecVersions, c.CNIVersion) {
		return c, &wire.Error{Code: wire.CodeIncompatibleVersion, Msg: fmt.Sprintf("network configuration: cniVersion %q: want one of %s", c.CNIVersion, strings.Join(wire.SpecVersions, ", "))}
	}
	if new, err := version.GreaterThanOrEqualTo(c.CNIVersion, least); least != "" && (err != nil || !new) {
		return c, &wire.Error{Code: wire.CodeIncompatibleVersion, Msg: fmt.Sprintf("%s needs cniVersion %s or later, the network configuration has %s", command, least, c.CNIVersion)}
	}
	if err := utils.ValidateNetworkName(c.Name); err != nil {
		return c, invalid("name %q: want letters, digits, '_', '.' and '-', beginning with a letter or digit", c.Name)
	}
	if len(c.PrevResult) == 0 || string(c.PrevResult) == "null" || command == "DEL" {
		return c, nil // DEL needs none and must not fail on a bad one
	}
	prev, err := create.Create(c.CNIVersion, c.PrevResult)
	if err == nil {
		c.prev, err = current.NewResultFromResult(prev)
	}
	if err != nil {
		return c, &wire.Error{Code: wire.CodeDecoding, Msg: "network configuration: prevResult is no result of version " + c.CNIVersion, Details: err.Error()}
	}
	return c, nil
}

// validate checks what ADD and CHECK act on. DEL does without, so that a pod can go
// whatever the configuration has become.
func (c *conf) validate() error {
	if len(c.IPAM) > 0 && string(c.IPAM) != "null" {
		var section map[string]any
		if err := json.Unmarshal(c.IPAM, &section); err != nil {
			return invalid("ipam: want an object: %v", err)
		}
		if len(section) > 0 {
			return invalid("ipam: Causeway assigns addresses from its own IPPools; remove the section, which asks for type %q", section["type"])
		}
	}
	if c.MTU != 0 && (c.MTU < veth.MinMTU || c.MTU > veth.MaxMTU) {
		return invalid("mtu %d: want %d to %d, or none for the node's", c.MTU, veth.MinMTU, veth.MaxMTU)
	}
	return nil
}

// digest names the configuration that a link is wired with.
func (c *conf) digest() string {
	sum := sha256.Sum256(fmt.Appendf(nil, "name=%s mtu=%d", c.Name, c.MTU))
	return hex.EncodeToString(sum[:8])
}

// podArgs are the CNI_ARGS in use.
type podArgs struct {
	namespace, pod, uid string
	ips, mac            string
}

// parseArgs reads "K=V;K=V". Unknown keys are an error unless IgnoreUnknown is given or
// the command is one that only removes.
func parseArgs(args string, lenient bool) (podArgs, error) {
	var (
		p       podArgs
		unknown []string
		ignored bool
	)
	known := map[string]*string{
		"K8S_POD_NAMESPACE": &p.namespace, "K8S_POD_NAME": &p.pod, "K8S_POD_UID": &p.uid,
		"K8S_POD_INFRA_CONTAINER_ID": new(string), // is CNI_CONTAINERID
		"IP":                         &p.ips, "MAC": &p.mac, "IgnoreUnknown": new(string),
	}
	for pair := range strings.SplitSeq(args, ";") {
		key, value, ok := strings.Cut(pair, "=")
		to := known[key]
		switch {
		case pair == "":
		case !ok && !lenient:
			return p, &wire.Error{Code: wire.CodeInvalidEnvironment, Msg: fmt.Sprintf("CNI_ARGS: %q: want KEY=VALUE", pair)}
		case to == nil:
			unknown = append(unknown, key)
		default:
			*to = value
		}
		if key == "IgnoreUnknown" {
			ignored = value == "1" || strings.EqualFold(value, "true")
		}
	}
	if len(unknown) > 0 && !ignored && !lenient {
		return p, &wire.Error{Code: wire.CodeInvalidEnvironment, Msg: fmt.Sprintf("CNI_ARGS: unknown %s; IgnoreUnknown=1 would allow that", strings.Join(unknown, ", "))}
	}
	return p, nil
}

// annotations returns the value of an annotation as args.cni or the datastore give it,
// with where it was found. The datastore's come first: they are the pod's own.
func (c *conf) annotation(name string, of Workload) (value, source string, err error) {
	if v, ok := of.Annotations[name]; ok {
		return v, "annotation " + name + " of the pod", nil
	}
	raw, ok := c.Args.CNI[name]
	if ok {
		source = "args.cni: " + name
		if err := json.Unmarshal(raw, &value); err != nil {
			return "", "", invalid("%s: want a string that holds a JSON list", source)
		}
		return value, source, nil
	}
	if v, ok := of.NamespaceAnnotations[name]; ok && (name == annotationPools4 || name == annotationPools6) {
		return v, "annotation " + name + " of the namespace", nil
	}
	return "", "", nil
}

// list reads an annotation that holds a JSON list of strings.
func (c *conf) list(name string, of Workload) (values []string, source string, err error) {
	value, source, err := c.annotation(name, of)
	if err != nil || value == "" {
		return nil, source, err
	}
	if err := json.Unmarshal([]byte(value), &values); err != nil {
		return nil, source, invalid("%s: %q: want a JSON list of strings", source, value)
	}
	return values, source, nil
}

// request says which addresses and which hardware address the pod asks for.
func (c *conf) request(a podArgs, of Workload) (req model.AddressRequest, mac net.HardwareAddr, err error) {
	addresses, source, err := c.addresses(a, of)
	if err != nil {
		return req, nil, err
	}
	if req.Addresses, err = parseAddresses(addresses, source); err != nil {
		return req, nil, err
	}
	if req.NoIPAM, err = c.noIPAM(of); err != nil {
		return req, nil, err
	}
	if len(req.NoIPAM) > 0 && len(req.Addresses) > 0 {
		return req, nil, invalid("%s and %s both name addresses: want one of the two", annotationNoIPAM, source)
	}
	if req.IPv4Pools, _, err = c.list(annotationPools4, of); err != nil {
		return req, nil, err
	}
	if req.IPv6Pools, _, err = c.list(annotationPools6, of); err != nil {
		return req, nil, err
	}
	value, source := c.RuntimeConfig.MAC, "runtimeConfig.mac"
	if value == "" {
		value, source = a.mac, "CNI_ARGS: MAC"
	}
	if value == "" {
		if value, source, err = c.annotation(annotationMAC, of); err != nil {
			return req, nil, err
		}
	}
	if value != "" {
		mac, err = net.ParseMAC(value)
		if err != nil || len(mac) != 6 || mac[0]&1 != 0 || slices.Equal(mac, veth.HostMAC) {
			return req, nil, invalid("%s: %q: want a unicast Ethernet address other than %s", source, value, veth.HostMAC)
		}
	}
	return req, mac, nil
}

// noIPAM returns the addresses that the pod's annotation asks for without IPAM.
func (c *conf) noIPAM(of Workload) ([]netip.Addr, error) {
	_, named := of.Annotations[annotationNoIPAM]
	if _, ok := c.Args.CNI[annotationNoIPAM]; ok && !named {
		return nil, invalid("args.cni: %s: want it as an annotation of the pod", annotationNoIPAM)
	}
	if !named {
		return nil, nil
	}
	list, source, err := c.list(annotationNoIPAM, of)
	switch {
	case err != nil:
		return nil, err
	case !c.FeatureControl.IPAddrsNoIPAM:
		return nil, invalid("%s: not enabled; allow it with feature_control.ip_addrs_no_ipam: true, or use an address of an IPPool with %s", source, annotationAddrs)
	case len(list) == 0:
		return nil, invalid("%s: want an address", source)
	}
	return parseAddresses(list, source)
}

// addresses returns those of the first source that names any: the runtime's, then the
// configuration's, then the annotation.
func (c *conf) addresses(a podArgs, of Workload) (list []string, source string, err error) {
	if len(c.RuntimeConfig.IPs) > 0 {
		return c.RuntimeConfig.IPs, "runtimeConfig.ips", nil
	}
	if raw, ok := c.Args.CNI["ips"]; ok {
		if err := json.Unmarshal(raw, &list); err != nil {
			return nil, "", invalid("args.cni.ips: want a list of addresses")
		}
		if len(list) > 0 {
			return list, "args.cni.ips", nil
		}
	}
	if a.ips != "" {
		return strings.Split(a.ips, ","), "CNI_ARGS: IP", nil
	}
	return c.list(annotationAddrs, of)
}

// parseAddresses reads addresses, with or without a prefix length, of which there may be
// one for each family. The length is not acted on: a pod's address stands alone.
func parseAddresses(list []string, source string) ([]netip.Addr, error) {
	var out []netip.Addr
	for _, s := range list {
		text, _, _ := strings.Cut(strings.TrimSpace(s), "/")
		a, err := netip.ParseAddr(text)
		if _, perr := netip.ParsePrefix(strings.TrimSpace(s)); err != nil || a.Zone() != "" || (perr != nil && text != strings.TrimSpace(s)) {
			return nil, invalid("%s: %q is not an address", source, s)
		}
		a = a.Unmap()
		if slices.ContainsFunc(out, func(b netip.Addr) bool { return a.Is4() == b.Is4() }) {
			return nil, invalid("%s: %s: want at most one address of each family", source, strings.Join(list, ", "))
		}
		out = append(out, a)
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out, nil
}
