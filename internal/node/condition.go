package node

import (
	"time"

	corev1 "k8s.io/api/core/v1"
)

// The reasons of the condition NetworkUnavailable.
const (
	ReasonUp   = "CausewayIsUp"
	ReasonDown = "CausewayIsDown"
)

const (
	rewordAfter  = 30 * time.Second // between writes that change the message alone
	contestAfter = 5 * time.Second  // before somebody else's word is overwritten, doubling up to contestMost
	contestMost  = 5 * time.Minute
)

// verdict is what the condition should say.
type verdict struct {
	status          corev1.ConditionStatus
	reason, message string
}

var up = verdict{corev1.ConditionFalse, ReasonUp, "Causeway carries this node's traffic"}

// health decides on the condition NetworkUnavailable. It has no clock of its own.
//
// True keeps new pods from the node and disturbs no running one. So a node that starts for
// the first time is True until it can carry traffic, and one that could stays False through
// a restart of the agent and through troubles shorter than grace.
type health struct {
	grace     time.Duration
	restarted bool // an agent ran here since the node booted

	begun     bool // decide was called
	good      bool // the node could carry traffic before
	downSince time.Time
	said      *verdict // what was decided last; nil: nothing yet

	wroteAt time.Time
	losses  int // how often in a row somebody else overwrote what was said
}

// decide returns what to write, or nil, and whether that overwrites what somebody else said
// instead of us.
func (h *health) decide(now time.Time, why error, have *corev1.NodeCondition) (want *verdict, contested bool) {
	if !h.begun {
		h.begun = true
		h.good = h.restarted && have != nil && have.Status == up.status && have.Reason == up.reason
	}
	switch {
	case why == nil:
		h.good, h.downSince, h.said = true, time.Time{}, &up
	default:
		if h.downSince.IsZero() {
			h.downSince = now
		}
		if !h.good || now.Sub(h.downSince) >= h.grace {
			h.good = false
			h.said = &verdict{corev1.ConditionTrue, ReasonDown, why.Error()}
		}
	}
	if h.said == nil {
		return nil, false // it stays what the agent before us said
	}
	switch {
	case have == nil:
		return h.said, false
	case have.Status == h.said.status && have.Reason == h.said.reason && have.Message == h.said.message:
		if now.Sub(h.wroteAt) > contestMost {
			h.losses = 0
		}
		return nil, false
	case have.Reason != ReasonUp && have.Reason != ReasonDown && !h.wroteAt.IsZero():
		wait := min(contestAfter<<min(h.losses, 10), contestMost)
		if now.Sub(h.wroteAt) < wait {
			return nil, false
		}
		return h.said, true
	case have.Status == h.said.status && have.Reason == h.said.reason && now.Sub(h.wroteAt) < rewordAfter:
		return nil, false
	}
	return h.said, false
}

// wrote notes that what decide returned is in the API.
func (h *health) wrote(now time.Time, contested bool) {
	h.wroteAt = now
	if contested {
		h.losses++
	}
}

// condition returns the Node's NetworkUnavailable, or nil.
func condition(n *corev1.Node) *corev1.NodeCondition {
	for i := range n.Status.Conditions {
		if n.Status.Conditions[i].Type == corev1.NodeNetworkUnavailable {
			return &n.Status.Conditions[i]
		}
	}
	return nil
}
