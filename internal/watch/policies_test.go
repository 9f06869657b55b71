package watch

import (
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-net/causeway/internal/model"
)

// joined is Policies whose updates go to a world at once.
type joined struct {
	*Policies
	t *testing.T
	w *world
}

func join(t *testing.T, opt Options) *joined {
	j := &joined{t: t, w: newWorld()}
	j.Policies = NewPolicies(opt, nil, func() {})
	j.SetPending(nil)
	return j
}

// sync brings the world up to date.
func (j *joined) sync() *world {
	j.t.Helper()
	if u := j.Take(); u != nil {
		if err := u.Apply(j.w); err != nil {
			j.t.Fatal(err)
		}
	}
	return j.w
}

func (j *joined) want(pods ...string) {
	j.t.Helper()
	if have := j.sync().pods(); !slices.Equal(have, pods) {
		j.t.Errorf("have %q\nwant %q", have, pods)
	}
}

func attachment(container, pod, uid, iface, addr string) model.Endpoint {
	return model.Endpoint{
		Key: model.AttachmentKey{ContainerID: container, IfName: "eth0"}, Namespace: "prod", Pod: pod, PodUID: uid,
		HostInterface: iface, Addresses: []netip.Addr{netip.MustParseAddr(addr)},
	}
}

func podObject(name, uid string) *Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "prod", Name: name, Labels: map[string]string{"app": name}}}
	p.UID = types.UID(uid)
	out, _ := ReadPod(p)
	return &out
}

// TestLocalPods joins objects and attachments in any order.
func TestLocalPods(t *testing.T) {
	j := join(t, policyOptions)
	j.Attach(attachment("c1", "a", "u1", "cali1", "10.0.0.1"))
	j.want("Pod prod/a cali1 [10.0.0.1] unknown")
	j.SetPod(podObject("a", "u0")) // the one before, of the same name
	j.want("Pod prod/a cali1 [10.0.0.1] unknown")
	j.SetPod(podObject("a", "u1"))
	j.want("Pod prod/a cali1 [10.0.0.1] map[app:a]")

	j.RemovePod("prod", "a") // its object is gone, and it runs still
	j.want("Pod prod/a cali1 [10.0.0.1] map[app:a]")
	j.Detach(model.AttachmentKey{ContainerID: "c1", IfName: "eth0"})
	j.want()

	// A container that is replaced: the new interface comes before the old one goes.
	j.SetPod(podObject("a", "u2"))
	j.Attach(attachment("c2", "a", "u2", "cali1", "10.0.0.2"))
	j.Attach(attachment("c3", "a", "u2", "cali1", "10.0.0.3"))
	j.Detach(model.AttachmentKey{ContainerID: "c2", IfName: "eth0"})
	j.want("Pod prod/a cali1 [10.0.0.3] map[app:a]")

	// A second interface has a name of its own.
	second := attachment("c3", "a", "u2", "cali2", "10.0.0.4")
	second.Key.IfName = "net1"
	j.Attach(second)
	j.want("Pod prod/a cali1 [10.0.0.3] map[app:a]", "Pod prod/a/net1 cali2 [10.0.0.4] map[app:a]")
	j.Detach(second.Key)
	j.want("Pod prod/a cali1 [10.0.0.3] map[app:a]")

	// A pod that moves: its new self is seen before the old one is gone.
	moved := podObject("a", "u3")
	moved.Addresses = []netip.Addr{netip.MustParseAddr("10.9.0.1")}
	j.SetRemote(moved)
	j.want("Pod prod/a cali1 [10.0.0.3] map[app:a]")
	j.Detach(model.AttachmentKey{ContainerID: "c3", IfName: "eth0"})
	j.RemovePod("prod", "a")
	j.want("Pod prod/a  [10.9.0.1] map[app:a]")
	j.RemoveRemote("prod", "a")
	j.want()
	if len(j.pods) > 0 || len(j.attached) > 0 {
		t.Errorf("%v and %v are left", j.pods, j.attached)
	}
}

// TestStaticPod knows a pod by what the runtime calls it.
func TestStaticPod(t *testing.T) {
	j := join(t, policyOptions)
	pod := podObject("etcd", "mirror")
	pod.StaticUID = "hash"
	j.SetPod(pod)
	j.Attach(attachment("c", "etcd", "hash", "cali1", "10.0.0.1"))
	j.want("Pod prod/etcd cali1 [10.0.0.1] map[app:etcd]")
}

