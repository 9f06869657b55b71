package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/causeway-net/causeway/bgp"
	"github.com/causeway-net/causeway/bgp/child"
	"github.com/causeway-net/causeway/bgp/gobgp"
	"github.com/causeway-net/causeway/cni-plugin/install"
	"github.com/causeway-net/causeway/cni-plugin/server"
	"github.com/causeway-net/causeway/cni-plugin/veth"
	"github.com/causeway-net/causeway/felix"
	"github.com/causeway-net/causeway/felix/dataplane"
	"github.com/causeway-net/causeway/felix/encapguard"
	"github.com/causeway-net/causeway/felix/enforce"
	"github.com/causeway-net/causeway/felix/ipset"
	"github.com/causeway-net/causeway/felix/iptables"
	"github.com/causeway-net/causeway/felix/link"
	"github.com/causeway-net/causeway/felix/overlay"
	"github.com/causeway-net/causeway/felix/policy"
	"github.com/causeway-net/causeway/felix/route"
	"github.com/causeway-net/causeway/felix/tunnel"
	"github.com/causeway-net/causeway/internal/announce"
	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/internal/node"
	"github.com/causeway-net/causeway/internal/status"
	"github.com/causeway-net/causeway/internal/task"
	"github.com/causeway-net/causeway/ipam"
)

// agent is the wiring between the parts; it decides nothing.
type agent struct {
	o       options
	log     *slog.Logger
	started time.Time

	run      *runFolder
	data     *datastore
	ipam     *ipam.Allocator
	routes   *route.Table
	rules    []reversePath // of IPv4 and IPv6
	links    *link.Uplinks
	sets     *ipset.Reconciler
	guard    *encapguard.Guard
	tunnels  *tunnel.Devices
	overlay  *overlay.Overlay
	policy   *enforce.Enforcer
	felix    *felix.Dataplane
	bgp      *gobgp.Reconciler
	cni      *server.Server
	pulse    *pulse
	node     *node.Reporter      // nil without Kubernetes
	announce *announce.Announcer // nil without Kubernetes
	list     *install.Conflist   // nil unless wanted

	told     chan struct{}    // closed with the first snapshot
	forced   iptables.Backend // by that snapshot; set before told is closed
	nftables bool             // policy is enforced by nftables; as forced
	known    []string         // pods' interfaces of an earlier agent
	marks    policy.Marks
	applying sync.Mutex      // held while everyone is told of a snapshot; guards read
	read     *model.Snapshot // as the datastore has it

	mu          sync.Mutex      // guards what follows
	snap        *model.Snapshot // read, with this node's addresses as they were found
	outside     []netip.Addr
	bgpProblems []model.Problem
	adverts     []netip.Prefix
	rulesSeen   bool         // all rules were in force once
	enforced    func() error // why no rule of policy was ever in force; nil before there is a backend
	synced      bool         // BGP was in sync with its peers once
	marked      bool         // the mark that an agent ran here stands
}

