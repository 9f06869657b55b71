package watch

import (
	"cmp"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/internal/blockroutes"
	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/internal/selector"
)

// DefaultMaxBlocksPerHost is what maxBlocksPerHost 0 means, as in Calico.
const DefaultMaxBlocksPerHost = 20

// cidr reads a prefix strictly: host bits are an error, for they say that something else
// was meant. It returns the zero Prefix after a problem.
func (c *checker) cidr(field, s string) netip.Prefix {
	p, err := netip.ParsePrefix(s)
	switch {
	case s == "":
		c.bad(field, `is missing; must be a network such as "10.244.0.0/16" or "fd00:10:244::/56"`)
	case err != nil:
		c.bad(field, `is %q; must be a network such as "10.244.0.0/16" or "fd00:10:244::/56"`, s)
	case p.Addr().Is4In6():
		c.bad(field, "is %q, IPv4 written as IPv6; write it as IPv4", s)
	case p != p.Masked():
		c.bad(field, "is %q, which has bits set outside its mask; did you mean %q?", s, p.Masked())
	default:
		return p
	}
	return netip.Prefix{}
}

// selector compiles a selector; it returns nil after a problem.
func (c *checker) selector(field, s string) model.Selector {
	if len(s) > 1024 {
		c.bad(field, "has %d characters; at most 1024 are allowed", len(s))
		return nil
	}
	sel, err := selector.Parse(s)
	if err != nil {
		c.bad(field, "%v", err)
		return nil
	}
	return sel
}

// enum checks that v is empty or one of the values.
func enum[T ~string](c *checker, field string, v T, values ...T) T {
	if v != "" && !slices.Contains(values, v) {
		names := make([]string, len(values))
		for i, x := range values {
			names[i] = string(x)
		}
		c.bad(field, "is %q; must be one of %s", string(v), strings.Join(names, ", "))
	}
	return v
}

// blockSizes is the range of block sizes of a family and the default.
func blockSizes(v4 bool) (least, most, def int) {
	if v4 {
		return 20, 32, 26
	}
	return 116, 128, 122
}

// noPools are ranges whose addresses no pod can use.
var noPools = []netip.Prefix{
	netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("fe80::/10"), // link-local
	netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128"), // loopback
	netip.MustParsePrefix("224.0.0.0/4"), netip.MustParsePrefix("ff00::/8"), // multicast
}

func (c *checker) pool(p *v3.IPPool) model.Pool {
	s := &p.Spec
	out := model.Pool{
		Name: p.Name, CIDR: c.cidr(".spec.cidr", s.CIDR), BlockSize: s.BlockSize,
		NATOutgoing: s.NATOutgoing, DisableBGPExport: s.DisableBGPExport,
		Manual: s.AssignmentMode == v3.AssignmentManual,
		// One that is being deleted stays until its addresses are free, and gives no more.
		Disabled: s.Disabled || p.DeletionTimestamp != nil,
	}
	ipip := enum(c, ".spec.ipipMode", s.IPIPMode, v3.EncapNever, v3.EncapAlways, v3.EncapCrossSubnet)
	vxlan := enum(c, ".spec.vxlanMode", s.VXLANMode, v3.EncapNever, v3.EncapAlways, v3.EncapCrossSubnet)
	out.IPIPMode = model.EncapMode(cmp.Or(ipip, v3.EncapNever))
	out.VXLANMode = model.EncapMode(cmp.Or(vxlan, v3.EncapNever))
	enum(c, ".spec.assignmentMode", s.AssignmentMode, v3.AssignmentAutomatic, v3.AssignmentManual)
	if out.CIDR.IsValid() {
		c.poolRange(&out)
	}
	if out.IPIPMode != model.EncapNever && out.VXLANMode != model.EncapNever {
		c.bad(".spec.vxlanMode", "is %s while ipipMode is %s; one of them must be Never", out.VXLANMode, out.IPIPMode)
	}
	out.NodeSelector = c.selector(".spec.nodeSelector", s.NodeSelector)
	if ns := c.selector(".spec.namespaceSelector", s.NamespaceSelector); ns != nil && ns.String() != "all()" {
		out.NamespaceSelector = ns
	}
	out.AllowedUses = c.allowedUses(s.AllowedUses)
	if p.DeletionTimestamp != nil {
		// Pods end some day. Tunnels do not: their addresses would keep the pool for ever.
		out.AllowedUses = slices.DeleteFunc(out.AllowedUses, func(u model.Use) bool { return u == model.UseTunnel })
	}

	if out.NamespaceSelector != nil && !c.opt.NamespaceLabels {
		c.ignored(".spec.namespaceSelector", notYet+": the labels of namespaces are not known, so that no pod gets an address of this pool")
	}
	if out.Allows(model.UseLoadBalancer) {
		c.ignored(".spec.allowedUses", "LoadBalancer "+notYet)
	}
	return out
}

// poolRange checks what follows from the pool's CIDR and defaults its block size.
func (c *checker) poolRange(p *model.Pool) {
	v4 := p.CIDR.Addr().Is4()
	family := "IPv6"
	if v4 {
		family = "IPv4"
	}
	for _, no := range noPools {
		if no.Overlaps(p.CIDR) {
			c.bad(".spec.cidr", "is %q, which overlaps %s; pods can use no link-local, loopback or multicast addresses", p.CIDR, no)
		}
	}
	least, most, def := blockSizes(v4)
	if p.BlockSize == 0 {
		p.BlockSize = def
	}
	switch {
	case p.BlockSize < least || p.BlockSize > most:
		c.bad(".spec.blockSize", "is %d; must be %d to %d for an %s pool", p.BlockSize, least, most, family)
	case p.BlockSize < p.CIDR.Bits():
		c.bad(".spec.blockSize", "is %d, but the pool %s is smaller than one such block; must be %d to %d", p.BlockSize, p.CIDR, max(least, p.CIDR.Bits()), most)
	}
	if !v4 && p.IPIPMode != model.EncapNever {
		c.bad(".spec.ipipMode", "is %s, but IPIP carries IPv4 only; must be Never for an IPv6 pool", p.IPIPMode)
	}
}

