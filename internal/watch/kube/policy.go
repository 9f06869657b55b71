package kube

import (
	"context"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	cnpv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/internal/watch"
)

// What concerns policy is watched beside the snapshot: its feeds tell a watch.Policies object
// by object, and only problems find their way into snapshots (DESIGN I8). Without Config.Policy
// there are none of these feeds.

// podsLinger is how long the pods of other nodes stay watched when no policy asks for them
// any more: reading them anew costs more than following them for a while.
const podsLinger = 5 * time.Minute

// policyFeeds are the watches of what concerns policy.
type policyFeeds struct {
	policies *watch.Policies
	static   []*feed // those of policy alone
	existing []*feed // those of the snapshot, or of CNI, that policy needs too

	// The Source's mutex guards these.
	problems  map[model.Object][]model.Problem
	pods      *dynamicFeed // of other nodes; nil while nothing asks for them
	accounts  *dynamicFeed
	services  map[model.ServiceID]*dynamicFeed
	wantsPods bool
	unwanted  time.Time // since when pods are not asked for
	wanted    map[model.ServiceID]bool
}

// dynamicFeed is a watch that comes and goes.
type dynamicFeed struct {
	*feed
	stop   context.CancelFunc
	forget func() // takes away what it told
}

// Policies is where this node says what it knows of itself, its attached pods and its
// interfaces. It is nil without Config.Policy.
func (s *Source) Policies() *watch.Policies {
	if s.policy == nil {
		return nil
	}
	return s.policy.policies
}

// Needs says what the policies that are in force here need beyond what is always watched: the
// pods of other nodes, and of the Services that policies name those that service reports. It
// is to be called after each update. It reports whether all that is needed was read; when not,
// another update follows as soon as it is. It must not be called without Config.Policy, and
// service must not be nil.
func (s *Source) Needs(pods bool, service func(model.ServiceID) bool) (known bool) {
	f := s.policy
	services, _ := f.policies.Named()
	services = slices.DeleteFunc(services, func(id model.ServiceID) bool { return !service(id) })
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.wantsPods && !pods {
		f.unwanted = time.Now()
		s.changedAfter(podsLinger)
	}
	f.wantsPods = pods
	known = !pods || f.pods.read()
	look := pods && f.pods == nil || len(services) != len(f.services)
	f.wanted = make(map[model.ServiceID]bool, len(services))
	for _, id := range services {
		f.wanted[id] = true
		known = known && f.services[id].read()
		look = look || f.services[id] == nil
	}
	if look {
		s.changed()
	}
	return known
}

// read reports whether the feed is there and was read.
func (d *dynamicFeed) read() bool { return d != nil && !d.synced.IsZero() }

