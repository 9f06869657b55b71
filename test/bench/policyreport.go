package main

import (
	"fmt"
	"strings"
)

// PolicyChange is what one change in the cluster costs a node, until its kernel judges packets
// by it.
type PolicyChange struct {
	Backend string `json:"backend"`
	Pods    int    `json:"pods"` // in the cluster
	Change  string `json:"change"`
	Times   int    `json:"times"` // it was made, half of them forbid
	// P50 and P99 are from the request to the API server to the first packet that is judged
	// anew, ms. Request is of it what the API server takes to answer, in the middle.
	P50     float64 `json:"p50"`
	P99     float64 `json:"p99"`
	Request float64 `json:"request"`
	// CPU is the processor time of the agent and of what it executes, ms; Bytes what they hand
	// to the kernel, 0: not measured.
	CPU   float64 `json:"cpu"`
	Bytes int     `json:"bytes,omitempty"`
	// GrowthTime and GrowthCPU are P50 and CPU against those of the smaller cluster; 0: this is it.
	GrowthTime float64 `json:"growthTime,omitempty"`
	GrowthCPU  float64 `json:"growthCPU,omitempty"`
	Goal       float64 `json:"goal"` // of P99, ms

	Each []float64 `json:"each"` // what P50 and P99 are of, in the order in which it happened
}

// changesTable shows the changes.
func changesTable(rows []PolicyChange) string {
	var b strings.Builder
	b.WriteString("One change of policy's objects, until the first packet is judged anew (ms; " +
		"growth is against the row with fewer pods):\n\n" +
		"| backend | pods | change | p50 | p99 | goal of p99 | of p50 the API server | agent's processor time | bytes to the kernel | growth of p50 | growth of processor time |\n" +
		"|---|--:|---|--:|--:|---|--:|--:|--:|--:|--:|\n")
	ratio := func(x float64) string {
		if x == 0 {
			return ""
		}
		return number(x)
	}
	for _, r := range rows {
		bytes := ""
		if r.Bytes > 0 {
			bytes = fmt.Sprint(r.Bytes)
		}
		fmt.Fprintf(&b, "| %s | %d | %s | %s | **%s** | %s | %s | %s | %s | %s | %s |\n", r.Backend, r.Pods, r.Change, number(r.P50), number(r.P99),
			verdict(r.P99, r.Goal, ""), number(r.Request), number(r.CPU), bytes, ratio(r.GrowthTime), ratio(r.GrowthCPU))
	}
	b.WriteByte('\n')
	return b.String()
}
