package iptables

import (
	"log/slog"
	"testing"
)

// TestForce: what is forced goes before what the Reconciler was made with, unless it is Auto.
func TestForce(t *testing.T) {
	for _, c := range []struct{ made, forced, want Backend }{
		{Auto, Legacy, Legacy}, {Auto, Auto, Auto}, {NFT, Auto, NFT}, {NFT, Legacy, Legacy},
	} {
		r, err := New(Config{Family: IPv4, Log: slog.New(slog.DiscardHandler), Backend: c.made})
		if err != nil {
			t.Fatal(err)
		}
		r.Force(c.forced)
		if got := r.kernel.(*Host).wanted; got != c.want {
			t.Errorf("made with %q, forced %q: %q, want %q", c.made, c.forced, got, c.want)
		}
	}
}