// TestPodsWithoutObjects: in a folder nobody knows more of a pod than that it is there, and its
// namespace counts as known as long as it has one.
func TestPodsWithoutObjects(t *testing.T) {
	j := join(t, Options{Node: "n1", Policy: true})
	a, b := attachment("c1", "a", "", "cali1", "10.0.0.1"), attachment("c2", "b", "", "cali2", "10.0.0.2")
	free := model.Endpoint{Key: model.AttachmentKey{ContainerID: "x", IfName: "eth0"}, HostInterface: "cali3"}
	for _, ep := range []model.Endpoint{a, b, free, a} {
		j.Attach(ep)
	}
	j.want("Pod /x/eth0 cali3 []", "Pod prod/a cali1 [10.0.0.1]", "Pod prod/b cali2 [10.0.0.2]")
	if n := j.w.namespaces; len(n) != 1 || n["prod"].Name != "prod" {
		t.Errorf("namespaces %v", n)
	}
	j.Detach(a.Key)
	if j.sync(); len(j.w.namespaces) != 1 {
		t.Error("the namespace is gone with the first of two pods")
	}
	j.Detach(b.Key)
	j.Detach(free.Key)
	j.want()
	if len(j.w.namespaces) != 0 {
		t.Errorf("namespaces %v", j.w.namespaces)
	}
}

func TestReadPod(t *testing.T) {
	full := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "prod", Name: "a", UID: "u", Labels: map[string]string{"x": "1"}, Annotations: map[string]string{
			AnnotationAllowedSources: `["192.0.2.7/24"]`, annotationStaticUID: "h", "other": "x"}},
		Spec: corev1.PodSpec{ServiceAccountName: "sa", NodeName: "n",
			InitContainers: []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "side", ContainerPort: 9, Protocol: corev1.ProtocolSCTP}}}},
			Containers:     []corev1.Container{{Image: "x"}, {Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 80}, {ContainerPort: 81}, {Name: "dns", ContainerPort: 53, Protocol: corev1.ProtocolUDP}}}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: "10.0.0.1"}, {IP: "fd00::1"}}},
	}
	want := Pod{Namespace: "prod", Name: "a", UID: "u", StaticUID: "h", Node: "n", Labels: map[string]string{"x": "1"}, ServiceAccount: "sa",
		Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")},
		Ports: []model.EndpointPort{{Name: "side", Protocol: model.ProtocolSCTP, Port: 9}, {Name: "http", Protocol: model.ProtocolTCP, Port: 80},
			{Name: "dns", Protocol: model.ProtocolUDP, Port: 53}},
		AllowedSources: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}
	for name, p := range map[string]*corev1.Pod{"whole": full, "cut": StripPod(full)} {
		if have, ok := ReadPod(p); !ok || !reflect.DeepEqual(have, want) || !have.Equal(&want) {
			t.Errorf("%s: %+v, want %+v", name, have, want)
		}
	}
	for name, set := range map[string]func(*corev1.Pod){
		"host network": func(p *corev1.Pod) { p.Spec.HostNetwork = true },
		"succeeded":    func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded },
		"failed":       func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed },
	} {
		p := full.DeepCopy()
		set(p)
		if _, ok := ReadPod(StripPod(p)); ok {
			t.Errorf("%s: is policy's", name)
		}
	}
	bad := full.DeepCopy()
	bad.Annotations[AnnotationAllowedSources] = `["10.0.0.0/33"]`
	if p, _ := ReadPod(bad); p.AllowedSources != nil || !strings.Contains(p.Problem, "10.0.0.0/33") {
		t.Errorf("%v, %q", p.AllowedSources, p.Problem)
	}
}

// TestSpoofing grants prefixes where the FelixConfiguration lets pods ask for them.
func TestSpoofing(t *testing.T) {
	j := join(t, policyOptions)
	pod := podObject("a", "u1")
	pod.AllowedSources = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	j.SetPod(pod)
	j.Attach(attachment("c1", "a", "u1", "cali1", "10.0.0.1"))
	id := model.PolicyEndpointID{Namespace: "prod", Name: "a"}
	granted := func() int { return len(j.sync().endpoints[id].AllowedSources) }
	if p := j.Problems(); granted() != 0 || len(p) != 1 || !strings.Contains(p[0].Message, "workloadSourceSpoofing") {
		t.Errorf("granted %d, problems %v", granted(), p)
	}
	j.Set(Check(policyObject(t, "felix", "default", `{workloadSourceSpoofing: Any}`), policyOptions))
	if p := j.Problems(); granted() != 1 || len(p) != 0 {
		t.Errorf("granted %d, problems %v", granted(), p)
	}
	j.Set(Check(policyObject(t, "felix", "node.n1", `{workloadSourceSpoofing: Disabled}`), policyOptions))
	if granted() != 0 {
		t.Error("granted, though this node's configuration says no")
	}
	j.Remove(model.Object{Kind: "FelixConfiguration", Name: "node.n1"})
	if granted() != 1 {
		t.Error("not granted after this node's configuration went")
	}
}

