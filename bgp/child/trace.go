package child

import (
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

// PeerLabel is the goroutine label (runtime/pprof) under which the child names the peer whose
// message a goroutine works on.
const PeerLabel = "peer"

// maxTrace bounds what is kept of a crash report, in bytes. The panic and the goroutine that
// died come first.
const maxTrace = 16 << 10

var (
	labelRE = regexp.MustCompile(`"?` + PeerLabel + `"?: "?([^",}\]\s]+)`)
	// sentRE matches the report of a signal that a process sent: si_code SI_USER or SI_TKILL.
	sentRE = regexp.MustCompile(`(?m)^PC=\S+ m=\S+ sigcode=(0|-6)\b`)
)

// report is what a Go crash report says.
type report struct {
	headline string     // "panic: ...", "fatal error: ..."
	peer     netip.Addr // the label of the goroutine that died
	peers    bool       // that goroutine worked on bytes from some peer
	sent     bool       // not a crash: a signal that somebody sent, as SIGQUIT
}

// parseReport reads a crash report; the goroutine that died is the first one in it.
func parseReport(text string) report {
	var r report
	r.sent = sentRE.MatchString(text)
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "panic: ") || strings.HasPrefix(line, "fatal error: ") || (r.headline == "" && strings.HasPrefix(line, "SIG")) {
			r.headline = line
			break
		}
	}
	_, rest, ok := strings.Cut("\n"+text, "\ngoroutine ")
	if !ok {
		return r
	}
	header, stack, _ := strings.Cut(rest, "\n")
	stack, _, _ = strings.Cut(stack, "\n\n")
	if m := labelRE.FindStringSubmatch(header); m != nil {
		r.peer, _ = netip.ParseAddr(m[1])
	}
	r.peers = r.peer.IsValid() || slices.ContainsFunc([]string{
		"server.(*fsmHandler).", "server.(*BgpServer).handleFSMMessage(",
	}, func(s string) bool { return strings.Contains(stack, s) })
	return r
}

// rank turns connections into the peers of one process, the one that spoke last first. One peer
// can hold two connections while a collision is resolved: its younger word counts.
func rank(all []connection, inodes map[uint32]bool, uid uint32, except netip.AddrPort) []Heard {
	var out []Heard
	for _, c := range all {
		switch {
		case inodes != nil && !inodes[c.inode], inodes == nil && c.uid != uid:
			continue
		case except.IsValid() && c.local == except:
			continue
		}
		h := Heard{Addr: c.remote.Addr(), Ago: c.lastRecv}
		if i := slices.IndexFunc(out, func(o Heard) bool { return o.Addr == h.Addr }); i >= 0 {
			out[i].Ago = min(out[i].Ago, h.Ago)
			continue
		}
		out = append(out, h)
	}
	slices.SortStableFunc(out, func(a, b Heard) int { return int(a.Ago - b.Ago) })
	return out
}

// accuse weighs the two witnesses. A label is exact. Without one, a goroutine that worked on
// some peer's bytes died of those that came last. A goroutine that did neither, as one that
// answered a gRPC call, accuses nobody.
func accuse(r report, heard []Heard) (netip.Addr, []Heard) {
	switch {
	case r.sent || !r.peers:
		return netip.Addr{}, nil
	case r.peer.IsValid():
		i := slices.IndexFunc(heard, func(h Heard) bool { return h.Addr == r.peer })
		first := Heard{Addr: r.peer}
		if i >= 0 {
			first = heard[i]
			heard = slices.Delete(slices.Clone(heard), i, i+1)
		}
		return r.peer, append([]Heard{first}, heard...)
	case len(heard) == 0:
		return netip.Addr{}, nil
	}
	return heard[0].Addr, heard
}
