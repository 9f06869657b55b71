package gobgp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"time"

	api "github.com/osrg/gobgp/v3/api"

	"github.com/causeway-net/causeway/bgp"
)

// apply brings the speaker to the desired state: StartBgp, policies, own paths, peers. It adds
// before it deletes, and one bad object does not block the others.
func (l *life) apply(ctx context.Context, resync bool) error {
	want := l.r.desired()
	switch {
	case want == nil:
		l.finish(outcome{end: endUnwanted})
		return nil
	case l.choreo.global == nil:
		if err := l.startBGP(ctx, want); err != nil {
			// What it has opened half-way cannot be closed again: begin anew.
			l.finish(outcome{endFailed, err})
			return nil
		}
	case !want.SameGlobal(l.choreo.global):
		l.identityChanged = want.ASN != l.choreo.global.ASN || want.RouterID != l.choreo.global.RouterID
		l.finish(outcome{end: endGlobal})
		return nil
	case resync:
		if err := l.observe(ctx); errors.Is(err, errStopped) {
			l.finish(outcome{endFailed, err})
			return nil
		} else if err != nil {
			return l.excused(ctx, err)
		}
	}
	var errs []error
	errs = append(errs, l.applyPolicy(ctx, want), l.hasten(ctx, time.Now()))
	if errs[0] == nil {
		// Without its policy a peer could become a transit: sessions wait for that.
		l.choreo.want = want
		errs = append(errs, l.advertise(ctx, want), l.greet(ctx), l.applyPeers(ctx, want))
	}
	errs = append(errs, l.withdraw(ctx, want))
	err := errors.Join(errs...)
	l.r.mu.Lock()
	l.r.err = err
	l.r.mu.Unlock()
	return l.excused(ctx, err)
}

// excused drops the errors of calls to a speaker that is dead: the death is reported itself.
func (l *life) excused(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	select {
	case <-ctx.Done():
		return nil
	case <-l.inst.Died():
		return nil
	case <-time.After(100 * time.Millisecond):
		return err
	}
}

// call bounds one call to the speaker.
func call[Q, R any](ctx context.Context, f func(context.Context, Q) (R, error), q Q) (R, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return f(ctx, q)
}

// stream is a server-side stream of the GoBGP API.
type stream[T any] interface{ Recv() (T, error) }

