// Package policy owns what policies mean for this node: endpoints, namespaces, network
// sets, services, tiers and policies go in; the rules and sets that a packet filter needs for
// the local endpoints come out, as a Delta each time. It is pure and incremental: it
// knows no kernel, no clock and no goroutine, and a change costs what it touches (I8).
package policy