func TestHostPolicy(t *testing.T) {
	j := join(t, policyOptions)
	tcp := func(p uint16) model.FailsafePort { return model.FailsafePort{Protocol: model.ProtocolTCP, Port: p} }
	h := j.sync().host
	if h.EndpointToHost != model.EndpointToHostAccept || len(h.FailsafeIn) != 9 || len(h.FailsafeOut) != 9 ||
		!slices.Contains(h.FailsafeIn, tcp(22)) || slices.Contains(h.FailsafeOut, tcp(22)) || !slices.Contains(h.FailsafeOut, model.FailsafePort{Protocol: model.ProtocolUDP, Port: 53}) {
		t.Errorf("by default %+v", h)
	}
	j.Set(Check(policyObject(t, "felix", "default", `{defaultEndpointToHostAction: DROP, failsafeInboundHostPorts: [], failsafeOutboundHostPorts: [{port: 1}, {protocol: UDP, port: 2, net: 10.0.0.0/8}]}`), policyOptions))
	j.Set(Check(policyObject(t, "felix", "node.n2", `{defaultEndpointToHostAction: Accept}`), policyOptions))
	j.Set(Check(policyObject(t, "felix", "node.n1", `{failsafeInboundHostPorts: [{protocol: tcp, port: 3}]}`), policyOptions))
	want := model.HostPolicy{EndpointToHost: model.EndpointToHostDrop, FailsafeIn: []model.FailsafePort{tcp(3)},
		FailsafeOut: []model.FailsafePort{tcp(1), {Protocol: model.ProtocolUDP, Port: 2, Net: netip.MustParsePrefix("10.0.0.0/8")}}}
	if h := j.sync().host; !reflect.DeepEqual(h, want) {
		t.Errorf("%+v, want %+v", h, want)
	}
	j.Remove(model.Object{Kind: "FelixConfiguration", Name: "node.n1"})
	if h := j.sync().host; len(h.FailsafeIn) != 0 {
		t.Errorf("an empty list is not the default: %v", h.FailsafeIn)
	}
}

func nodeAt(name, addr string) *Object {
	return Check(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"rack": "1"}, Annotations: map[string]string{AnnotationIPv4Address: addr + "/24"}}}, policyOptions)
}