// newAgent makes all parts; nothing runs yet.
func newAgent(o options, log *slog.Logger, run *runFolder) (*agent, error) {
	a := &agent{o: o, log: log, started: time.Now(), told: make(chan struct{}), snap: &model.Snapshot{}, run: run}
	run.log, run.mark = log, a.remark
	to := published{snapshot: a.setSnapshot, policy: a.setPolicy}
	var err error
	if o.datastore == kubernetes { // a folder tells of no other node's pods
		a.announce, err = announce.New(announce.Config{Node: o.nodeName, Port: o.announcePort, Log: log, Deliver: a.hears})
		if err != nil {
			return nil, err
		}
		to.announceKey = a.announce.SetKey
	}
	if a.data, err = openDatastore(o, log, to); err != nil {
		return nil, err
	}
	a.ipam, err = ipam.New(ipam.Config{
		Node: o.nodeName, Store: a.data.store, JournalDir: o.stateDir, Log: log, Private: a.data.private,
		Resync: a.data.resync, SearchEvery: a.data.searchEvery, Linger: a.data.linger,
		Tunnels: a.setTunnels,
	})
	if err != nil {
		return nil, err
	}

	a.routes, err = route.New(route.Config{
		Log: log, Owners: []model.Owner{model.OwnerWorkload, model.OwnerBlock, model.OwnerTunnel, model.OwnerBGP}, Resync: o.resync,
	})
	if err != nil {
		return nil, err
	}
	backend := iptables.Backend(o.iptablesBackend)
	if backend == "auto" {
		backend = iptables.Auto
	}
	var rules []felix.Rules
	for _, family := range []iptables.Family{iptables.IPv4, iptables.IPv6} {
		r, err := iptables.New(iptables.Config{Family: family, Log: log, Backend: backend, Resync: o.resync, Healed: a.healed})
		if err != nil {
			return nil, err
		}
		r.Set(iptables.Raw, iptables.ReversePath(iptables.Prefix))
		a.rules, rules = append(a.rules, reversePath{r}), append(rules, reversePath{r})
	}
	v4, v6, err := o.addressMethods()
	if err != nil {
		return nil, err
	}
	a.links = link.New(link.Config{
		Log: log, Resync: o.resync, ProcSys: o.procSys, IPv4: v4, IPv6: v6, OnChange: a.setAddresses,
		Changed: func(mtu int) { a.overlay.SetMTU(mtu) }, Interfaces: a.data.policies.SetInterfaces,
	})
	if err := a.encapsulation(); err != nil {
		return nil, err
	}
	known, err := knownEndpoints(log, o.procSys, a.ipam.Endpoints())
	if err != nil {
		return nil, err
	}
	if err := a.enforcement(known); err != nil {
		return nil, err
	}
	a.felix = felix.New(felix.Config{Node: o.nodeName, Routes: a.routes, Rules: rules, Policy: a.policy, Outside: a.setOutside, NAT: a.setNAT}, known)

	restarting, err := a.restarting()
	if err != nil {
		return nil, err
	}
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	a.bgp = gobgp.New(gobgp.Config{
		Log: log,
		Start: func(ctx context.Context) (gobgp.Instance, error) {
			return child.Start(ctx, child.Config{
				Exe: exe, Args: []string{"speaker"}, RunDir: o.runDir, UID: o.speakerUID, GID: o.speakerUID,
				AllowWrites: o.allowWrites, TCPAddr: o.gobgpTCP, Log: log,
			})
		},
		Routes:     func(u model.RouteUpdate) { a.routes.Update(model.OwnerBGP, u) },
		Replace:    func(rs []model.Route) { a.routes.Replace(model.OwnerBGP, rs) },
		Synced:     a.bgpSynced,
		Restarting: restarting,
	})

	var addresses server.IPAM = a.ipam
	var plane server.Dataplane = a.felix
	if a.announce != nil {
		plane = telling{a.felix, a.announce.Announce}
	}
	if a.data.clients != nil {
		a.node, err = node.New(node.Config{
			Clients: a.data.clients, Node: o.nodeName, Log: log, Ready: a.carries, Policy: a.policyTrouble, Subnet: a.links.Subnet, IPv4: v4, IPv6: v6,
			Restarted: restarting,
		})
		if err != nil {
			return nil, err
		}
		addresses = announced{a.ipam, a.node.PodEvent}
	}
	socket := filepath.Join(o.runDir, "cni.sock")
	a.cni, err = server.New(server.Config{
		Socket: socket, Log: log, IPAM: addresses, Dataplane: plane, Ready: a.ready,
		MTU: a.podMTU, Workload: a.data.workload, Resync: o.resync, ProcSys: o.procSys,
	})
	if err != nil {
		return nil, err
	}
	if o.cniConfDir != "" {
		a.list = install.NewConflist(o.cniConfDir, socket, a.ready, log)
	}
	a.pulse = newPulse(a.parts(socket))
	return a, nil
}

// encapsulation makes what stands between a route and its tunnel.
func (a *agent) encapsulation() (err error) {
	if a.sets, err = ipset.New(ipset.Config{Log: a.log, Owners: []string{encapguard.Owner, policySets}, Resync: a.o.resync, Healed: a.healed}); err != nil {
		return err
	}
	a.guard, err = encapguard.New(encapguard.Config{Log: a.log, Rules4: a.rules[0], Rules6: a.rules[1], Sets: a.sets})
	if err != nil {
		return err
	}
	a.tunnels = tunnel.New(tunnel.Config{Log: a.log, Resync: a.o.resync, ProcSys: a.o.procSys})
	a.overlay, err = overlay.New(overlay.Config{
		Log: a.log, Node: a.o.nodeName, Routes: a.routes, Devices: a.tunnels,
		Addresses: a.ipam.SetTunnels, Guard: a.setGuard, Guarded: a.guard.Wait,
	})
	return err
}

