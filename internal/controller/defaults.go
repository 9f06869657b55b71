package controller

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/internal/watch"
)

// NoPool, in place of a CIDR, says that a family gets no default pool.
const NoPool = "none"

// PoolOptions are the settings of one default pool; Calico's CALICO_IPV4POOL_* and
// CALICO_IPV6POOL_*.
type PoolOptions struct {
	CIDR             string // empty: the cluster's own settings say it; NoPool: no pool
	IPIP, VXLAN      string // Never, CrossSubnet or Always; empty means Never
	NATOutgoing      bool
	BlockSize        int // 0: 26 for IPv4, 122 for IPv6
	NodeSelector     string
	DisableBGPExport bool
}

// Defaults say which pools a new cluster gets.
type Defaults struct {
	None   bool // none at all
	V4, V6 PoolOptions
}

// Names of the default pools, as Calico has them.
const (
	defaultPool4 = "default-ipv4-ippool"
	defaultPool6 = "default-ipv6-ippool"
)

// finding is what one source says of the pods' addresses.
type finding struct {
	source string // "podSubnet of ConfigMap kube-system/kubeadm-config"
	text   string // "10.244.0.0/16,fd00::/56"
}

// address is an address that is taken, and whose it is.
type address struct {
	addr  netip.Addr
	owner string
}

// evidence is what a cluster tells of its addresses.
type evidence struct {
	pods     []finding      // the cluster's settings, which decide
	podCIDRs []netip.Prefix // of Nodes: parts of the pods' range, which can only confirm
	nodes    []address
	services []netip.Prefix
}

