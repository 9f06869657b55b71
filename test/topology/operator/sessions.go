package operator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/internal/status"
	"github.com/causeway-net/causeway/test/lab"
	"github.com/causeway-net/causeway/test/topology/fabric"
	"github.com/causeway-net/causeway/test/topology/scenario"
)

// Status asks the agent of a node and fails the test when it does not answer.
func Status(t *testing.T, n *lab.Node) status.Status {
	t.Helper()
	st, err := fabric.Status(scenario.Context(t, 30*time.Second), n)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// Await waits until done accepts what the agent of n says, and returns that.
func Await(t *testing.T, within time.Duration, n *lab.Node, what string, done func(status.Status) error) status.Status {
	t.Helper()
	ctx := scenario.Context(t, within+time.Minute)
	var st status.Status
	scenario.Eventually(t, within, n.Name()+": "+what, func() (err error) {
		if st, err = fabric.Status(ctx, n); err != nil {
			return err
		}
		return done(st)
	})
	return st
}

// Peer returns the session with that address.
func Peer(st status.Status, a netip.Addr) (status.Peer, error) {
	i := slices.IndexFunc(st.Peers, func(p status.Peer) bool { return p.Address == a })
	if i < 0 {
		return status.Peer{}, fmt.Errorf("%s has no peer %s", st.Node, a)
	}
	return st.Peers[i], nil
}

// Established returns nil when exactly these sessions exist and all are up.
func Established(st status.Status, peers ...netip.Addr) error {
	var have []netip.Addr
	for _, p := range st.Peers {
		have = append(have, p.Address)
		if p.State != "Established" {
			return fmt.Errorf("%s: session with %s is %s %s", st.Node, p.Address, p.State, p.Error)
		}
	}
	slices.SortFunc(have, netip.Addr.Compare)
	peers = slices.Clone(peers)
	slices.SortFunc(peers, netip.Addr.Compare)
	if !slices.Equal(have, peers) {
		return fmt.Errorf("%s has sessions with %v, want %v", st.Node, have, peers)
	}
	return nil
}

// Since tells for each Established session of a node since when it is.
type Since map[netip.Addr]time.Time

// SinceOf reads it.
func SinceOf(st status.Status) Since {
	s := Since{}
	for _, p := range st.Peers {
		if p.State == "Established" {
			s[p.Address] = p.Since
		}
	}
	return s
}

// Undisturbed fails the test unless the sessions of s, save those of but, are the ones
// they were.
func (s Since) Undisturbed(t *testing.T, st status.Status, but ...netip.Addr) {
	t.Helper()
	now := SinceOf(st)
	for _, a := range slices.SortedFunc(maps.Keys(s), netip.Addr.Compare) {
		if !slices.Contains(but, a) && !now[a].Equal(s[a]) {
			t.Errorf("%s: the session with %s was up since %s and is since %s", st.Node, a, s[a].Format(time.RFC3339Nano), now[a].Format(time.RFC3339Nano))
		}
	}
}

// Anew returns nil when every session of s ended after it was read and is up again.
func (s Since) Anew(st status.Status) error {
	now := SinceOf(st)
	for a, was := range s {
		if at, up := now[a]; !up || !at.After(was) {
			return fmt.Errorf("%s: the session with %s is the one that is up since %s", st.Node, a, was)
		}
	}
	return nil
}

// Problem returns nil when the agent reports a problem whose text, as causewayctl prints
// it, holds all of words.
func Problem(st status.Status, words ...string) error {
	for _, p := range st.Problems {
		if has(p.String(), words) {
			return nil
		}
	}
	return fmt.Errorf("%s: no problem speaks of %q: %v", st.Node, words, st.Problems)
}

// NoProblems returns nil when every object of the datastore is in force.
func NoProblems(st status.Status) error {
	if i := slices.IndexFunc(st.Problems, func(p model.Problem) bool { return !p.Ignored }); i >= 0 {
		return errors.New(st.Problems[i].String())
	}
	return nil
}

func has(s string, words []string) bool {
	for _, w := range words {
		if !strings.Contains(s, w) {
			return false
		}
	}
	return true
}

// GoBGP runs Debian's gobgp against the node's speaker.
func GoBGP(ctx context.Context, n *lab.Node, args ...string) (string, error) {
	return n.Exec(ctx, append([]string{"gobgp", "--target", "unix:///run/causeway/gobgp.sock"}, args...)...)
}

// Families returns what a session carries, as both ends announced it: "ipv4", "ipv6".
func Families(ctx context.Context, n *lab.Node, peer netip.Addr) ([]string, error) {
	out, err := GoBGP(ctx, n, "neighbor", peer.String(), "-j")
	if err != nil {
		return nil, err
	}
	type capability struct {
		Type  string `json:"type_url"`
		Value []byte `json:"value"`
	}
	var v struct {
		State struct {
			Remote []capability `json:"remote_cap"`
			Local  []capability `json:"local_cap"`
		} `json:"state"`
	}
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		return nil, fmt.Errorf("gobgp neighbor %s -j: %w", peer, err)
	}
	// MultiProtocolCapability is a message with one field, the Family {afi, safi}.
	afi := map[string]string{"\n\x04\x08\x01\x10\x01": "ipv4", "\n\x04\x08\x02\x10\x01": "ipv6"}
	families := func(cs []capability) (out []string) {
		for _, c := range cs {
			if strings.HasSuffix(c.Type, ".MultiProtocolCapability") {
				name := afi[string(c.Value)]
				if name == "" {
					name = fmt.Sprintf("%x", c.Value)
				}
				out = append(out, name)
			}
		}
		slices.Sort(out)
		return out
	}
	local, remote := families(v.State.Local), families(v.State.Remote)
	if !slices.Equal(local, remote) {
		return nil, fmt.Errorf("session with %s: we announce %v, the peer %v", peer, local, remote)
	}
	return local, nil
}

