package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/causeway-net/causeway/bgp/gobgp"
	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/ipam"
)

// carries says why this node cannot carry pods' traffic, or nil, for the condition
// NetworkUnavailable: the agent is ready, and the network knows where the node's pods are.
func (a *agent) carries() error {
	if err := a.ready(); err != nil {
		return err
	}
	a.mu.Lock()
	synced := a.synced
	a.mu.Unlock()
	return reachable(a.bgp.Glance(), synced)
}

// reachable decides on BGP's share. synced says that the speaker was in sync with its peers
// once since the agent started: from then on learned routes outlive the speaker.
//
// A node without peers needs none. One whose peers are nodes of the mesh alone is well when
// none of them answers within the speaker's time to get in sync: they may all be down, and
// it may be the one on which the next pods have to run.
func reachable(st gobgp.Status, synced bool) error {
	if !st.Wanted {
		return errors.New("BGP is not configured: the datastore shows no address of this node")
	}
	if len(st.Peers) == 0 {
		return nil
	}
	var away []string
	configured, established := false, 0
	for _, p := range st.Peers {
		if p.State == "Established" {
			established++
			continue
		}
		configured = configured || !p.Mesh
		away = append(away, p.Addr.String())
	}
	switch {
	case !synced:
		return fmt.Errorf("BGP is not in sync with its peers yet: %d of %d sessions are established", established, len(st.Peers))
	case established == 0 && configured:
		return fmt.Errorf("no BGP session is established; peers: %s", strings.Join(away[:min(len(away), 5)], ", "))
	}
	return nil
}

// announced is the ipam that tells the pod's owner when there is no address for it: an event
// on the pod, beside the error that the runtime gets.
type announced struct {
	*ipam.Allocator
	event func(namespace, name, uid, kind, reason, note string)
}

// refusals are the reasons that concern the pod or its pools, and not the agent.
var refusals = []error{ipam.ErrNoPool, ipam.ErrExhausted, ipam.ErrAddressInUse, ipam.ErrNotInPool, ipam.ErrReserved}

// Assign is ipam's.
func (i announced) Assign(ctx context.Context, req model.AddressRequest) (model.Endpoint, error) {
	ep, err := i.Allocator.Assign(ctx, req)
	for _, r := range refusals {
		if errors.Is(err, r) && req.Pod != "" {
			i.event(req.Namespace, req.Pod, req.PodUID, corev1.EventTypeWarning, "FailedAddress", err.Error())
			break
		}
	}
	return ep, err
}
