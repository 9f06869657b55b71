package status

import (
	"context"
	"errors"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/causeway-net/causeway/internal/announce"
	"github.com/causeway-net/causeway/internal/model"
)

// policed is a Server of a node with two policies, one of them staged and one for nobody here.
func policed(socket string, counters string) *Server {
	web := model.PolicyID{Kind: model.PolicyKubernetes, Namespace: "shop", Name: "web"}
	return NewServer(Config{
		Socket: socket,
		Read: func() Status {
			return Status{Policy: Policy{
				Backend: "nftables", Synced: true, Endpoints: 3, Changes: 4, ChangeSeconds: 0.5, LastChange: 0.25, Error: "no such match",
				Connections:   Connections{Cut: 7},
				Announcements: &announce.Status{Peers: 2, Announced: 5, Refused: map[string]uint64{"clock": 1}},
			}}
		},
		Policy: func(context.Context) PolicyDetail {
			return PolicyDetail{CountersError: counters, Policies: []PolicyInForce{
				{ID: web, Tier: "default", Endpoints: 1, Rules: []PolicyRule{
					{Direction: "ingress", Action: "allow", Packets: 2}, {Direction: "ingress", Index: 1, Action: "allow", Packets: 3}, {Direction: "ingress", Index: 2, Action: "deny", Packets: 4},
				}},
				{ID: model.PolicyID{Kind: model.PolicyGlobal, Name: "idle"}, Tier: "default", Rules: []PolicyRule{{Direction: "egress", Action: "deny"}}},
			}}
		},
		Explain: func(_ context.Context, q Question) ([]Answer, error) {
			if q.To.Name == "nobody" {
				return nil, errors.New("to: Pod shop/nobody is not on this node")
			}
			return []Answer{{Packet: q.From.Addr.String(), Allowed: q.Port == 80}}, nil
		},
		Ready: func() error { return nil }, Live: func() error { return nil },
	})
}

func scrape(s *Server) string {
	rec := httptest.NewRecorder()
	s.handler().ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
	return rec.Body.String()
}

// TestPolicyMetrics: packets are summed by policy, direction and action, of policies that hold here
// alone, and metrics are named as Prometheus wants it.
func TestPolicyMetrics(t *testing.T) {
	text := scrape(policed("", ""))
	for _, line := range []string{
		`causeway_policy_packets_total{action="allow",direction="ingress",kind="KubernetesNetworkPolicy",name="web",namespace="shop"} 5`,
		`causeway_policy_packets_total{action="deny",direction="ingress",kind="KubernetesNetworkPolicy",name="web",namespace="shop"} 4`,
		`causeway_policy_counters_up 1`, `causeway_policy_backend{backend="nftables"} 1`, `causeway_policy_failing 1`, `causeway_policy_endpoints 3`,
		`causeway_policy_change_seconds_sum 0.5`, `causeway_policy_change_seconds_count 4`, `causeway_policy_last_change_seconds 0.25`,
		`causeway_policy_connections_cut_total 7`, `causeway_announce_pods_total{direction="sent"} 5`, `causeway_announce_refused_total{reason="clock"} 1`,
	} {
		if !strings.Contains(text, line) {
			t.Errorf("metrics lack %s", line)
		}
	}
	if strings.Contains(text, `name="idle"`) {
		t.Error("a policy that holds for nobody here has a metric")
	}
	if problems, err := promlint.New(strings.NewReader(text)).Lint(); err != nil || len(problems) > 0 {
		t.Errorf("promlint: %v, %v", problems, err)
	}
	if text := scrape(policed("", "iptables-save: killed")); !strings.Contains(text, "causeway_policy_counters_up 0") || strings.Contains(text, "causeway_policy_packets_total{") {
		t.Error("counters that could not be read are shown as if they were 0")
	}
}

// TestAskOverTheSocket: what is asked arrives as it was meant, and what is refused says why.
func TestAskOverTheSocket(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "agent.sock")
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- policed(socket, "").Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	var d PolicyDetail
	for deadline := time.Now().Add(10 * time.Second); ; {
		var err error
		if d, err = FetchPolicy(ctx, socket); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	if len(d.Policies) != 2 || d.Policies[0].Rules[1].Packets != 3 {
		t.Errorf("policies %+v", d)
	}
	a, err := Trace(ctx, socket, url.Values{"from": {"fd00::1"}, "to": {"shop/web"}, "port": {"80"}})
	if err != nil || len(a) != 1 || !a[0].Allowed || a[0].Packet != "fd00::1" {
		t.Errorf("answers %+v, %v", a, err)
	}
	for want, v := range map[string]url.Values{
		"to: Pod shop/nobody is not on this node": {"from": {"fd00::1"}, "to": {"shop/nobody"}, "port": {"80"}},
		"port: is missing":                        {"from": {"fd00::1"}, "to": {"shop/web"}},
	} {
		if _, err := Trace(ctx, socket, v); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("error %v, want %s", err, want)
		}
	}
	if err := ask(ctx, socket, "/nothing", nil, nil); err == nil || !strings.Contains(err.Error(), "of another version") {
		t.Errorf("a question that the agent does not know: %v", err)
	}
}

func TestParseQuestion(t *testing.T) {
	pod, addr := End{Namespace: "shop", Name: "web"}, End{Addr: netip.MustParseAddr("10.0.0.1")}
	for text, want := range map[string]Question{
		"from=shop/web&to=10.0.0.1&port=80":                               {From: pod, To: addr, Protocol: 6, Port: 80, SourcePort: 49152, ICMPType: 8},
		"from=10.0.0.1&to=shop/web&protocol=UDP&port=53&source-port=1":    {From: addr, To: pod, Protocol: 17, Port: 53, SourcePort: 1, ICMPType: 8},
		"from=10.0.0.1&to=shop/web&protocol=icmp&icmp-type=3&icmp-code=1": {From: addr, To: pod, Protocol: 1, SourcePort: 49152, ICMPType: 3, ICMPCode: 1},
		"from=10.0.0.1&to=shop/web&protocol=icmpv6":                       {From: addr, To: pod, Protocol: 58, SourcePort: 49152, ICMPType: 128},
		"from=10.0.0.1&to=shop/web&protocol=47":                           {From: addr, To: pod, Protocol: 47, SourcePort: 49152, ICMPType: 8},
	} {
		v, err := url.ParseQuery(text)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := ParseQuestion(v); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v; want %+v", text, got, err, want)
		}
	}
	for text, want := range map[string]string{
		"to=shop/web":                                 `from: is ""; must be NAMESPACE/POD, or an address`,
		"from=shop/web&to=web":                        `to: is "web"; must be NAMESPACE/POD`,
		"from=a/b&to=c/d":                             "port: is missing; protocol tcp needs one",
		"from=a/b&to=c/d&port=-1":                     `port: is "-1"; must be a number from 0 to 65535`,
		"from=a/b&to=c/d&protocol=icmp&port=8":        "port: is 8; protocol icmp has none",
		"from=a/b&to=c/d&protocol=http&port=8":        `protocol: is "http"; must be tcp`,
		"from=a/b&to=c/d&protocol=icmp&icmp-type=256": `icmp-type: is "256"; must be a number from 0 to 255`,
		"from=a/b&to=c/d&prot=tcp&port=8":             "prot: there is no such parameter",
	} {
		v, err := url.ParseQuery(text)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseQuestion(v); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: error %v, want %s", text, err, want)
		}
	}
}