// TestHostEndpoints finds interfaces of this node, and makes what Calico makes by itself.
func TestHostEndpoints(t *testing.T) {
	j := join(t, policyOptions)
	hep := func(name, spec string) {
		o := policyObject(t, "hep", name, spec)
		j.Set(Check(o, policyOptions))
	}
	hep("named", `{node: n1, interfaceName: eth1, expectedIPs: [192.0.2.1]}`)
	hep("by-address", `{node: n1, expectedIPs: [192.0.2.9, 192.0.2.2]}`)
	hep("other", `{node: n2, interfaceName: eth0, expectedIPs: [192.0.2.3]}`)
	j.want("HostEndpoint by-address  [192.0.2.9 192.0.2.2]", "HostEndpoint named eth1 [192.0.2.1]", "HostEndpoint other  [192.0.2.3]")
	if p := j.Problems(); len(p) != 0 {
		t.Errorf("problems before the interfaces are known: %v", p)
	}
	j.SetInterfaces(map[string][]netip.Addr{"lo": nil})
	if p := j.Problems(); len(p) != 1 || p[0].Object.Name != "by-address" || !strings.Contains(p[0].Message, "are on no interface of node n1") {
		t.Errorf("problems %v", p)
	}
	j.SetInterfaces(map[string][]netip.Addr{"eth7": {netip.MustParseAddr("192.0.2.2")}})
	j.want("HostEndpoint by-address eth7 [192.0.2.9 192.0.2.2]", "HostEndpoint named eth1 [192.0.2.1]", "HostEndpoint other  [192.0.2.3]")
	if p := j.Problems(); len(p) != 0 {
		t.Errorf("problems %v", p)
	}
	for _, name := range []string{"named", "by-address", "other"} {
		j.Remove(model.Object{Kind: "HostEndpoint", Name: name})
	}
	j.want()

	j.Set(nodeAt("n1", "192.0.2.1"))
	j.want()
	j.Set(Check(policyObject(t, "kcc", "default", `{controllers: {node: {hostEndpoint: {autoCreate: Enabled}}}}`), policyOptions))
	j.Set(nodeAt("n2", "192.0.2.2"))
	auto := func(node, iface, addr string) string {
		return "HostEndpoint " + node + "-auto-hep " + iface + " [" + addr + "] map[kubernetes.io/hostname:" + node + " projectcalico.org/created-by:calico-kube-controllers rack:1]"
	}
	j.want(auto("n1", "*", "192.0.2.1"), auto("n2", "", "192.0.2.2"))
	if p := j.w.endpoints[model.PolicyEndpointID{Kind: model.EndpointHost, Name: "n1-auto-hep"}].Profiles; !slices.Equal(p, []string{"projectcalico-default-allow"}) {
		t.Errorf("profiles %v", p)
	}
	hep("n1-auto-hep", `{node: n1, interfaceName: "*"}`) // an object of that name goes first
	j.want("HostEndpoint n1-auto-hep * []", auto("n2", "", "192.0.2.2"))
	j.Remove(model.Object{Kind: "HostEndpoint", Name: "n1-auto-hep"})
	j.Remove(model.Object{Kind: KindNode, Name: "n2"})
	j.want(auto("n1", "*", "192.0.2.1"))
	if n := j.w.nodes; len(n) != 1 || n["n1"].Labels["rack"] != "1" {
		t.Errorf("nodes %v", n)
	}
	j.Remove(model.Object{Kind: "KubeControllersConfiguration", Name: "default"})
	j.want()
}

// TestNamed counts what policies name, and joins the slices of a Service.
func TestNamed(t *testing.T) {
	j := join(t, policyOptions)
	set := func(name, spec string) { j.Set(Check(policyObject(t, "np", name, spec), policyOptions)) }
	named := func(accounts bool, services ...string) {
		t.Helper()
		have, a := j.Named()
		var names []string
		for _, s := range have {
			names = append(names, s.Namespace+"/"+s.Name)
		}
		if a != accounts || !slices.Equal(names, services) {
			t.Errorf("named %v, accounts %v; want %v, %v", names, a, services, accounts)
		}
	}
	set("prod/a", `{ingress: [{action: Allow, source: {services: {name: s}}}, {action: Allow, source: {services: {name: s}}}]}`)
	set("prod/b", `{egress: [{action: Allow, destination: {services: {name: s}}}, {action: Allow, destination: {services: {name: t, namespace: u}}}]}`)
	named(false, "prod/s", "u/t")
	set("prod/c", `{ingress: [{action: Allow, source: {serviceAccounts: {selector: has(x)}}}]}`)
	set("prod/d", `{selector: "pcsa.x == 'y'"}`)
	named(true, "prod/s", "u/t")
	set("prod/b", `{}`)
	j.Remove(model.Object{Kind: "NetworkPolicy", Namespace: "prod", Name: "c"})
	named(true, "prod/s")
	j.Remove(model.Object{Kind: "NetworkPolicy", Namespace: "prod", Name: "d"})
	j.Remove(model.Object{Kind: "NetworkPolicy", Namespace: "prod", Name: "a"})
	named(false)

	slice := func(name, addr string) {
		id, endpoints := ReadSlice(&discoveryv1.EndpointSlice{
			ObjectMeta: metav1.ObjectMeta{Namespace: "prod", Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: "s"}},
			Endpoints:  []discoveryv1.Endpoint{{Addresses: []string{addr}}}, Ports: []discoveryv1.EndpointPort{{Port: ptr(int32(80))}, {Port: ptr(int32(53)), Protocol: ptr(corev1.ProtocolUDP)}},
		})
		j.SetSlice(id, name, endpoints)
	}
	id := model.ServiceID{Namespace: "prod", Name: "s"}
	slice("s-1", "10.0.0.1")
	slice("s-2", "10.0.0.2")
	if have := j.sync().services[id].Endpoints; len(have) != 4 || have[0] != (model.ServiceEndpoint{Addr: netip.MustParseAddr("10.0.0.1"), Protocol: 6, Port: 80}) {
		t.Errorf("%v", have)
	}
	j.RemoveSlice(id, "s-1")
	if have := j.sync().services[id].Endpoints; len(have) != 2 {
		t.Errorf("%v", have)
	}
	j.RemoveSlice(id, "s-2")
	if _, there := j.sync().services[id]; there {
		t.Error("the Service is left without slices")
	}
}

