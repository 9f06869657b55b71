package status

import (
	"context"
	"errors"
	"io"
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
		Problems:  []model.Problem{{Object: model.Object{Kind: "IPPool", Name: "p"}, Field: ".spec.cidr", Message: "bad"}},
		Endpoints: []model.Endpoint{{Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")}}},
		Peers:     []Peer{{Address: netip.MustParseAddr("192.0.2.1"), ASN: 4200000000, State: "Established", HeldBack: &HeldBack{Reason: "r"}}},
	}
	socket := filepath.Join(t.TempDir(), "agent.sock")
	var why error
	s := NewServer(socket, func() Status { return want }, func() error { return why })
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
		`causeway_problems{effect="disabled",field=".spec.cidr",kind="IPPool",name="p"} 1`,
		`causeway_ipam_addresses_in_use 2`,
		`causeway_routes{owner="bgp"} 3`,
		`causeway_bgp_peer_established{asn="4200000000",peer="192.0.2.1"} 1`,
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
	if code, body := get("/healthz"); code != 503 || !strings.Contains(body, "no snapshot yet") {
		t.Errorf("healthz: %d %s", code, body)
	}
}
