package speaker

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/osrg/gobgp/v3/pkg/log"
)

func TestLogLines(t *testing.T) {
	var out bytes.Buffer
	l := newLog(&out, slog.LevelInfo)
	l.Warn("hold timer expired", log.Fields{"Topic": "Peer", "Key": "10.0.0.2", "Error": errors.New("late"), "Addr": net.IP{10, 0, 0, 1}, "Codes": []byte{1, 2}, "Nil": (*net.IPNet)(nil), log.FieldFacility: 1})
	l.Debug("state changed", log.Fields{"Topic": "Peer", "Key": "10.0.0.2"})
	line := out.String()
	want := `"level":"WARN","msg":"hold timer expired","addr":"10.0.0.1","codes":"[1 2]","error":"late","nil":"<nil>","peer":"10.0.0.2","topic":"Peer"}` + "\n"
	if !strings.HasSuffix(line, want) || strings.Count(line, "\n") != 1 {
		t.Errorf("got  %swant %s", line, want)
	}
	out.Reset()
	l.SetLevel(log.DebugLevel)
	l.Debug("sent", nil)
	l.SetLevel(log.WarnLevel)
	l.Info("no", nil)
	if got := out.String(); !strings.Contains(got, `"msg":"sent"`) || strings.Contains(got, `"no"`) {
		t.Error(got)
	}
}

// TestFatalLeavesEvidence: what ends the process says why; what need not end it does not.
func TestFatalLeavesEvidence(t *testing.T) {
	l := newLog(io.Discard, slog.LevelInfo)
	for _, f := range []func(string, log.Fields){l.Fatal, l.Panic} {
		func() {
			defer func() {
				if r := recover(); r != "unknown msg type peer=10.0.0.2 topic=Peer" {
					t.Errorf("recovered %v", r)
				}
			}()
			f("unknown msg type", log.Fields{"Topic": "Peer", "Key": "10.0.0.2"})
			t.Error("went on")
		}()
	}
	l.Fatal("failed to create routing policy", log.Fields{"Error": errors.New("bad set")})
	l.Fatal(listenFailed, log.Fields{"Err": errors.New("in use")})
	if got := <-l.failed; got != listenFailed+" error=in use" {
		t.Error(got)
	}
}

// TestDebugOffIsCheap: GoBGP tells of every update whether debugging is on or not.
func TestFloodIsBounded(t *testing.T) {
	var out bytes.Buffer
	l := newLog(&out, slog.LevelInfo)
	for range 10000 {
		l.Warn("Closed an accepted connection", log.Fields{"Topic": "Peer", "Key": "10.0.0.1"})
	}
	l.Warn("another", nil)
	for range 1000 {
		l.Info("Can't find configuration for a new passive connection", nil)
	}
	if n := strings.Count(out.String(), "\n"); n != 2*burstLines+1 {
		t.Fatalf("%d lines, want %d of each message and one of another", n, burstLines)
	}
	out.Reset()
	l.bursts["Closed an accepted connection"].since = time.Now().Add(-burstTime)
	l.Warn("Closed an accepted connection", nil)
	if want := fmt.Sprintf(`"leftOut":%d`, 10000-burstLines); !strings.Contains(out.String(), want) {
		t.Errorf("%s: want %s", out.String(), want)
	}
}

func TestDebugOffIsCheap(t *testing.T) {
	l := newLog(io.Discard, slog.LevelInfo)
	f := log.Fields{"Topic": "Peer", "Key": "10.0.0.2"}
	l.Debug("received update", f)
	if n := testing.AllocsPerRun(100, func() { l.Debug("received update", f); l.Debug("sent update", f) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestRootIsRefused: the tests run as root, and the speaker must not.
func TestRootIsRefused(t *testing.T) {
	if err := checkRights(); err == nil || !strings.Contains(err.Error(), "root") {
		t.Error(err)
	}
}