func (c *checker) allowedUses(in []v3.IPPoolAllowedUse) []model.Use {
	if len(in) == 0 {
		return []model.Use{model.UseWorkload, model.UseTunnel}
	}
	var out []model.Use
	for i, u := range in {
		field := fmt.Sprintf(".spec.allowedUses[%d]", i)
		if u == "" {
			c.bad(field, "is empty; must be one of Workload, Tunnel, LoadBalancer")
		}
		enum(c, field, u, v3.IPPoolAllowedUseWorkload, v3.IPPoolAllowedUseTunnel, v3.IPPoolAllowedUseLoadBalancer)
		if slices.Contains(out, model.Use(u)) {
			c.bad(field, "is %q, which is there already; remove it", string(u))
		}
		out = append(out, model.Use(u))
	}
	if slices.Contains(out, model.UseLoadBalancer) && len(out) > 1 {
		c.bad(".spec.allowedUses", "LoadBalancer stands beside other uses; addresses for load balancers need a pool of their own")
	}
	return out
}

func (c *checker) ipamConfiguration(i *v3.IPAMConfiguration) model.IPAMConfig {
	s := &i.Spec
	if i.Name != "" && i.Name != "default" {
		c.bad(".metadata.name", `is %q; the one IPAMConfiguration that is read has the name "default"`, i.Name)
	}
	out := defaultIPAM
	out.StrictAffinity = s.StrictAffinity
	if s.AutoAllocateBlocks != nil {
		out.AutoAllocateBlocks = *s.AutoAllocateBlocks
	}
	if n := s.MaxBlocksPerHost; n < 0 || n > 1000000 {
		c.bad(".spec.maxBlocksPerHost", "is %d; must be 0 to 1000000, where 0 means %d", n, DefaultMaxBlocksPerHost)
	} else if n > 0 {
		out.MaxBlocksPerHost = int(n)
	}
	if n := s.IPCooldownSeconds; n != nil {
		if *n < 0 || *n > 1200 {
			c.bad(".spec.ipCooldownSeconds", "is %d; must be 0 to 1200 seconds", *n)
		}
		out.Cooldown = time.Duration(*n) * time.Second
	}
	if p := s.KubeVirtVMAddressPersistence; p != nil {
		enum(c, ".spec.kubeVirtVMAddressPersistence", *p, v3.VMAddressPersistenceEnabled, v3.VMAddressPersistenceDisabled)
		if *p == v3.VMAddressPersistenceEnabled {
			c.ignored(".spec.kubeVirtVMAddressPersistence", notYet+": a virtual machine gets a new address when its pod is replaced")
		}
	}
	return out
}

// defaultIPAM is what holds without an IPAMConfiguration.
var defaultIPAM = model.IPAMConfig{AutoAllocateBlocks: true, MaxBlocksPerHost: DefaultMaxBlocksPerHost}

func (c *checker) reservation(r *v3.IPReservation) []netip.Prefix {
	out := make([]netip.Prefix, 0, len(r.Spec.ReservedCIDRs))
	for i, s := range r.Spec.ReservedCIDRs {
		out = append(out, c.addressOrCIDR(".spec.reservedCIDRs", i, s))
	}
	return out
}

// block is the converted form of an IPAMBlock.
type block struct {
	model.Block
	deleted bool
	claimed time.Time
}

var affinityForm = regexp.MustCompile(`^(host|virtual):[a-zA-Z0-9.\-_]+$`)

func (c *checker) block(b *v3.IPAMBlock) block {
	s := &b.Spec
	out := block{deleted: s.Deleted, claimed: b.CreationTimestamp.Time}
	out.CIDR = c.cidr(".spec.cidr", s.CIDR)
	if out.CIDR.IsValid() {
		least, most, _ := blockSizes(out.CIDR.Addr().Is4())
		bits := out.CIDR.Bits()
		switch {
		case bits < least || bits > most:
			c.bad(".spec.cidr", "is %q; a block is a /%d to /%d", out.CIDR, least, most)
		case b.Name != v3.BlockName(out.CIDR):
			c.bad(".metadata.name", "is %q; the name of the block %s must be %q, so that it has one owner", b.Name, out.CIDR, v3.BlockName(out.CIDR))
		case len(s.Allocations) != 1<<(out.CIDR.Addr().BitLen()-bits):
			c.bad(".spec.allocations", "has %d elements; must have %d, one for each address of %s", len(s.Allocations), 1<<(out.CIDR.Addr().BitLen()-bits), out.CIDR)
		}
	}
	for i, a := range s.Allocations {
		if a != nil && (*a < 0 || *a >= len(s.Attributes)) {
			c.bad(fmt.Sprintf(".spec.allocations[%d]", i), "is %d; must be null or the index of one of the %d attributes", *a, len(s.Attributes))
		}
	}
	if a := s.Affinity; a != nil {
		if !affinityForm.MatchString(*a) {
			c.bad(".spec.affinity", `is %q; must be "host:" and the name of a node`, *a)
		}
	}
	if out.CIDR.IsValid() {
		out.Block = blockroutes.Of(out.CIDR, s)
	}
	if s.AffinityClaimTime != nil {
		out.claimed = s.AffinityClaimTime.Time
	}
	return out
}
