package model

import "net/netip"

// AttachmentKey identifies one interface of one container for the life of the
// container: CNI's container id and interface name (CNI spec 1.1.0, section 2).
type AttachmentKey struct {
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifName"`
}

func (k AttachmentKey) String() string { return k.ContainerID + "/" + k.IfName }

// AddressRequest is what a CNI ADD asks of ipam. All of it but Key may be empty.
type AddressRequest struct {
	Key     AttachmentKey
	Network string // name of the CNI network; the IPAM handle is "<network>.<containerID>"
	// Pod's identity, kept as attributes of the allocation.
	Namespace, Pod, PodUID string
	// NamespaceLabels lets pools with a namespaceSelector choose; nil when unknown.
	NamespaceLabels map[string]string
	// Addresses asks for exactly these (cni.projectcalico.org/ipAddrs); at most one of
	// each family.
	Addresses []netip.Addr
	// NoIPAM gives exactly these, which no pool holds (cni.projectcalico.org/ipAddrsNoIpam);
	// at most one of each family, and nothing else is asked for then.
	NoIPAM []netip.Addr
	// IPv4Pools and IPv6Pools restrict the choice to these pools, by name or CIDR, in
	// that order (cni.projectcalico.org/ipv4pools, ipv6pools).
	IPv4Pools, IPv6Pools []string
}

// Endpoint is one attached pod interface on this node: what was promised to the pod (the
// addresses) and how it is wired. It is what the journal keeps.
type Endpoint struct {
	Key            AttachmentKey `json:"key"`
	Network        string        `json:"network"`
	Namespace      string        `json:"namespace,omitempty"`
	Pod            string        `json:"pod,omitempty"`
	PodUID         string        `json:"podUID,omitempty"`
	Addresses      []netip.Addr  `json:"addresses"`                // at most one of each family, IPv4 first
	HostInterface  string        `json:"hostInterface,omitempty"`  // cali...; empty until wired
	ContainerMAC   string        `json:"containerMAC,omitempty"`   // of the pod's end
	MTU            int           `json:"mtu,omitempty"`            // of both ends, bytes
	NetNSInode     uint64        `json:"netnsInode,omitempty"`     // inode of the pod's network namespace, to recognise it
	SettingsDigest string        `json:"settingsDigest,omitempty"` // of the network configuration it was wired with
}

// Wired reports whether the endpoint's link was set up and ADD got as far as answering.
func (e *Endpoint) Wired() bool { return e.HostInterface != "" }