// parts are what must answer for the agent to be alive.
func (a *agent) parts(socket string) []part {
	answers := func(name string, ask func()) part { return part{name, func() error { ask(); return nil }} }
	ps := []part{
		answers("agent", func() { a.podMTU() }),
		answers("routes", func() { a.routes.Status() }),
		answers("links", func() { a.links.Names() }),
		answers("tunnels", func() { a.tunnels.Status() }),
		answers("overlay", func() { a.overlay.Status() }),
		answers("ipset", func() { a.sets.Status() }),
		answers("policy", func() { a.policy.Status() }),
		answers("bgp", func() { a.bgp.Glance() }),
		answers("ipam", func() { a.ipam.Ready() }),
		{"cni", func() error { return askCNI(socket) }},
	}
	if a.announce != nil {
		ps = append(ps, answers("announce", func() { a.announce.Status() }))
	}
	for _, r := range a.rules {
		ps = append(ps, answers(r.String(), func() { r.Status() }))
	}
	return ps
}

// knownEndpoints are the pods of the journal, and those that the kernel alone still knows
// because the journal was lost.
func knownEndpoints(log *slog.Logger, procSys string, journaled []model.Endpoint) ([]model.Endpoint, error) {
	wirer, err := veth.New(procSys)
	if err != nil {
		return nil, err
	}
	defer wirer.Close()
	links, err := wirer.Owned()
	if err != nil {
		return nil, err
	}
	for _, ep := range journaled {
		delete(links, ep.HostInterface)
	}
	var lost []model.Endpoint
	for name, owner := range links {
		lost = append(lost, model.Endpoint{Key: owner.Key, Network: owner.Network, HostInterface: name})
	}
	orphans, err := felix.Orphans(lost, route.DefaultProtocol)
	if err != nil {
		return nil, err
	}
	for _, ep := range orphans {
		log.Warn("a pod's link stands in the kernel and not in the journal; its routes stay until DEL or GC names it",
			"attachment", ep.Key.String(), "link", ep.HostInterface, "addresses", ep.Addresses)
	}
	return append(journaled, orphans...), nil
}

// stages are what lives as long as the agent, in the order in which it ends: an ADD in flight
// needs routes, rules, addresses and the datastore until it is answered.
func (a *agent) stages() [][]task.Task { return [][]task.Task{{a.cni}, a.tasks()} }

// tasks are those that the CNI server needs, and all the others.
func (a *agent) tasks() []task.Task {
	ts := []task.Task{
		a.routes, a.links, a.sets, a.guard, a.tunnels, a.overlay, a.policy, a.bgp, task.Func("ipam", a.ipam.Run), a.pulse, a.run,
		status.NewServer(status.Config{
			Socket: filepath.Join(a.o.runDir, "agent.sock"), Health: a.o.healthAddress, Metrics: a.o.metricsAddress,
			Read: a.status, Policy: a.policyDetail, Explain: a.explain, Ready: a.ready, Live: a.pulse.live,
		}),
	}
	ts = append(ts, a.data.tasks...)
	if a.node != nil {
		ts = append(ts, a.node, a.announce)
	}
	if a.list != nil {
		ts = append(ts, a.list)
	}
	for _, r := range a.rules {
		ts = append(ts, task.Func(r.String(), func(ctx context.Context) error { return a.runRules(ctx, r.Reconciler) }))
	}
	return ts
}

// runRules runs a reconciler of rules as soon as the datastore has said with which backend;
// until then what an earlier agent left stands. What the command line says goes first.
func (a *agent) runRules(ctx context.Context, r *iptables.Reconciler) error {
	select {
	case <-ctx.Done():
		return nil
	case <-a.told:
	}
	return r.Run(ctx)
}

// restarting reports whether an agent told peers anything since the node started, so that
// they may still hold our routes and the kernel theirs. The run folder does not survive a
// reboot.
func (a *agent) restarting() (bool, error) {
	_, err := os.Stat(a.startedFile())
	switch {
	case err == nil:
		a.marked = true
		return true, nil
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	}
	return false, err
}

func (a *agent) startedFile() string { return filepath.Join(a.o.runDir, "started") }

// remark writes the mark that restarting looks for again, if it stood.
func (a *agent) remark() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.marked {
		return nil
	}
	return os.WriteFile(a.startedFile(), nil, 0o600)
}

// setSnapshot hands a new snapshot to everyone who works from it.
func (a *agent) setSnapshot(snap *model.Snapshot) {
	a.applying.Lock()
	defer a.applying.Unlock()
	a.read = snap
	a.apply()
}

