package main

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/causeway-net/causeway/test/cluster/bench/requests"
)

// goal is the most that ADD may take, as a share of what ptp with host-local takes.
const goal = 0.5

// Latency is the latency of ADD in one way of calling it.
type Latency struct {
	Burst bool // 8 at once, or one every 300 ms
	Known bool // for a pod that the API has, or for a container that is nobody's
	Pairs []Pair
	Agent float64 // of Causeway's figures the agent's own, median, ms
}

// Name tells which way that is.
func (l Latency) Name() string {
	name := "one every 300 ms"
	if l.Burst {
		name = fmt.Sprintf("%d at once", parallel)
	}
	if l.Known {
		return name + ", a pod of the API"
	}
	return name + ", no pod"
}

// gross returns one part of all pairs.
func (l Latency) gross(part func(Pair) []float64) []float64 {
	var out []float64
	for _, p := range l.Pairs {
		out = append(out, part(p)...)
	}
	return out
}

// Cost is what addresses cost the API server.
type Cost struct {
	Name      string
	Addresses int
	Goal      float64 // of writes for an address
	Requests  requests.Cost
}

// Report is all that a run found.
type Report struct {
	Date, Command, Took, Machine, LoadAfter string
	Pairs                                   int
	Latencies                               []Latency
	Costs                                   []Cost
}

// Marks in the document between which results stand.
const (
	beginMark = "<!-- results: written by make bench-cluster -->"
	endMark   = "<!-- end of results of make bench-cluster -->"
)

// Markdown shows the report as tables.
func (r *Report) Markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "`%s` (%s), %s: %s, %s after.\n\n", r.Command, r.Took, r.Date, r.Machine, r.LoadAfter)
	if len(r.Latencies) > 0 {
		fmt.Fprintf(&b, "Latency of CNI ADD, dual stack, %d pairs, ms without the driver's own cost:\n\n", r.Pairs)
		b.WriteString("| ADD | percentile | Causeway | ptp + host-local | ratio | 95 % | goal |\n|---|--:|--:|--:|--:|---|---|\n")
		for _, l := range r.Latencies {
			for _, p := range []float64{50, 90, 99} {
				x := ratioOf(l.Pairs, p)
				fmt.Fprintf(&b, "| %s | %v | %s | %s | **%.2f** | %.2f – %.2f | %s |\n", l.Name(), p, number(x.Causeway), number(x.Peer), x.Value, x.Low, x.High, verdict(x.Value, goal, p == 50))
			}
		}
		b.WriteString("\nWhere the time goes (medians, ms):\n\n| ADD | the whole call of libcni | of it the driver and a plugin that does nothing | of it the agent | the same call of ptp + host-local | ratio with the driver's cost |\n|---|--:|--:|--:|--:|--:|\n")
		for _, l := range r.Latencies {
			ours, peer := percentile(l.gross(func(p Pair) []float64 { return p.Causeway }), 50), percentile(l.gross(func(p Pair) []float64 { return p.Peer }), 50)
			fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %.2f |\n", l.Name(), number(ours), number(percentile(l.gross(func(p Pair) []float64 { return p.Floor }), 50)), number(l.Agent), number(peer), ours/peer)
		}
		b.WriteByte('\n')
	}
	if len(r.Costs) > 0 {
		b.WriteString("Requests of all agents for one address, its ADD, its DEL and all that follows, on four nodes:\n\n" +
			"| ADDs | addresses | writes | reads | claims of blocks | goal |\n|---|--:|--:|--:|--:|---|\n")
		for _, c := range r.Costs {
			writes, reads := float64(c.Requests.Writes)/float64(c.Addresses), float64(c.Requests.Reads)/float64(c.Addresses)
			fmt.Fprintf(&b, "| %s | %d | %.3f | %.3f | %d | writes %s, reads %s |\n", c.Name, c.Addresses, writes, reads, c.Requests.Claims, verdict(writes, c.Goal, true), verdict(reads, 0, true))
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func verdict(value, most float64, there bool) string {
	switch {
	case !there:
		return ""
	case value > most:
		return fmt.Sprintf("≤ %v: **missed**", most)
	}
	return fmt.Sprintf("≤ %v: met", most)
}

// number shows about three digits that count.
func number(x float64) string {
	switch {
	case x >= 100:
		return strconv.FormatFloat(x, 'f', 0, 64)
	case x >= 10:
		return strconv.FormatFloat(x, 'f', 1, 64)
	}
	return strconv.FormatFloat(x, 'f', 2, 64)
}

// writeDocs puts the tables between the marks of a document.
func (r *Report) writeDocs(path string) error {
	old, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	text, err := between(string(old), r.Markdown())
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return os.WriteFile(path, []byte(text), 0o644)
}

// between replaces what stands between the marks of a document.
func between(document, results string) (string, error) {
	head, rest, ok := strings.Cut(document, beginMark)
	_, tail, ok2 := strings.Cut(rest, endMark)
	if !ok || !ok2 {
		return "", fmt.Errorf("want the lines %q and %q, in this order", beginMark, endMark)
	}
	return head + beginMark + "\n\n" + results + endMark + tail, nil
}

// machine says where the figures come from; dir is on the disk that holds journals and
// host-local's records.
func machine(dir string) string {
	disk := "another file system"
	var fs unix.Statfs_t
	if unix.Statfs(dir, &fs) == nil {
		switch int64(fs.Type) {
		case unix.EXT4_SUPER_MAGIC:
			disk = "ext4"
		case unix.XFS_SUPER_MAGIC:
			disk = "xfs"
		case unix.BTRFS_SUPER_MAGIC:
			disk = "btrfs"
		case unix.TMPFS_MAGIC:
			disk = "tmpfs, where fsync costs nothing"
		}
	}
	release := "unknown"
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		release = unix.ByteSliceToString(u.Release[:])
	}
	var kib float64
	fmt.Sscan(field("/proc/meminfo", "MemTotal"), &kib) // zero shows that it is unknown
	return fmt.Sprintf("%s, %d cores, %.0f GiB, Linux %s, %s, records on %s; load %s before", field("/proc/cpuinfo", "model name"),
		runtime.NumCPU(), kib/(1<<20), release, runtime.Version(), disk, load())
}

// load is the load average over a minute.
func load() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	first, _, _ := strings.Cut(string(b), " ")
	return first
}

// field returns the value of the first line "name : value" of a file.
func field(path, name string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return "unknown"
	}
	for line := range strings.Lines(string(b)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return "unknown"
}