// Path is one path of the speaker's table.
type Path struct {
	NextHop     netip.Addr
	Neighbor    netip.Addr // zero: the node's own
	Best        bool
	Stale       bool
	AS          []uint32
	Originator  netip.Addr   // ORIGINATOR_ID (RFC 4456)
	ClusterList []netip.Addr // CLUSTER_LIST (RFC 4456)
	Communities int          // of all kinds
}

// RIB returns the speaker's paths of one family by prefix.
func RIB(ctx context.Context, n *lab.Node, v6 bool) (map[netip.Prefix][]Path, error) {
	family := "ipv4"
	if v6 {
		family = "ipv6"
	}
	out, err := GoBGP(ctx, n, "global", "rib", "-a", family, "-j")
	if err != nil {
		return nil, err
	}
	return parseRIB(out)
}

func parseRIB(text string) (map[netip.Prefix][]Path, error) {
	var v map[netip.Prefix][]struct {
		Best     bool       `json:"best"`
		Stale    bool       `json:"stale"`
		Neighbor netip.Addr `json:"neighbor-ip"`
		Attrs    []struct {
			Type  int             `json:"type"`
			Value json.RawMessage `json:"value"`
			// The attributes that do not call it value.
			NextHop netip.Addr `json:"nexthop"`
			ASPaths []struct {
				ASNs []uint32 `json:"asns"`
			} `json:"as_paths"`
			Communities json.RawMessage `json:"communities"`
		} `json:"attrs"`
	}
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		return nil, fmt.Errorf("gobgp global rib -j: %w: %s", err, text)
	}
	out := map[netip.Prefix][]Path{}
	for prefix, paths := range v {
		for _, p := range paths {
			path := Path{Best: p.Best, Stale: p.Stale, Neighbor: p.Neighbor}
			for _, a := range p.Attrs {
				var err error
				switch a.Type {
				case 2: // AS_PATH
					for _, s := range a.ASPaths {
						path.AS = append(path.AS, s.ASNs...)
					}
				case 3, 14: // NEXT_HOP, MP_REACH_NLRI
					path.NextHop = a.NextHop
				case 8, 16, 32: // COMMUNITIES, EXTENDED and LARGE
					path.Communities++
				case 9: // ORIGINATOR_ID
					err = json.Unmarshal(a.Value, &path.Originator)
				case 10: // CLUSTER_LIST
					err = json.Unmarshal(a.Value, &path.ClusterList)
				}
				if err != nil {
					return nil, fmt.Errorf("gobgp global rib -j: %s: attribute %d: %w", prefix, a.Type, err)
				}
			}
			out[prefix] = append(out[prefix], path)
		}
	}
	return out, nil
}