// TestPending publishes what is missing once, also when nothing else has changed.
func TestPending(t *testing.T) {
	p := NewPolicies(policyOptions, nil, func() {})
	p.SetNamespace(model.Namespace{Name: "a"})
	if u := p.Take(); u != nil {
		t.Error("an update before anybody said what is missing")
	}
	p.SetPending([]string{"b", "a"})
	u := p.Take()
	if u == nil || !slices.Equal(u.Pending, []string{"a", "b"}) || u.Len() != 2 { // with what holds for hosts
		t.Fatalf("%+v", u)
	}
	p.SetPending([]string{"a", "b"})
	if u := p.Take(); u != nil {
		t.Errorf("the same again: %+v", u)
	}
	p.SetPending(nil)
	if u := p.Take(); u == nil || u.Pending != nil || u.Len() != 0 {
		t.Errorf("%+v", u)
	}
}

// TestPolicyMemory: every kind of thing comes back as it was.
func TestPolicyMemory(t *testing.T) {
	j := join(t, policyOptions)
	j.Set(Check(policyObject(t, "tier", "a", `{}`), policyOptions))
	j.Set(Check(policyObject(t, "tier", "b", `{order: 0}`), policyOptions))
	j.Set(Check(policyObject(t, "gnp", "a", `{selector: all(), ingress: [{action: Allow, protocol: ICMP, icmp: {type: 8, code: 0}, source: {nets: [10.0.0.0/8], services: null}}]}`), policyOptions))
	j.Set(Check(policyObject(t, "np", "a/b", `{order: 0, egress: [{action: Allow, protocol: TCP, destination: {services: {name: s}}}, {action: Deny, protocol: TCP, destination: {ports: [http, "1:2"]}}]}`), policyOptions))
	j.Set(Check(policyObject(t, "gns", "a", `{nets: ["fd00::/8"]}`), policyOptions))
	j.Set(Check(policyObject(t, "hep", "a", `{node: n1, interfaceName: "*", expectedIPs: [192.0.2.1], ports: [{name: p, protocol: TCP, port: 1}], profiles: [kns.a]}`), policyOptions))
	j.Set(Check(policyObject(t, "felix", "default", `{failsafeInboundHostPorts: [{port: 1, net: 10.0.0.0/8}, {port: 2}]}`), policyOptions))
	j.Set(nodeAt("n1", "192.0.2.1"))
	j.SetNamespace(model.Namespace{Name: "prod", Labels: map[string]string{"a": "b"}})
	j.SetServiceAccount(model.ServiceAccount{Namespace: "prod", Name: "x", Labels: map[string]string{"a": "b"}})
	j.SetSlice(model.ServiceID{Namespace: "a", Name: "s"}, "s-1", []model.ServiceEndpoint{{Addr: netip.MustParseAddr("10.0.0.1"), Protocol: 6, Port: 1}})
	j.SetPod(podObject("a", "u"))
	j.Attach(attachment("c", "a", "u", "cali1", "10.0.0.2"))
	u := j.Take()
	u.Apply(j.w)
	m := NewPolicyMemory()
	if err := m.Keep(u); err != nil {
		t.Fatal(err)
	}
	if m.Len() != 12 {
		t.Errorf("%d things of %d changes, want 12", m.Len(), u.Len())
	}
	read, err := ReadPolicyMemory(strings.NewReader(string(slices.Concat(slices.Collect(func(yield func([]byte) bool) {
		for _, l := range m.Lines() {
			if !yield(append(slices.Clone(l), '\n')) {
				return
			}
		}
	})...))))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(read, m) {
		t.Errorf("read %v, want %v", read, m)
	}
	back, err := read.Update()
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld()
	back.Apply(w)
	if !reflect.DeepEqual(w, j.w) {
		t.Errorf("came back\n%+v\nwant\n%+v", w, j.w)
	}
}