// addPolicy makes the feeds of policy that are always there.
func (s *Source) addPolicy(publish func(*watch.PolicyUpdate)) {
	f := &policyFeeds{
		policies: watch.NewPolicies(s.opt, publish, s.changed), problems: map[model.Object][]model.Problem{}, services: map[model.ServiceID]*dynamicFeed{},
	}
	s.policy = f
	// What is kept for snapshots is told to policy, too.
	for _, feed := range s.feeds {
		switch contents := feed.contents.(type) {
		case *table[entry]:
			if feed.resource != "nodes" && feed.resource != "felixconfigurations."+v3.GroupName {
				continue
			}
			contents.moved = func(_ string, old, now *entry) { f.object(old, now) }
		case *table[pod]:
			contents.moved = func(_ string, old, now *pod) { f.pod(old, now) }
			feed.strip = stripPodForPolicy
		case *table[namespace]:
			contents.moved = func(name string, _, now *namespace) {
				if now == nil {
					f.policies.RemoveNamespace(name)
				} else {
					f.policies.SetNamespace(model.Namespace{Name: name, Labels: now.labels})
				}
			}
		default:
			continue
		}
		was := feed.onChange
		feed.onChange = func() {
			was()
			s.tellPending()
		}
		f.existing = append(f.existing, feed)
	}
	add := func(x *feed, kind string) {
		contents := entries(kind, s.opt)
		contents.moved = func(_ string, old, now *entry) {
			f.object(old, now)
			if f.note(old, now) {
				s.changed()
			}
		}
		x.s, x.contents, x.tried, x.onChange = s, contents, make(chan struct{}), s.tellPending
		if x.lastWait == 0 {
			x.lastWait = lastWait
		}
		f.static = append(f.static, x)
	}
	add(&feed{
		name: "networkpolicies.networking.k8s.io", resource: "networkpolicies.networking.k8s.io", needed: true,
		source: typed(s.cfg.Clients.Core.NetworkingV1().NetworkPolicies(metav1.NamespaceAll), nil), sample: &networkingv1.NetworkPolicy{}, strip: stripPolicy,
	}, string(model.PolicyKubernetes))
	own := func(kind, resource string, make func() metav1.Object) {
		name := resource + "." + v3.GroupName
		add(&feed{name: name, resource: name, needed: true, source: items(s.cfg.Clients.V3, resource, make, nil), sample: &item{}}, kind)
	}
	own(v3.KindTier, "tiers", func() metav1.Object { return &v3.Tier{} })
	own(string(model.PolicyNamespaced), "networkpolicies", func() metav1.Object { return &v3.NetworkPolicy{} })
	own(string(model.PolicyGlobal), "globalnetworkpolicies", func() metav1.Object { return &v3.GlobalNetworkPolicy{} })
	own(string(model.PolicyStagedNamespaced), "stagednetworkpolicies", func() metav1.Object { return &v3.StagedNetworkPolicy{} })
	own(string(model.PolicyStagedGlobal), "stagedglobalnetworkpolicies", func() metav1.Object { return &v3.StagedGlobalNetworkPolicy{} })
	own(string(model.PolicyStagedKubernetes), "stagedkubernetesnetworkpolicies", func() metav1.Object { return &v3.StagedKubernetesNetworkPolicy{} })
	own(v3.KindNetworkSet, "networksets", func() metav1.Object { return &v3.NetworkSet{} })
	own(v3.KindGlobalNetworkSet, "globalnetworksets", func() metav1.Object { return &v3.GlobalNetworkSet{} })
	own(v3.KindHostEndpoint, "hostendpoints", func() metav1.Object { return &v3.HostEndpoint{} })
	own(v3.KindKubeControllersConfiguration, "kubecontrollersconfigurations", func() metav1.Object { return &v3.KubeControllersConfiguration{} })
	// Its CustomResourceDefinition is not ours, and may well not be there.
	const cluster = "clusternetworkpolicies"
	group := cnpv1alpha2.SchemeGroupVersion
	add(&feed{
		name: cluster + "." + group.Group, resource: cluster + "." + group.Group, sample: &item{}, lastWait: lastIgnoredWait,
		source: itemsAt(s.cfg.Clients.V3, "/apis/"+group.String()+"/"+cluster, func() metav1.Object { return &cnpv1alpha2.ClusterNetworkPolicy{} }),
	}, string(model.PolicyCluster))
}

// object tells that a version of an object came into force, or went.
func (f *policyFeeds) object(old, now *entry) {
	switch {
	case now != nil && now.inForce != nil:
		if old == nil || old.inForce != now.inForce {
			f.policies.Set(now.inForce)
		}
	case old != nil && old.inForce != nil:
		f.policies.Remove(old.key)
	}
}

// note keeps the problems of an object; it reports whether they are others now.
func (f *policyFeeds) note(old, now *entry) bool {
	var key model.Object
	var problems []model.Problem
	if now != nil {
		key, problems = now.key, now.problems
		if now.inForce != nil {
			problems = slices.Concat(now.inForce.Problems, problems)
		}
	} else {
		key = old.key
	}
	if slices.Equal(f.problems[key], problems) {
		return false
	}
	if len(problems) == 0 {
		delete(f.problems, key)
	} else {
		f.problems[key] = problems
	}
	return true
}