// setAddresses hears that this node's addresses were found, or are others now.
func (a *agent) setAddresses(v4, v6 netip.Prefix) {
	if a.node != nil {
		a.node.SetAddresses(v4, v6)
	}
	a.applying.Lock()
	defer a.applying.Unlock()
	if a.read != nil {
		a.apply()
	}
}

// apply is called with applying held.
func (a *agent) apply() {
	snap := a.links.Locate(a.read, a.o.nodeName)
	a.mu.Lock()
	a.snap = snap
	a.mu.Unlock()
	a.links.SetMTUPattern(snap.Felix.MTULinks)
	a.routes.SetResync(snap.Felix.RoutesResync)
	for _, r := range a.rules {
		r.SetResync(snap.Felix.RulesResync)
	}
	a.routes.SetMetric(model.OwnerBGP, snap.BGP.RoutePriority4, snap.BGP.RoutePriority6)
	a.felix.Set(snap) // before a pod can get an address of a pool that is new
	a.overlay.Set(snap)
	a.ipam.Set(snap)
	if a.announce != nil {
		a.announce.Set(snap)
	}
	a.advertise()
	select {
	case <-a.told:
	default:
		a.forced = a.backendOf(snap)
		for _, r := range a.rules {
			r.Force(a.forced)
		}
		a.usePolicy(snap)
		close(a.told)
	}
}

// backendOf is the backend of iptables that is asked for. The command line goes first, as
// the environment does in Calico.
func (a *agent) backendOf(snap *model.Snapshot) iptables.Backend {
	if a.o.iptablesBackend != "auto" {
		return iptables.Backend(a.o.iptablesBackend)
	}
	return iptables.Backend(snap.Felix.IPTables)
}

// setTunnels hears which addresses this node's tunnels have.
func (a *agent) setTunnels(own [model.Tunnels]netip.Addr) {
	for _, addr := range own {
		if addr.IsValid() {
			a.policy.Taken(addr)
		}
	}
	a.overlay.SetAddrs(own)
	if a.node == nil {
		return // nobody writes the annotations of a manifest
	}
	var ends [model.Tunnels]model.TunnelEnd
	for i, addr := range own {
		if t := model.Tunnel(i); addr.IsValid() {
			ends[t] = tunnel.End(a.o.nodeName, t, addr)
		}
	}
	a.node.SetTunnels(ends)
}

// setOutside hears of pod addresses that no block of ours covers.
func (a *agent) setOutside(addrs []netip.Addr) {
	a.mu.Lock()
	a.outside = addrs
	a.mu.Unlock()
	a.advertise()
}

// setNAT hears what leaves the node under another source. Table nat is first set here, with
// the first snapshot: until then what an earlier agent left in it stays (I4).
func (a *agent) setNAT(v4, v6 model.OutgoingNAT) {
	for i, n := range []model.OutgoingNAT{v4, v6} {
		a.rules[i].Set(iptables.NAT, iptables.NATOutgoing(n))
	}
}

// bgpSynced hears that every known peer has told its routes. Where the configuration is
// unknown some peers are, and what they told an earlier agent proves nothing stale (I4):
// it stays in the kernel for the life of this one.
func (a *agent) bgpSynced() {
	a.mu.Lock()
	a.synced = true
	unknown := a.snap.BGP.Unknown
	a.mu.Unlock()
	if unknown {
		a.log.Warn("the BGP configuration or a password that it names is not known: learned routes of an earlier agent stay until the next start")
		return
	}
	a.routes.InSync(model.OwnerBGP)
}

// advertise tells BGP what this node should say and to whom. Callers come from several
// goroutines; the lock keeps the last state the last one set.
func (a *agent) advertise() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.snap.Revision == 0 || a.bgp == nil {
		return // nothing is known yet, which is not the same as nothing wanted
	}
	speaker, problems := bgp.Desired(bgp.Input{Snapshot: a.snap, Node: a.o.nodeName, Local: a.outside})
	for _, p := range problems {
		if !slices.Contains(a.bgpProblems, p) {
			a.log.Warn("BGP configuration", "problem", p.String())
		}
	}
	a.bgpProblems = problems
	if speaker == nil {
		// A datastore that has lost the Node proves nothing about the pods that run here:
		// the speaker goes on as it was (I3, I4). Before the first there is none.
		return
	}
	a.adverts = nil
	for _, ad := range speaker.Adverts {
		a.adverts = append(a.adverts, ad.Prefix)
	}
	if !a.marked {
		if err := os.WriteFile(a.startedFile(), nil, 0o600); err != nil {
			a.log.Error("the next agent will not know that one ran before it: BGP peers will drop this node's routes until it told them again", "error", err)
		}
		a.marked = true
	}
	a.bgp.Set(speaker)
}