// list reads a stream to its end.
func list[T any](s stream[T], err error, f func(T)) error {
	for err == nil {
		var x T
		if x, err = s.Recv(); err == nil {
			f(x)
		}
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func (l *life) startBGP(ctx context.Context, s *bgp.Speaker) error {
	listen := make([]string, len(s.ListenAddrs))
	for i, a := range s.ListenAddrs {
		listen[i] = a.String()
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := l.client.StartBgp(ctx, &api.StartBgpRequest{Global: &api.Global{
		Asn:              s.ASN,
		RouterId:         s.RouterID.String(),
		ListenPort:       int32(s.ListenPort),
		ListenAddresses:  listen,
		UseMultiplePaths: true,
	}})
	if err != nil {
		return fmt.Errorf("StartBgp: AS %d, router id %s, port %d on %v: %w", s.ASN, s.RouterID, s.ListenPort, listen, err)
	}
	l.choreo.global = s
	return nil
}

// observe reads what the speaker really does, so that what someone else changed is mended.
func (l *life) observe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	g, err := l.client.GetBgp(ctx, &api.GetBgpRequest{})
	if err != nil {
		return fmt.Errorf("GetBgp: %w", err)
	}
	if g.Global.GetAsn() != l.choreo.global.ASN || g.Global.GetRouterId() != l.choreo.global.RouterID.String() {
		return errStopped
	}
	return errors.Join(l.observePeers(ctx), l.observePolicy(ctx), l.observePaths(ctx))
}

// observePeers forgets of the applied peers those that the speaker does not have as they were
// applied, and removes those that nobody asked for.
func (l *life) observePeers(ctx context.Context) error {
	found := map[netip.Addr]bool{}
	var errs []error
	var foreign []*api.Peer
	s, err := l.client.ListPeer(ctx, &api.ListPeerRequest{})
	err = list(s, err, func(x *api.ListPeerResponse) {
		a, err := netip.ParseAddr(x.Peer.GetState().GetNeighborAddress())
		if err != nil {
			return
		}
		a = a.Unmap()
		found[a] = true
		p, ok := l.peers[a]
		switch {
		case ok && asApplied(p, x.Peer):
		case l.choreo.gate != nil && a == l.choreo.gate.addr:
		default:
			foreign = append(foreign, x.Peer)
		}
	})
	if err != nil {
		return fmt.Errorf("ListPeer: %w", err)
	}
	for _, p := range foreign {
		a := p.State.NeighborAddress
		l.log.Warn("peer was changed or added behind the agent's back; mending that", "peer", a)
		// Whether it has a password is not told: answers come with passwords blanked.
		errs = append(errs, l.deletePeer(ctx, a, p.GetConf().GetPeerAsn(), true))
		if b, err := netip.ParseAddr(a); err == nil {
			delete(l.peers, b.Unmap())
		}
	}
	for a := range l.peers {
		if !found[a] {
			delete(l.peers, a)
		}
	}
	return errors.Join(errs...)
}

// applyPeers removes what is not wanted, adds what is, and replaces what changed, in turns where
// sessions stand in for each other (stagger.go). Only those sessions bounce.
func (l *life) applyPeers(ctx context.Context, want *bgp.Speaker) error {
	now := time.Now()
	wanted := make(map[netip.Addr]bgp.Peer, len(want.Peers))
	for _, p := range want.Peers {
		wanted[p.Addr] = p
	}
	failures := map[netip.Addr]error{}
	var errs []error
	var out, waiting []netip.Addr
	for _, a := range sortedAddrs(l.peers) {
		have := l.peers[a]
		p, ok := wanted[a]
		switch {
		case ok && sameSession(have, p):
			l.peers[a] = p
		case ok && l.inTurn(have, p):
			waiting = append(waiting, a)
		default:
			out = append(out, a)
		}
	}
	due, turn := l.turns(waiting, now)
	for _, a := range append(out, due...) {
		have := l.peers[a]
		_, ok := wanted[a]
		if err := l.deletePeer(ctx, a.String(), have.ASN, have.Password != ""); err != nil {
			errs = append(errs, fmt.Errorf("peer %s: delete: %w", a, err))
			delete(l.replacing, a)
			continue
		}
		delete(l.peers, a)
		l.forgetSession(a)
		l.log.Info("peer removed", "peer", a.String(), "replaced", ok)
	}
	add, next, err := l.choreograph(ctx, now, want)
	errs = append(errs, err)
	for _, p := range add {
		if err := l.addPeer(ctx, p, now); err != nil {
			failures[p.Addr] = err
			errs = append(errs, fmt.Errorf("peer %s: %w", p.Addr, err))
		}
	}
	l.mu.Lock()
	l.failures = failures
	l.mu.Unlock()
	next = earliest(next, turn)
	if len(add) > 0 {
		l.r.changed()
		next = now // what follows an addition is decided in another round
	}
	if !next.IsZero() {
		l.wake.Reset(max(time.Until(next), time.Millisecond))
	}
	return errors.Join(errs...)
}

func (l *life) forgetSession(a netip.Addr) {
	l.mu.Lock()
	delete(l.sessions, a)
	l.mu.Unlock()
}

func (l *life) addPeer(ctx context.Context, p bgp.Peer, now time.Time) error {
	l.r.mu.Lock()
	restarting := l.r.restartingFor(p, now)
	l.r.suspects.admit(p.Addr, now)
	l.r.mu.Unlock()
	if _, err := call(ctx, func(ctx context.Context, q *api.AddPeerRequest) (any, error) {
		return l.client.AddPeer(ctx, q)
	}, &api.AddPeerRequest{Peer: apiPeer(p, restarting)}); err != nil {
		return fmt.Errorf("AddPeer: %w", err)
	}
	l.peers[p.Addr] = p
	l.returning[p.Addr] = restarting
	l.log.Info("peer added", "peer", p.Addr.String(), "asn", p.ASN, "resource", p.Resource, "restarting", restarting)
	return nil
}

// deletePeer removes a peer. Where it may have had a password, it is first replaced by one
// without: DeletePeer alone leaves the key with the listener, and the peer could not come back
// without a password.
func (l *life) deletePeer(ctx context.Context, addr string, asn uint32, password bool) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if password {
		if _, err := l.client.UpdatePeer(ctx, &api.UpdatePeerRequest{Peer: &api.Peer{
			Conf:      &api.PeerConf{NeighborAddress: addr, PeerAsn: asn, AdminDown: true},
			Transport: &api.Transport{PassiveMode: true},
		}}); err != nil {
			return fmt.Errorf("UpdatePeer: %w", err)
		}
	}
	if _, err := l.client.DeletePeer(ctx, &api.DeletePeerRequest{Address: addr}); err != nil {
		return fmt.Errorf("DeletePeer: %w", err)
	}
	return nil
}

// advertise adds the wanted own paths that are missing or differ.
func (l *life) advertise(ctx context.Context, want *bgp.Speaker) error {
	var errs []error
	for _, a := range want.Adverts {
		if have, ok := l.adverts[a.Prefix]; ok && have.Equal(a) {
			continue
		}
		path, err := localPath(a)
		if err == nil {
			err = l.addPath(ctx, path)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("advert %s: %w", a.Prefix, err))
			continue
		}
		l.adverts[a.Prefix] = a
	}
	return errors.Join(errs...)
}