// pod tells of a pod of this node.
func (f *policyFeeds) pod(old, now *pod) {
	switch {
	case now != nil && now.policy != nil:
		if old == nil || old.policy == nil || !old.policy.Equal(now.policy) {
			f.policies.SetPod(now.policy)
		}
	case old != nil && old.policy != nil:
		f.policies.RemovePod(old.policy.Namespace, old.policy.Name)
	}
}

// feeds lists all feeds of policy that run of themselves. s.mu is held.
func (f *policyFeeds) feeds() []*feed {
	out := slices.Clone(f.static)
	for _, d := range f.services {
		out = append(out, d.feed)
	}
	for _, d := range []*dynamicFeed{f.pods, f.accounts} {
		if d != nil {
			out = append(out, d.feed)
		}
	}
	return out
}

// tellPending says which watches were not read yet. s.mu is held.
func (s *Source) tellPending() {
	var names []string
	for _, x := range slices.Concat(s.policy.existing, s.policy.feeds()) {
		if x.synced.IsZero() && !x.absent() {
			names = append(names, x.name)
		}
	}
	s.policy.policies.SetPending(names)
}

// absent reports whether there is no such resource, so that nobody has objects of it. An API server that goes
// away takes nothing of that back.
func (f *feed) absent() bool {
	return !f.missing.IsZero() && time.Since(f.missing) >= refusalGrace
}

// policyProblems adds what is to be said of policy. s.mu is held.
func (s *Source) policyProblems() []model.Problem {
	var out []model.Problem
	for _, problems := range s.policy.problems {
		out = append(out, problems...)
	}
	for _, x := range s.policy.feeds() {
		if p, ok := x.problem(); ok {
			out = append(out, p)
		}
	}
	return append(out, s.policy.policies.Problems()...)
}

// watchPolicy starts and stops the watches that policies ask for.
func (s *Source) watchPolicy(ctx context.Context, running *sync.WaitGroup) {
	f := s.policy
	_, accounts := f.policies.Named()
	s.mu.Lock()
	defer s.mu.Unlock()
	start := func(d *dynamicFeed) *dynamicFeed {
		d.s, d.lastWait, d.tried, d.onChange = s, lastWait, make(chan struct{}), s.tellPending
		ctx, cancel := context.WithCancel(ctx)
		d.stop = cancel
		running.Go(func() { d.run(ctx) })
		return d
	}
	end := func(d *dynamicFeed) {
		d.stop()
		d.end()
		d.forget()
	}
	switch {
	case f.wantsPods && f.pods == nil:
		f.pods = start(s.otherPods())
		s.log.Info("the pods of all nodes are watched: a policy that is in force here selects some")
	case !f.wantsPods && f.pods != nil && time.Since(f.unwanted) >= podsLinger:
		end(f.pods)
		f.pods = nil
		s.log.Info("the pods of other nodes are not watched any more: no policy that is in force here selects any")
	}
	switch {
	case accounts && f.accounts == nil:
		f.accounts = start(s.serviceAccounts())
	case !accounts && f.accounts != nil:
		end(f.accounts)
		f.accounts = nil
	}
	for id, d := range f.services {
		if !f.wanted[id] {
			end(d)
			delete(f.services, id)
		}
	}
	for id := range f.wanted {
		if f.services[id] == nil {
			f.services[id] = start(s.serviceSlices(id))
		}
	}
	s.tellPending()
}

func stripPolicy(obj any) (any, error) {
	p, ok := obj.(*networkingv1.NetworkPolicy)
	if !ok {
		return obj, nil
	}
	return &networkingv1.NetworkPolicy{ObjectMeta: bare(&p.ObjectMeta), Spec: p.Spec}, nil
}

// stripPodForPolicy keeps of a pod of this node what CNI and policy need.
func stripPodForPolicy(obj any) (any, error) {
	p, ok := obj.(*corev1.Pod)
	if !ok {
		return obj, nil
	}
	out := watch.StripPod(p)
	cut, err := stripPod(p)
	if err != nil {
		return nil, err
	}
	out.ObjectMeta = cut.(*corev1.Pod).ObjectMeta
	out.Labels, out.DeletionTimestamp = p.Labels, p.DeletionTimestamp
	return out, nil
}
