package controller

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-net/causeway/internal/model"
)

// What Calico calls things of Services of type LoadBalancer.
const (
	loadBalancerClass = "calico"

	annotationPools4    = "projectcalico.org/ipv4pools"
	annotationPools6    = "projectcalico.org/ipv6pools"
	annotationAddresses = "projectcalico.org/loadBalancerIPs"

	assignAll       = "AllServices"
	assignRequested = "RequestedServicesOnly"

	handlePrefix = "lb-"
)

// serviceAnnotations are those that count.
var serviceAnnotations = []string{annotationPools4, annotationPools6, annotationAddresses}

// handleOf is the handle under which a Service holds its addresses, as Calico makes it.
func handleOf(svc *corev1.Service) string {
	sum := sha256.Sum256([]byte(strings.ToLower(svc.Name + "-" + svc.Namespace + "-" + string(svc.UID))))
	text := base64.RawURLEncoding.EncodeToString(sum[:])
	return handlePrefix + strings.NewReplacer("-", "", "_", "").Replace(text)
}

// managed reports whether the Service's addresses are ours to give, and whether it asked
// for that by class or annotation.
func managed(svc *corev1.Service, mode string) (ours, asked bool) {
	if svc.Spec.Type != corev1.ServiceTypeLoadBalancer || svc.DeletionTimestamp != nil {
		return false, false
	}
	class := svc.Spec.LoadBalancerClass
	if class != nil && *class != loadBalancerClass {
		return false, false
	}
	asked = class != nil || slices.ContainsFunc(serviceAnnotations, func(a string) bool { return svc.Annotations[a] != "" })
	return asked || mode != assignRequested, asked
}

// wish is what the annotations of a Service ask for.
type wish struct {
	addrs          []netip.Addr // at most one of each family
	pools4, pools6 []string     // names or CIDRs
}

func readWish(annotations map[string]string) (wish, error) {
	var w wish
	list := func(key string, into *[]string) error {
		text := annotations[key]
		if text == "" {
			return nil
		}
		if err := json.Unmarshal([]byte(text), into); err != nil {
			return fmt.Errorf(`annotation %s: %q is no list; write it as ["…"]: %w`, key, text, err)
		}
		return nil
	}
	var addrs []string
	if err := list(annotationPools4, &w.pools4); err != nil {
		return wish{}, err
	}
	if err := list(annotationPools6, &w.pools6); err != nil {
		return wish{}, err
	}
	if err := list(annotationAddresses, &addrs); err != nil {
		return wish{}, err
	}
	for _, s := range addrs {
		a, err := netip.ParseAddr(s)
		if err != nil || a.Zone() != "" {
			return wish{}, fmt.Errorf("annotation %s: %q is no IP address", annotationAddresses, s)
		}
		a = a.Unmap()
		if slices.ContainsFunc(w.addrs, func(b netip.Addr) bool { return a.Is4() == b.Is4() }) {
			return wish{}, fmt.Errorf("annotation %s: %s names two addresses of one family; at most one of each can be given", annotationAddresses, annotations[annotationAddresses])
		}
		w.addrs = append(w.addrs, a)
	}
	return w, nil
}

// want is one address that a Service lacks: that one, or one of the pools.
type want struct {
	family corev1.IPFamily
	addr   netip.Addr
	prefer netip.Addr // one that the status shows already
	pools  []*model.Pool
}

// plan is what has to become of a Service's addresses: keep those, find the wants, and
// when the status no longer shows them free drop. Problems say why a family stays without.
type plan struct {
	keep     []netip.Addr
	wants    []want
	drop     []netip.Addr
	problems []string
}

func family(a netip.Addr) corev1.IPFamily {
	if a.Is4() {
		return corev1.IPv4Protocol
	}
	return corev1.IPv6Protocol
}

// decide plans for a Service that is ours and holds the addresses held.
func decide(svc *corev1.Service, v *view, held []netip.Addr) plan {
	w, err := readWish(svc.Annotations)
	if err != nil {
		// What is meant is not known: what it has stays.
		return plan{keep: held, problems: []string{err.Error()}}
	}
	var p plan
	for _, a := range w.addrs {
		if !slices.Contains(svc.Spec.IPFamilies, family(a)) {
			p.problems = append(p.problems, fmt.Sprintf("annotation %s: %s is an %s address and .spec.ipFamilies is %v", annotationAddresses, a, family(a), svc.Spec.IPFamilies))
		}
	}
	for _, f := range svc.Spec.IPFamilies {
		p.family(f, svc, v, w, held)
	}
	for _, a := range held {
		if !slices.Contains(p.keep, a) {
			p.drop = append(p.drop, a)
		}
	}
	return p
}