func (l *life) addPath(ctx context.Context, path *api.Path) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if _, err := l.client.AddPath(ctx, &api.AddPathRequest{TableType: api.TableType_GLOBAL, Path: path}); err != nil {
		return fmt.Errorf("AddPath: %w", err)
	}
	return nil
}

// withdraw deletes the own paths that are not wanted any more.
func (l *life) withdraw(ctx context.Context, want *bgp.Speaker) error {
	wanted := make(map[netip.Prefix]bool, len(want.Adverts))
	for _, a := range want.Adverts {
		wanted[a.Prefix] = true
	}
	var errs []error
	for _, p := range slices.SortedFunc(maps.Keys(l.adverts), bgp.ComparePrefix) {
		if wanted[p] {
			continue
		}
		if err := l.deletePath(ctx, p); err != nil {
			errs = append(errs, fmt.Errorf("advert %s: %w", p, err))
			continue
		}
		delete(l.adverts, p)
	}
	return errors.Join(errs...)
}

func (l *life) deletePath(ctx context.Context, p netip.Prefix) error {
	path, err := localPath(bgp.Advert{Prefix: p})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if _, err := l.client.DeletePath(ctx, &api.DeletePathRequest{TableType: api.TableType_GLOBAL, Family: path.Family, Path: path}); err != nil {
		return fmt.Errorf("DeletePath: %w", err)
	}
	return nil
}

// observePaths forgets of the applied adverts those that the speaker does not have as they were
// applied, and deletes own paths that nobody asked for. Only our own prefixes are looked up:
// the whole table can be large. Foreign own paths show themselves in the events.
func (l *life) observePaths(ctx context.Context) error {
	have := map[netip.Prefix]bgp.Advert{}
	for _, v6 := range []bool{false, true} {
		var lookups []*api.TableLookupPrefix
		for p := range l.adverts {
			if p.Addr().Is6() == v6 {
				lookups = append(lookups, &api.TableLookupPrefix{Prefix: p.String()})
			}
		}
		if len(lookups) == 0 {
			continue
		}
		s, err := l.client.ListPath(ctx, &api.ListPathRequest{TableType: api.TableType_GLOBAL, Family: familyOf(v6), Prefixes: lookups})
		err = list(s, err, func(x *api.ListPathResponse) {
			for _, path := range x.Destination.GetPaths() {
				if p, ok := prefixOf(path); ok && isLocal(path) {
					have[p] = bgp.Advert{Prefix: p, Communities: communitiesOf(path)}
				}
			}
		})
		if err != nil {
			return fmt.Errorf("ListPath: %w", err)
		}
	}
	for p, a := range l.adverts {
		if h, ok := have[p]; !ok || !h.Equal(a) {
			l.log.Warn("own path was changed or deleted behind the agent's back; mending that", "prefix", p.String())
			delete(l.adverts, p)
		}
	}
	var errs []error
	l.mu.Lock()
	locals := slices.Collect(maps.Keys(l.locals))
	l.mu.Unlock()
	for _, p := range locals {
		if _, ours := l.adverts[p]; !ours && !have[p].Prefix.IsValid() {
			l.log.Warn("a path was put into the speaker behind the agent's back; deleting it", "prefix", p.String())
			if err := l.deletePath(ctx, p); err != nil {
				errs = append(errs, fmt.Errorf("path %s: %w", p, err))
			}
		}
	}
	return errors.Join(errs...)
}
