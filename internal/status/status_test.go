package status

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/causeway-net/causeway/internal/model"
)

func TestServe(t *testing.T) {
	want := Status{
		Node: "a", Ready: true, Routes: Routes{ByOwner: map[string]int{"bgp": 3}},
		Source: Source{Datastore: "kubernetes", Error: "connection refused"}, Network: &Network{Condition: "False", AddressChanges: 2},
		Encapsulation: Encapsulation{Tunnels: []Tunnel{{Device: "vxlan.calico", Wanted: true, Up: true, Peers: 2, PeersWanted: 3}}},
		Problems:      []model.Problem{{Object: model.Object{Kind: "IPPool", Name: "p"}, Field: ".spec.cidr", Message: "bad"}},
		Endpoints:     []model.Endpoint{{Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")}}},
		Peers:         []Peer{{Address: netip.MustParseAddr("192.0.2.1"), ASN: 4200000000, State: "Established", HeldBack: &HeldBack{Reason: "r"}}},
	}
	socket := filepath.Join(t.TempDir(), "agent.sock")
	var why, dead error
	s := NewServer(Config{
		Socket: socket, Health: "127.0.0.1:0", Read: func() Status { return want },
		Ready: func() error { return why }, Live: func() error { return dead },
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	var got Status
	for deadline := time.Now().Add(10 * time.Second); ; {
		var err error
		if got, err = Fetch(ctx, socket); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
	if _, err := Fetch(context.Background(), socket); err == nil || !strings.Contains(err.Error(), "no agent answers") {
		t.Errorf("Fetch without agent: %v", err)
	}

	get := func(path string) (int, string) {
		rec := httptest.NewRecorder()
		s.handler().ServeHTTP(rec, httptest.NewRequest("GET", path, nil))
		b, _ := io.ReadAll(rec.Result().Body)
		return rec.Code, string(b)
	}
	_, metrics := get("/metrics")
	for _, line := range []string{
		`causeway_ready 1`,
		`causeway_datastore_up 0`,
		`causeway_node_address_changes_total 2`,
		`causeway_problems{effect="disabled",field=".spec.cidr",kind="IPPool",name="p",namespace=""} 1`,
		`causeway_ipam_addresses_in_use 2`,
		`causeway_routes{owner="bgp"} 3`,
		`causeway_bgp_peer_established{asn="4200000000",peer="192.0.2.1"} 1`,
		`causeway_tunnel_up{device="vxlan.calico"} 1`,
		`causeway_tunnel_peers_missing{device="vxlan.calico"} 1`,
		`causeway_bgp_peer_held_back{peer="192.0.2.1"} 1`,
	} {
		if !strings.Contains(metrics, line) {
			t.Errorf("metrics lack %s", line)
		}
	}
	if code, body := get("/healthz"); code != 200 {
		t.Errorf("healthz: %d %s", code, body)
	}
	why = errors.New("no snapshot yet")
	for _, path := range []string{"/healthz", "/readyz"} {
		if code, body := get(path); code != 503 || !strings.Contains(body, "no snapshot yet") {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
	if code, body := get("/livez"); code != 200 {
		t.Errorf("livez of an agent that is not ready: %d %s", code, body)
	}
	dead = errors.New("routes hang")
	if code, body := get("/livez"); code != 503 || !strings.Contains(body, "routes hang") {
		t.Errorf("livez: %d %s", code, body)
	}
}

// TestAddressChanges: they are counted without Kubernetes, too.
func TestAddressChanges(t *testing.T) {
	srv := NewServer(Config{Read: func() Status { return Status{AddressChanges: 3} }})
	rec := httptest.NewRecorder()
	srv.handler().ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
	if body := rec.Body.String(); !strings.Contains(body, "causeway_node_address_changes_total 3\n") || strings.Contains(body, "causeway_node_network_available") {
		t.Errorf("metrics: %s", body)
	}
}

// TestAddresses: what listens on TCP tells no more than it was made for, and an address that
// is taken is an error that says which flag to change.
func TestAddresses(t *testing.T) {
	free := func() string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return l.Addr().String()
	}
	cfg := Config{
		Socket: filepath.Join(t.TempDir(), "agent.sock"), Health: free(), Metrics: free(), Read: func() Status { return Status{} },
		Ready: func() error { return nil }, Live: func() error { return nil },
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- NewServer(cfg).Run(ctx) }()
	for url, want := range map[string]int{
		cfg.Health + "/livez": 200, cfg.Health + "/readyz": 200, cfg.Health + "/metrics": 404, cfg.Health + "/status": 404,
		cfg.Metrics + "/metrics": 200, cfg.Metrics + "/status": 404, cfg.Metrics + "/livez": 404,
	} {
		var res *http.Response
		var err error
		for deadline := time.Now().Add(10 * time.Second); ; {
			if res, err = http.Get("http://" + url); err == nil || time.Now().After(deadline) {
				break
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != want {
			t.Errorf("%s: %d, want %d", url, res.StatusCode, want)
		}
	}
	second := cfg
	second.Socket = filepath.Join(t.TempDir(), "agent.sock")
	if err := NewServer(second).Run(ctx); err == nil || !strings.Contains(err.Error(), "--health-address") {
		t.Errorf("a taken address: %v", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
