package gobgp

import (
	"testing"
	"time"
)

// TestRestartTimeOver: a peer that comes back when the time to keep its routes has just run out
// has its session at once. GoBGP would rest for 5 s then and refuse it.
func TestRestartTimeOver(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	r := l.router(65001)
	l.start()
	r.bird([]string{"192.0.2.0/24"}, "graceful restart time 3;")
	l.up(r)
	l.eventually("its route", func() bool { return len(l.routes.via("192.0.2.0/24")) == 1 })
	r.killBird()
	l.eventually("the session is down", func() bool { return l.status(r.addr).State != "Established" })
	if len(l.routes.via("192.0.2.0/24")) == 0 {
		t.Error("its route was dropped at once")
	}
	l.eventually("its route is dropped", func() bool { return len(l.routes.via("192.0.2.0/24")) == 0 })
	over := time.Now()
	r.startBird()
	l.up(r)
	took := time.Since(over)
	t.Logf("established %v after the restart time was over", took.Round(time.Millisecond))
	if took > 4*time.Second {
		t.Errorf("it took %v", took)
	}
}

// TestRefusedForAWhile: a peer that refuses as one that rests does, again and again, is asked
// again soon. With GoBGP's own rest after most of the refusals this takes more than 30 s, and two
// speakers that both rest as long as that may refuse each other for minutes.
func TestRefusedForAWhile(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	r := l.router(65001)
	tries, stop := r.refuse("179")
	l.start()
	l.within(28*time.Second, "eight attempts", func() bool { return len(tries) >= 8 })
	stop()
	r.bird(nil, "")
	l.up(r)
}
