package conntrack

import (
	"log/slog"
	"net/netip"
	"testing"
)

// TestExpected: a flow that a helper announced goes with the one it belongs to, and is
// left when that is gone.
func TestExpected(t *testing.T) {
	ap := netip.MustParseAddrPort
	master := Flow{Source: ap("10.0.0.1:1"), Destination: ap("10.0.0.9:21")}
	data := Flow{Source: ap("10.0.0.9:20"), Destination: ap("10.0.0.1:1024"), master: []byte{}}
	for name, c := range map[string]struct {
		verdict Verdict // of the master
		gone    bool
		set     int
	}{
		"allowed":   {verdict: Pass},
		"forbidden": {verdict: Cut, set: 1},
		"gone":      {verdict: Cut, gone: true},
	} {
		cutter, err := New(Config{Log: slog.New(slog.DiscardHandler), Bit: 1, Kernel: familiar{master, !c.gone}, Verdict: func(f *Flow) Verdict {
			if f.Destination != master.Destination {
				t.Errorf("%s: %s was judged by itself", name, f)
			}
			return c.verdict
		}})
		if err != nil {
			t.Fatal(err)
		}
		r := round{c: cutter, ctx: t.Context()}
		r.relate(&data)
		if len(r.set) != c.set || len(r.clear) != 0 || len(r.errs) != 0 {
			t.Errorf("%s: %d to cut, %d to clear, %v", name, len(r.set), len(r.clear), r.errs)
		}
	}
}
