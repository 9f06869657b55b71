package ipset_test

import (
	"strings"
	"testing"

	"github.com/causeway-net/causeway/felix/ipset"
)

// TestRemove: ours go, theirs stay, and what a rule refers to is reported.
func TestRemove(t *testing.T) {
	rigs(t, func(t *testing.T, r *rig) {
		if n, err := ipset.Remove(t.Context(), r.kernel); n != 0 || err != nil {
			t.Fatal(n, err)
		}
		r.must(t, "create cali40a hash:ip", "add cali40a 10.0.0.1", "create cali60b hash:net family inet6", "create cali40c hash:ip,port", "create theirs hash:ip")
		r.refer("cali40c")
		if n, err := ipset.Remove(t.Context(), r.kernel); n != 2 || err == nil || !strings.Contains(err.Error(), "cali40c stays") || strings.Contains(err.Error(), "cali40a") {
			t.Errorf("%d, %v", n, err)
		}
		r.is(t, "create cali40c hash:ip,port family inet", "create theirs hash:ip family inet")
		r.release("cali40c")
		if n, err := ipset.Remove(t.Context(), r.kernel); n != 1 || err != nil {
			t.Error(n, err)
		}
		r.is(t, "create theirs hash:ip family inet")
	})
}