func (p *plan) family(f corev1.IPFamily, svc *corev1.Service, v *view, w wish, held []netip.Addr) {
	need := want{family: f}
	names := w.pools4
	if f == corev1.IPv6Protocol {
		names = w.pools6
	}
	if len(w.addrs) > 0 {
		i := slices.IndexFunc(w.addrs, func(a netip.Addr) bool { return family(a) == f })
		if i < 0 {
			return // as Calico: who names addresses gets those and no others
		}
		need.addr = w.addrs[i]
	} else if err := need.choose(f, v, names); err != nil {
		p.problems = append(p.problems, err.Error())
	}
	for _, a := range held {
		if family(a) == f && need.allows(a, len(names) > 0) {
			p.keep = append(p.keep, a)
			return
		}
	}
	if need.addr.IsValid() {
		pool := poolOf(v, need.addr)
		if pool == nil {
			p.problems = append(p.problems, fmt.Sprintf("address %s is in no IPPool with allowedUses [LoadBalancer] that gives addresses", need.addr))
			return
		}
		need.pools = []*model.Pool{pool}
	} else if len(need.pools) == 0 {
		if len(names) == 0 && !optional(svc, f) {
			p.problems = append(p.problems, fmt.Sprintf("no IPPool with allowedUses [LoadBalancer] gives %s addresses", f))
		}
		return
	}
	for _, in := range svc.Status.LoadBalancer.Ingress {
		if a, err := netip.ParseAddr(in.IP); err == nil && family(a) == f && need.allows(a, true) {
			need.prefer = a
		}
	}
	p.wants = append(p.wants, need)
}

// optional reports whether a Service can do without an address of the family.
func optional(svc *corev1.Service, f corev1.IPFamily) bool {
	policy := svc.Spec.IPFamilyPolicy
	return policy != nil && *policy == corev1.IPFamilyPolicyPreferDualStack
}

// choose finds the pools that may serve the family: the named ones, or all that serve
// without being named.
func (n *want) choose(f corev1.IPFamily, v *view, names []string) error {
	of := func(q *model.Pool) bool {
		return family(q.CIDR.Addr()) == f && q.Allows(model.UseLoadBalancer) && v.gives(q)
	}
	if len(names) == 0 {
		for i := range v.pools {
			if q := &v.pools[i]; of(q) && !q.Manual {
				n.pools = append(n.pools, q)
			}
		}
		return nil
	}
	var bad []string
	for _, name := range names {
		i := slices.IndexFunc(v.pools, func(q model.Pool) bool { return q.Name == name || q.CIDR.String() == name })
		if i < 0 || !of(&v.pools[i]) {
			bad = append(bad, name)
			continue
		}
		n.pools = append(n.pools, &v.pools[i])
	}
	if len(bad) > 0 && len(n.pools) == 0 {
		return fmt.Errorf("%s: no IPPool with allowedUses [LoadBalancer] that gives %s addresses", strings.Join(bad, ", "), f)
	}
	return nil
}

// allows reports whether an address answers the want. One that is held stays unless it is
// not what was asked for, also when its pool gives no more addresses.
func (n *want) allows(a netip.Addr, named bool) bool {
	if n.addr.IsValid() {
		return n.addr == a
	}
	return !named || slices.ContainsFunc(n.pools, func(q *model.Pool) bool { return q.CIDR.Contains(a) })
}

// poolOf returns the pool that may give a certain address, or nil.
func poolOf(v *view, a netip.Addr) *model.Pool {
	for i := range v.pools {
		if q := &v.pools[i]; q.CIDR.Contains(a) && q.Allows(model.UseLoadBalancer) && v.gives(q) {
			return q
		}
	}
	return nil
}

// foreign reports whether the status shows something that none of our pools can have
// given: another implementation is in charge of the Service.
func foreign(svc *corev1.Service, v *view) bool {
	for _, in := range svc.Status.LoadBalancer.Ingress {
		a, err := netip.ParseAddr(in.IP)
		if err != nil || !slices.ContainsFunc(v.pools, func(q model.Pool) bool { return q.Allows(model.UseLoadBalancer) && q.CIDR.Contains(a) }) {
			return true
		}
	}
	return false
}

// ingress returns what the status of a Service of ours shows: its addresses in the order
// of its families.
func ingress(svc *corev1.Service, addrs []netip.Addr) []corev1.LoadBalancerIngress {
	var out []corev1.LoadBalancerIngress
	for _, f := range svc.Spec.IPFamilies {
		for _, a := range addrs {
			if family(a) == f {
				out = append(out, corev1.LoadBalancerIngress{IP: a.String()})
			}
		}
	}
	return out
}

// without returns the ingress of a Service that is no longer ours, without our addresses.
func without(in []corev1.LoadBalancerIngress, addrs []netip.Addr) []corev1.LoadBalancerIngress {
	return slices.DeleteFunc(slices.Clone(in), func(i corev1.LoadBalancerIngress) bool {
		a, err := netip.ParseAddr(i.IP)
		return err == nil && slices.Contains(addrs, a)
	})
}

// sameIngress reports whether both show the same addresses in the same order, and nothing
// besides.
func sameIngress(x, y []corev1.LoadBalancerIngress) bool {
	return slices.EqualFunc(x, y, func(a, b corev1.LoadBalancerIngress) bool { return a.IP == b.IP && a.Hostname == b.Hostname })
}

func keyOf(svc *corev1.Service) types.NamespacedName {
	return types.NamespacedName{Namespace: svc.Namespace, Name: svc.Name}
}