// check refuses settings that could never work, whatever the cluster.
func (d Defaults) check() error {
	var errs []error
	for _, f := range d.families() {
		if f.o.CIDR == NoPool {
			continue
		}
		cidr := f.o.CIDR
		if cidr == "" {
			cidr = f.sample
		}
		if p, err := netip.ParsePrefix(cidr); err == nil && p.Addr().Is4() != f.v4 {
			errs = append(errs, fmt.Errorf("%s: %s is of the other family", f.name, cidr))
		} else if _, err := f.pool(cidr); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

type poolFamily struct {
	o      PoolOptions
	v4     bool
	name   string
	flag   string
	sample string // a CIDR that all other settings can be checked with
}

func (d Defaults) families() []poolFamily {
	return []poolFamily{
		{d.V4, true, defaultPool4, "--ipv4-pool", "10.0.0.0/16"},
		{d.V6, false, defaultPool6, "--ipv6-pool", "fd00::/64"},
	}
}

// pool makes the default pool of a family and checks it as agents will.
func (f poolFamily) pool(cidr string) (*v3.IPPool, error) {
	p := &v3.IPPool{
		TypeMeta: metav1.TypeMeta{APIVersion: v3.SchemeGroupVersion.String(), Kind: v3.KindIPPool}, ObjectMeta: metav1.ObjectMeta{Name: f.name},
		Spec: v3.IPPoolSpec{
			CIDR: cidr, BlockSize: f.o.BlockSize, NATOutgoing: f.o.NATOutgoing, DisableBGPExport: f.o.DisableBGPExport,
			IPIPMode: v3.EncapMode(cmp.Or(f.o.IPIP, string(v3.EncapNever))), VXLANMode: v3.EncapMode(cmp.Or(f.o.VXLAN, string(v3.EncapNever))),
			NodeSelector: cmp.Or(f.o.NodeSelector, "all()"), AssignmentMode: v3.AssignmentAutomatic,
			AllowedUses: []v3.IPPoolAllowedUse{v3.IPPoolAllowedUseWorkload, v3.IPPoolAllowedUseTunnel},
		},
	}
	if p.Spec.BlockSize == 0 {
		p.Spec.BlockSize = 122
		if f.v4 {
			p.Spec.BlockSize = 26
		}
	}
	for _, problem := range watch.Check(p, watch.Options{}).Problems {
		if !problem.Ignored {
			return nil, fmt.Errorf("%s: %s %s", f.name, problem.Field, problem.Message)
		}
	}
	return p, nil
}

// pools decides which pools a new cluster gets: those that the settings name, else those
// that the cluster's own settings name. It refuses to guess.
func (d Defaults) pools(e evidence) ([]*v3.IPPool, error) {
	if d.None {
		return nil, nil
	}
	var out []*v3.IPPool
	for _, f := range d.families() {
		cidr, source, err := f.choose(e)
		if err != nil {
			return nil, err
		}
		if !cidr.IsValid() {
			continue
		}
		if err := f.conflict(cidr, source, e); err != nil {
			return nil, err
		}
		p, err := f.pool(cidr.String())
		if err != nil {
			return nil, fmt.Errorf("%s: %w", source, err)
		}
		out = append(out, p)
	}
	if len(out) == 0 && (d.V4.CIDR != NoPool || d.V6.CIDR != NoPool) {
		hint := ""
		if len(e.podCIDRs) > 0 {
			hint = fmt.Sprintf(" (the podCIDRs of Nodes, such as %s, are parts of it and do not tell how large it is)", e.podCIDRs[0])
		}
		return nil, fmt.Errorf("which addresses pods are to have is not known: neither podSubnet of ConfigMap kube-system/kubeadm-config nor clusterCIDR of ConfigMap kube-system/kube-proxy says it%s; set --ipv4-pool or --ipv6-pool of the controller, or create an IPPool", hint)
	}
	return out, nil
}

// choose finds the CIDR of a family; the zero Prefix when nothing names one.
func (f poolFamily) choose(e evidence) (cidr netip.Prefix, source string, err error) {
	if f.o.CIDR == NoPool {
		return netip.Prefix{}, "", nil
	}
	if f.o.CIDR != "" {
		cidr, err = netip.ParsePrefix(f.o.CIDR)
		if err != nil {
			return netip.Prefix{}, "", fmt.Errorf("%s: %w", f.flag, err)
		}
		return cidr, f.flag, nil
	}
	for _, found := range e.pods {
		list, err := prefixes(found.text)
		if err != nil {
			return netip.Prefix{}, "", fmt.Errorf("%s is %q: %w; set %s", found.source, found.text, err, f.flag)
		}
		for _, p := range list {
			switch {
			case p.Addr().Is4() != f.v4:
			case !cidr.IsValid():
				cidr, source = p, found.source
			case cidr != p && source == found.source:
				return netip.Prefix{}, "", fmt.Errorf("%s names %s and %s; one pool cannot be both: set %s", source, cidr, p, f.flag)
			case cidr != p:
				return netip.Prefix{}, "", fmt.Errorf("%s is %s, but %s is %s; set %s to the one that is right", source, cidr, found.source, p, f.flag)
			}
		}
	}
	if !cidr.IsValid() {
		return cidr, "", nil
	}
	for _, p := range e.podCIDRs {
		if p.Addr().Is4() == f.v4 && !inside(cidr, p) {
			return netip.Prefix{}, "", fmt.Errorf("%s is %s, but a Node's podCIDR is %s, which is outside of it; set %s", source, cidr, p, f.flag)
		}
	}
	return cidr, source, nil
}

// conflict says what else uses the addresses.
func (f poolFamily) conflict(cidr netip.Prefix, source string, e evidence) error {
	for _, s := range e.services {
		if s.Overlaps(cidr) {
			return fmt.Errorf("%s is %s, which overlaps the Services' range %s; set %s to another range", source, cidr, s, f.flag)
		}
	}
	for _, n := range e.nodes {
		if cidr.Contains(n.addr) {
			return fmt.Errorf("%s is %s, which holds the address %s of Node %s; set %s to another range", source, cidr, n.addr, n.owner, f.flag)
		}
	}
	return nil
}

// prefixes reads a list separated by commas, and masks what it reads as Kubernetes does.
func prefixes(text string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for s := range strings.SplitSeq(text, ",") {
		s = strings.TrimSpace(s)
		if s == "" {
			continue
		}
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, err
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

// servesPods reports whether pods may get addresses of a pool.
func servesPods(p *v3.IPPool) bool {
	return len(p.Spec.AllowedUses) == 0 || slices.Contains(p.Spec.AllowedUses, v3.IPPoolAllowedUseWorkload)
}
