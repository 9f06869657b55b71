package v3

import (
	"net/netip"
	"testing"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/json"
)

func TestBlockName(t *testing.T) {
	for cidr, want := range map[string]string{
		"10.244.0.0/26":         "10-244-0-0-26",
		"10.244.0.5/26":         "10-244-0-0-26",
		"fd00:10:244::/122":     "fd00-10-244---122",
		"fd00:10:244:0:1::/122": "fd00-10-244-0-1---122",
	} {
		if got := BlockName(netip.MustParsePrefix(cidr)); got != want {
			t.Errorf("BlockName(%s) = %s, want %s", cidr, got, want)
		}
	}
}

func schemeOf(t *testing.T) *runtime.Scheme {
	t.Helper()
	s := runtime.NewScheme()
	if err := AddToScheme(s); err != nil {
		t.Fatal(err)
	}
	return s
}

// TestASNumbers holds that AS numbers beyond int32 decode.
func TestASNumbers(t *testing.T) {
	var p BGPPeer
	if err := json.Unmarshal([]byte(`{"spec":{"asNumber":4294967295,"localASNumber":4200000000}}`), &p); err != nil {
		t.Fatal(err)
	}
	if p.Spec.ASNumber != 4294967295 || *p.Spec.LocalASNumber != 4200000000 {
		t.Errorf("decoded %+v", p.Spec)
	}
}

func TestBlockDecodes(t *testing.T) {
	var b IPAMBlock
	if err := json.Unmarshal([]byte(`{"spec":{"allocations":[null,0],"attributes":[{"handle_id":"h","secondary":{"pod":"p"}}]}}`), &b); err != nil {
		t.Fatal(err)
	}
	if a := b.Spec.Allocations; len(a) != 2 || a[0] != nil || *a[1] != 0 {
		t.Errorf("allocations %v", a)
	}
	if c := b.DeepCopy(); *c.Spec.Attributes[0].HandleID != "h" || c.Spec.Attributes[0].ActiveOwnerAttrs["pod"] != "p" {
		t.Errorf("copy %+v", c.Spec)
	}
}
