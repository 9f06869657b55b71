package child_test

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	api "github.com/osrg/gobgp/v3/api"
)

// rounds repeats the crash tests (CAUSEWAY_CRASH_ROUNDS), to measure how often the evidence is
// right.
func rounds() int {
	if n, err := strconv.Atoi(os.Getenv("CAUSEWAY_CRASH_ROUNDS")); err == nil {
		return n
	}
	return 1
}

// TestCrashNamesThePeer has one of seven peers send what ends GoBGP, while four others keep
// their sessions alive every second and two send routes without a pause.
func TestCrashNamesThePeer(t *testing.T) {
	hosts := subnet(t, 7)
	for _, h := range hosts[:4] {
		h.bird(t)
	}
	talkers, bad := hosts[4:6], hosts[6]
	for name, message := range poison {
		right, byTime := 0, 0
		for range rounds() {
			r := startSpeaker(t, nil)
			r.startBGP(t, nil, hosts...)
			s := bad.open(t)
			for _, h := range talkers {
				talk := h.open(t)
				go func() {
					for i := 0; ; i++ {
						if _, err := talk.Write(h.update(byte(i>>8), byte(i))); err != nil {
							return
						}
						select {
						case <-talk.ended:
							return
						case <-time.After(time.Millisecond):
						}
					}
				}()
			}
			r.awaitEstablished(t, hosts...)
			start := time.Now()
			if _, err := s.Write(message(bad)); err != nil {
				t.Fatal(err)
			}
			d := r.awaitDeath(t)
			took := time.Since(start)

			want := netip.MustParseAddr(bad.ip)
			if d.Suspect != want {
				t.Errorf("%s: suspect %v, want %v\n%s", name, d.Suspect, want, d.Trace)
			} else {
				right++
			}
			if len(d.LastSpeakers) != len(hosts) || d.LastSpeakers[0].Addr != want {
				t.Errorf("%s: last speakers %v, want %v first of %d", name, d.LastSpeakers, want, len(hosts))
			}
			first := d.LastSpeakers[0]
			for _, h := range d.LastSpeakers[1:] {
				if h.Ago < first.Ago {
					first = h
				}
			}
			if first.Addr == want {
				byTime++
			}
			if d.Killed || d.Stopped || d.Signal != 0 || d.Err == nil || !strings.Contains(d.Err.Error(), "panic: runtime error") {
				t.Errorf("%s: %+v", name, d)
			}
			if !strings.Contains(d.Trace, "recvMessageWithError") {
				t.Errorf("%s: trace without the stack:\n%s", name, d.Trace)
			}
			if took > time.Second {
				t.Errorf("%s: the death took %v to be known", name, took)
			}
			t.Logf("%s: %v after %v: %v %v", name, d.Err, took, d.Suspect, d.LastSpeakers)
		}
		t.Logf("%s: right in %d of %d, by the time of the last data alone %d", name, right, rounds(), byTime)
	}
}

// TestCrashOfACall: arguments that crash GoBGP's server goroutine are no peer's fault.
func TestCrashOfACall(t *testing.T) {
	hosts := subnet(t, 1)
	r := startSpeaker(t, nil)
	r.startBGP(t, nil, hosts...)
	hosts[0].open(t)
	r.awaitEstablished(t, hosts...)
	_, _ = r.api.AddDynamicNeighbor(t.Context(), &api.AddDynamicNeighborRequest{
		DynamicNeighbor: &api.DynamicNeighbor{Prefix: "10.0.0.0/8", PeerGroup: "nowhere"},
	})
	d := r.awaitDeath(t)
	if d.Killed || d.Suspect.IsValid() || len(d.LastSpeakers) != 0 || !strings.Contains(d.Trace, "handleMGMTOp") {
		t.Errorf("%+v", d)
	}
}

// TestDeathBySignal accuses nobody.
func TestDeathBySignal(t *testing.T) {
	hosts := subnet(t, 1)
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGQUIT, syscall.SIGSEGV, syscall.SIGABRT} {
		r := startSpeaker(t, nil)
		r.startBGP(t, nil, hosts...)
		hosts[0].open(t)
		r.awaitEstablished(t, hosts...)
		if err := syscall.Kill(r.PID(), sig); err != nil {
			t.Fatal(err)
		}
		d := r.awaitDeath(t)
		if !d.Killed || d.Stopped || d.Suspect.IsValid() || len(d.LastSpeakers) != 0 {
			t.Errorf("%v: %+v", sig, d)
		}
		if sig == syscall.SIGKILL && (d.Signal != sig || d.Err.Error() != "speaker: killed by SIGKILL") {
			t.Errorf("%v: %+v", sig, d)
		}
	}
}

// TestSignalsOfTheServiceDoNotEndIt: a SIGTERM for the whole service reaches the speaker too;
// the agent alone decides.
func TestSignalsOfTheServiceDoNotEndIt(t *testing.T) {
	r := startSpeaker(t, nil)
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP} {
		if err := syscall.Kill(r.PID(), sig); err != nil {
			t.Fatal(err)
		}
	}
	if len(r.peers(t)) != 0 {
		t.Error("peers out of nowhere")
	}
	select {
	case <-r.Died():
		t.Fatal(r.Death().Err)
	default:
	}
}

// TestStop: a graceful stop tells the peers, the other tells them nothing.
func TestStop(t *testing.T) {
	hosts := subnet(t, 1)
	for _, graceful := range []bool{true, false} {
		t.Run(fmt.Sprintf("graceful=%v", graceful), func(t *testing.T) {
			r := startSpeaker(t, nil)
			r.startBGP(t, nil, hosts...)
			s := hosts[0].open(t)
			r.awaitEstablished(t, hosts...)
			ctx, cancel := context.WithTimeout(t.Context(), within)
			defer cancel()
			if err := r.Stop(ctx, graceful); err != nil {
				t.Fatal(err)
			}
			if d := r.Death(); !d.Stopped || !d.Killed || d.Err == nil {
				t.Errorf("%+v", d)
			}
			const notification = 3
			if sent := <-s.ended; bytes.Contains(sent, []byte{notification}) != graceful {
				t.Errorf("message types sent: %v; a NOTIFICATION (3) in it: want %v", sent, graceful)
			}
			if _, err := r.Dial(ctx); err == nil {
				t.Error("a dead speaker answers")
			}
			if err := r.Stop(ctx, graceful); err != nil {
				t.Errorf("second stop: %v", err)
			}
		})
	}
}
