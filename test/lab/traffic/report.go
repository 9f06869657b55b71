package traffic

import (
	"fmt"
	"strings"
	"time"
)

// Millis is a duration that JSON shows in milliseconds.
type Millis time.Duration

// MarshalJSON writes milliseconds with three decimals.
func (m Millis) MarshalJSON() ([]byte, error) {
	return fmt.Appendf(nil, "%.3f", float64(m)/float64(time.Millisecond)), nil
}

func (m Millis) String() string { return time.Duration(m).Round(10 * time.Microsecond).String() }

// Report says what became of a stream. Times count from its first packet.
type Report struct {
	From       string         `json:"from"`
	To         string         `json:"to"`
	Target     string         `json:"target"`
	Duration   Millis         `json:"duration_ms"`
	Sent       int            `json:"sent"`
	Received   int            `json:"received"` // each packet once
	Lost       int            `json:"lost"`
	Duplicates int            `json:"duplicates"`
	Reordered  int            `json:"reordered"`
	SendErrors map[string]int `json:"send_errors,omitempty"` // such packets count as sent and lost
	// LongestGap is the longest time without an arrival in any flow, by the kernel's
	// receive time stamps. It holds the sender's own stalls, too.
	LongestGap Millis `json:"longest_gap_ms"`
	// LongestOutage is the longest Outage of any flow.
	LongestOutage Millis       `json:"longest_outage_ms"`
	Flows         []FlowReport `json:"flows"`
}

// FlowReport is one flow's part.
type FlowReport struct {
	Flow          int         `json:"flow"`
	SourcePort    int         `json:"source_port"`
	Sent          int         `json:"sent"`
	Received      int         `json:"received"`
	Lost          int         `json:"lost"`
	Duplicates    int         `json:"duplicates"`
	Reordered     int         `json:"reordered"`
	LongestGap    Millis      `json:"longest_gap_ms"`
	LongestOutage Millis      `json:"longest_outage_ms"`
	LostRanges    []LostRange `json:"lost_ranges,omitempty"`
}

// LostRange is a run of packets that never arrived.
type LostRange struct {
	First int `json:"first"` // sequence numbers
	Last  int `json:"last"`
	// At is when the first of them was sent.
	At Millis `json:"at_ms"`
	// Outage is the time from then until the next packet that did arrive was sent (or
	// the stream ended): how long the path was broken, whatever the receiver's pace.
	Outage Millis `json:"outage_ms"`
}

func (s *Stream) report(took time.Duration, ports []int) *Report {
	r := &Report{From: s.cfg.From.String(), To: s.cfg.To.String(), Target: s.cfg.Target.String(), Duration: Millis(took), SendErrors: s.sendErrors}
	for i := range s.flows {
		fr := s.flows[i].report(took)
		fr.Flow, fr.SourcePort = i, ports[i]
		r.Sent += fr.Sent
		r.Received += fr.Received
		r.Lost += fr.Lost
		r.Duplicates += fr.Duplicates
		r.Reordered += fr.Reordered
		r.LongestGap = max(r.LongestGap, fr.LongestGap)
		r.LongestOutage = max(r.LongestOutage, fr.LongestOutage)
		r.Flows = append(r.Flows, fr)
	}
	return r
}

func (f *flow) report(end time.Duration) FlowReport {
	r := FlowReport{Sent: len(f.sentAt), Received: f.received, Duplicates: f.twice, Reordered: f.late, LongestGap: Millis(f.gap)}
	r.Lost = r.Sent - r.Received
	here := func(seq int) bool { return seq < len(f.arrived) && f.arrived[seq] }
	for seq := 0; seq < r.Sent; seq++ {
		if here(seq) {
			continue
		}
		lost := LostRange{First: seq, At: Millis(f.sentAt[seq])}
		for seq < r.Sent && !here(seq) {
			seq++
		}
		lost.Last = seq - 1
		until := max(end, f.sentAt[r.Sent-1])
		if seq < r.Sent {
			until = f.sentAt[seq]
		}
		lost.Outage = Millis(until) - lost.At
		r.LongestOutage = max(r.LongestOutage, lost.Outage)
		r.LostRanges = append(r.LostRanges, lost)
	}
	return r
}

// String is one line for people, and a line for each flow that lost something.
func (r *Report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s -> %s (%s): %d flows, %d sent, %d lost, %d twice, %d out of order, longest gap %s, longest outage %s",
		r.From, r.To, r.Target, len(r.Flows), r.Sent, r.Lost, r.Duplicates, r.Reordered, r.LongestGap, r.LongestOutage)
	for _, f := range r.Flows {
		for _, l := range f.LostRanges {
			fmt.Fprintf(&b, "\n  flow %d (port %d): lost %d-%d, sent at %s, outage %s", f.Flow, f.SourcePort, l.First, l.Last, l.At, l.Outage)
		}
	}
	for e, n := range r.SendErrors {
		fmt.Fprintf(&b, "\n  %d times: %s", n, e)
	}
	return b.String()
}
