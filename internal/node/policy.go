package node

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// The reasons of events about policy.
const (
	ReasonPolicyFailing  = "PolicyNotEnforced"
	ReasonPolicyEnforced = "PolicyEnforced"
)

const (
	complainAfter = 30 * time.Second // of trouble on end: what is tried again may be well then
	repeatAfter   = 30 * time.Minute // API servers forget events after an hour
)

// grievance decides when to say that policy is not enforced as it should be. It has no clock of
// its own.
type grievance struct {
	since  time.Time // of the trouble on end; zero: there is none
	saidAt time.Time // zero: it was not said
}

// decide returns the event to send; an empty reason: none.
func (g *grievance) decide(now time.Time, why error) (kind, reason, note string) {
	switch {
	case why == nil:
		said := !g.saidAt.IsZero()
		*g = grievance{}
		if said {
			return corev1.EventTypeNormal, ReasonPolicyEnforced, "Policy is enforced as it should be again"
		}
		return "", "", ""
	case g.since.IsZero():
		g.since = now
	}
	if now.Sub(g.since) < complainAfter || !g.saidAt.IsZero() && now.Sub(g.saidAt) < repeatAfter {
		return "", "", ""
	}
	g.saidAt = now
	return corev1.EventTypeWarning, ReasonPolicyFailing, fmt.Sprintf("Policy is not enforced as it should be: %v. What was in force stays; new pods may not start.", why)
}

// complain says what is wrong with policy on this node.
func (r *Reporter) complain(now time.Time) {
	if r.cfg.Policy == nil {
		return
	}
	if kind, reason, note := r.grievance.decide(now, r.cfg.Policy()); reason != "" {
		r.nodeEvent(kind, reason, "EnforcePolicy", note)
	}
}