// podMTU is the MTU of new pods, in bytes.
func (a *agent) podMTU() int {
	a.mu.Lock()
	snap := a.snap
	a.mu.Unlock()
	return dataplane.PodMTU(snap, a.links.MTU())
}

// reversePath is one family's rules as far as a pod's start depends on them: trouble with
// other chains is not its business.
type reversePath struct{ *iptables.Reconciler }

// Wait returns when the chain that keeps pods from spoofing is in the kernel.
func (r reversePath) Wait(ctx context.Context) error {
	return r.WaitChains(ctx, iptables.Raw, iptables.ReversePathChain)
}

// now is Wait without waiting.
func (r reversePath) now() error {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return r.Wait(ctx)
}

// ready says why pods cannot be attached on this node, for the plugin's STATUS. A failing
// STATUS turns a Kubernetes node NotReady and takes its running pods out of Services, so
// that only what keeps the node from doing its work at all counts: not a lack of free
// addresses, and not rules that were in force and are contested now.
func (a *agent) ready() error {
	a.mu.Lock()
	snap, started, enforced := a.snap, a.rulesSeen, a.enforced
	a.mu.Unlock()
	if snap.Revision == 0 {
		return fmt.Errorf("datastore %s was not read yet", a.o.datastore)
	}
	if snap.Node(a.o.nodeName) == nil {
		return fmt.Errorf("datastore %s has no Node %q", a.o.datastore, a.o.nodeName)
	}
	if err := a.ipam.Ready(); errors.Is(err, ipam.ErrNotReady) {
		return err
	}
	if !a.routes.Ready() {
		return errors.New("the kernel's routes were not read yet")
	}
	if err := a.links.Ready(); err != nil {
		return err // the MTU of a pod is for life
	}
	if started {
		return nil
	}
	for _, r := range a.rules {
		if err := r.now(); err != nil {
			return fmt.Errorf("%s: %w", r, err)
		}
	}
	if enforced == nil {
		return errors.New("policy has no rules yet")
	}
	if err := enforced(); err != nil {
		return err
	}
	a.mu.Lock()
	a.rulesSeen = true
	a.mu.Unlock()
	return nil
}

// warnings are what keeps ADD from succeeding, or rules from being as they should, on a
// node that is ready all the same.
func (a *agent) warnings() []string {
	var out []string
	if err := a.data.trouble(); err != nil {
		out = append(out, "the datastore does not answer, and what it said last stays in force: "+err.Error())
	}
	if a.list != nil {
		out = append(out, a.list.Warnings()...)
	}
	if err := a.ipam.Ready(); err != nil && !errors.Is(err, ipam.ErrNotReady) {
		out = append(out, "new pods get no address: "+err.Error())
	}
	if err := a.links.Trouble(); err != nil {
		out = append(out, err.Error())
	}
	for _, r := range a.rules {
		if err := r.Status().Err; err != nil {
			out = append(out, fmt.Sprintf("%s: %v", r, err))
		}
	}
	a.mu.Lock()
	snap := a.snap
	a.mu.Unlock()
	select {
	case <-a.told:
		if b := a.backendOf(snap); b != a.forced {
			out = append(out, fmt.Sprintf("FelixConfiguration: iptablesBackend asks for %q now: restart the agent to bring that into force; no flow is lost", cmp.Or(string(b), "auto")))
		}
		if wanted := snap.Felix.NFTables; wanted != a.nftables {
			out = append(out, "FelixConfiguration: nftablesMode asks for another backend now: restart the agent to bring that into force")
		}
	default:
	}
	if err := a.sets.Status().Err; err != nil {
		out = append(out, fmt.Sprintf("%s: %v", a.sets, err))
	}
	if err := a.policyTrouble(); err != nil {
		out = append(out, err.Error())
	}
	if a.announce != nil {
		if err := a.announce.Trouble(); err != nil {
			out = append(out, err.Error())
		}
	}
	if err := a.guard.Err(); err != nil {
		out = append(out, fmt.Sprintf("%s: %v", a.guard, err))
	}
	if e := a.overlay.Status().Error; e != "" {
		out = append(out, fmt.Sprintf("%s: %s", a.overlay, e))
	}
	return out
}
