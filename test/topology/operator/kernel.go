package operator

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/causeway-net/causeway/internal/status"
	"github.com/causeway-net/causeway/test/lab"
)

// Protocol is the kernel's name for routes of Causeway, as ip(8) shows it.
const Protocol = "82"

// Route is a route of the main table.
type Route struct {
	Prefix   netip.Prefix
	Type     string // "unicast", "blackhole"
	Gateways []netip.Addr
	Device   string // of the first next hop
	Protocol string
	Metric   int
	text     string
}

func (r Route) String() string { return r.text }

// Ours reports whether Causeway made the route.
func (r Route) Ours() bool { return r.Protocol == Protocol }

// Routes is a node's main table of one family.
type Routes []Route

// RoutesOf reads it.
func RoutesOf(ctx context.Context, n *lab.Node, v6 bool) (Routes, error) {
	family := "-4"
	if v6 {
		family = "-6"
	}
	out, err := n.Exec(ctx, "ip", "-d", "-j", family, "route", "show", "table", "main")
	if err != nil {
		return nil, err
	}
	return parseRoutes(out, v6)
}

func parseRoutes(text string, v6 bool) (Routes, error) {
	type hop struct {
		Gateway netip.Addr `json:"gateway"`
		Via     *struct {
			Host netip.Addr `json:"host"`
		} `json:"via"`
		Device string `json:"dev"`
	}
	var raw []json.RawMessage
	if err := json.Unmarshal([]byte(text), &raw); err != nil {
		return nil, fmt.Errorf("ip -j route: %w", err)
	}
	var out Routes
	for _, r := range raw {
		var v struct {
			Type     string `json:"type"`
			Dst      string `json:"dst"`
			Protocol string `json:"protocol"`
			Metric   int    `json:"metric"`
			hop
			NextHops []hop `json:"nexthops"`
		}
		if err := json.Unmarshal(r, &v); err != nil {
			return nil, fmt.Errorf("ip -j route: %w: %s", err, r)
		}
		route := Route{Type: v.Type, Protocol: v.Protocol, Metric: v.Metric, Device: v.Device, text: string(r)}
		switch {
		case v.Dst == "default" && v6:
			route.Prefix = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		case v.Dst == "default":
			route.Prefix = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		case strings.Contains(v.Dst, "/"):
			p, err := netip.ParsePrefix(v.Dst)
			if err != nil {
				return nil, err
			}
			route.Prefix = p
		default:
			a, err := netip.ParseAddr(v.Dst)
			if err != nil {
				return nil, err
			}
			route.Prefix = netip.PrefixFrom(a, a.BitLen())
		}
		for _, h := range append([]hop{v.hop}, v.NextHops...) {
			switch {
			case h.Via != nil:
				route.Gateways = append(route.Gateways, h.Via.Host)
			case h.Gateway.IsValid():
				route.Gateways = append(route.Gateways, h.Gateway)
			}
			if route.Device == "" {
				route.Device = h.Device
			}
		}
		slices.SortFunc(route.Gateways, netip.Addr.Compare)
		out = append(out, route)
	}
	return out, nil
}

// At returns the routes to exactly this prefix.
func (rs Routes) At(p netip.Prefix) Routes {
	var out Routes
	for _, r := range rs {
		if r.Prefix == p {
			out = append(out, r)
		}
	}
	return out
}

// Ours are those that Causeway made.
func (rs Routes) Ours() Routes {
	var out Routes
	for _, r := range rs {
		if r.Ours() {
			out = append(out, r)
		}
	}
	return out
}

// Via returns nil when exactly one route leads to the prefix, ours with metric 1024, and
// by exactly these gateways. Without gateways it must be a blackhole.
func (rs Routes) Via(p netip.Prefix, gateways ...netip.Addr) error {
	at := rs.At(p)
	if len(at) != 1 {
		return fmt.Errorf("%d routes to %s: %v", len(at), p, at)
	}
	r := at[0]
	if !r.Ours() || r.Metric != 1024 {
		return fmt.Errorf("not protocol %s, metric 1024: %s", Protocol, r)
	}
	if len(gateways) == 0 {
		if r.Type != "blackhole" {
			return fmt.Errorf("no blackhole: %s", r)
		}
		return nil
	}
	gateways = slices.Clone(gateways)
	slices.SortFunc(gateways, netip.Addr.Compare)
	if r.Type != "unicast" || !slices.Equal(r.Gateways, gateways) {
		return fmt.Errorf("not via %v: %s", gateways, r)
	}
	return nil
}

// BlocksOf are the blocks of a node of one family.
func BlocksOf(st status.Status, v6 bool) []netip.Prefix {
	var out []netip.Prefix
	for _, b := range st.Blocks {
		if b.Addr().Is6() == v6 {
			out = append(out, b)
		}
	}
	return out
}

// PodLinks are the host ends of pods' links on a node.
func PodLinks(ctx context.Context, n *lab.Node) ([]string, error) {
	out, err := n.Exec(ctx, "ip", "-j", "link")
	if err != nil {
		return nil, err
	}
	var links []struct {
		Name string `json:"ifname"`
	}
	if err := json.Unmarshal([]byte(out), &links); err != nil {
		return nil, fmt.Errorf("ip -j link: %w", err)
	}
	var names []string
	for _, l := range links {
		if strings.HasPrefix(l.Name, "cali") {
			names = append(names, l.Name)
		}
	}
	return names, nil
}

// Counter reads one of the kernel's counters, as nstat names it: "TcpExtTCPMD5NotFound".
func Counter(ctx context.Context, n *lab.Node, name string) (uint64, error) {
	out, err := n.Exec(ctx, "nstat", "-asz", "--json", name)
	if err != nil {
		return 0, err
	}
	var v struct {
		Kernel map[string]uint64 `json:"kernel"`
	}
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		return 0, fmt.Errorf("nstat %s: %w: %s", name, err, out)
	}
	c, ok := v.Kernel[name]
	if !ok {
		return 0, fmt.Errorf("nstat knows no %s: %s", name, out)
	}
	return c, nil
}
