package child

import (
	"bytes"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// Reports as Go 1.26 writes them.
const (
	labelled = `panic: runtime error: invalid memory address or nil pointer dereference
[signal SIGSEGV: segmentation violation code=0x1 addr=0x8 pc=0xb1a2c3]

goroutine 83 [running labels:{"peer": "fe80::1%eth0"}]:
github.com/osrg/gobgp/v3/pkg/server.(*fsmHandler).handlingError(0xc000102000, 0x0)
	/src/fsm.go:917 +0x24
created by github.com/osrg/gobgp/v3/pkg/server.(*fsmHandler).established in goroutine 80
`
	unlabelled = `panic: boom

goroutine 12 [running]:
github.com/osrg/gobgp/v3/pkg/server.(*BgpServer).handleFSMMessage(0xc000102000, 0x0)
	/src/server.go:1917 +0x24

goroutine 13 [running labels:{"peer": "10.0.0.9"}]:
main.other()
`
	byCall = `panic: boom

goroutine 12 [running]:
github.com/osrg/gobgp/v3/pkg/server.(*BgpServer).handleMGMTOp(...)
	/src/server.go:317 +0x24

goroutine 13 [running labels:{"peer": "10.0.0.9"}]:
github.com/osrg/gobgp/v3/pkg/server.(*fsmHandler).established(0xc000102000, 0x0)
`
	quit = `SIGQUIT: quit
PC=0x47ac41 m=0 sigcode=0

goroutine 0 gp=0x1 m=0 mp=0x2 [idle]:
`
)

func TestAccuse(t *testing.T) {
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fe80::1%eth0")
	both := []Heard{{a, 0}, {b, 3 * time.Millisecond}}
	for name, c := range map[string]struct {
		text  string
		heard []Heard
		who   netip.Addr
		order []netip.Addr
	}{
		"the label is exact":                  {labelled, both, b, []netip.Addr{b, a}},
		"a label without a connection":        {labelled, nil, b, []netip.Addr{b}},
		"without one, who spoke last":         {unlabelled, both, a, []netip.Addr{a, b}},
		"nobody was there":                    {unlabelled, nil, netip.Addr{}, nil},
		"a call's crash is no peer's":         {byCall, both, netip.Addr{}, nil},
		"a signal is no peer's":               {quit, both, netip.Addr{}, nil},
		"a report that was cut accuses none":  {"panic: boom\n", both, netip.Addr{}, nil},
		"a label that is no address is noise": {strings.Replace(labelled, "fe80::1%eth0", "eth0", 1), both, a, []netip.Addr{a, b}},
	} {
		who, order := accuse(parseReport(c.text), c.heard)
		var got []netip.Addr
		for _, h := range order {
			got = append(got, h.Addr)
		}
		if who != c.who || !slices.Equal(got, c.order) {
			t.Errorf("%s: %v %v, want %v %v", name, who, got, c.who, c.order)
		}
	}
	if both[0].Addr != a {
		t.Error("accuse changed its input")
	}
}

func TestRank(t *testing.T) {
	conn := func(remote string, inode, uid uint32, ms int) connection {
		return connection{netip.MustParseAddrPort("10.0.0.1:179"), netip.MustParseAddrPort(remote), uid, inode, time.Duration(ms) * time.Millisecond}
	}
	all := []connection{
		conn("10.0.0.2:40000", 1, 65532, 9), conn("10.0.0.3:179", 2, 65532, 4), conn("10.0.0.4:40000", 3, 65532, 0),
		conn("10.0.0.2:179", 4, 65532, 2), conn("10.0.0.5:1", 5, 0, 0),
	}
	all[4].local = netip.MustParseAddrPort("127.0.0.1:50051")
	for name, c := range map[string]struct {
		inodes map[uint32]bool
		want   string
	}{
		"by inode": {map[uint32]bool{1: true, 2: true, 4: true, 5: true}, "10.0.0.2 10.0.0.3"},
		"by user":  {nil, "10.0.0.4 10.0.0.2 10.0.0.3"},
	} {
		var got []string
		for _, h := range rank(all, c.inodes, 65532, all[4].local) {
			got = append(got, h.Addr.String())
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("%s: %s, want %s", name, s, c.want)
		}
	}
}

// TestWatchCrashLooksFirst: the evidence is taken after the first read and before the second.
func TestWatchCrashLooksFirst(t *testing.T) {
	looked := 0
	r := readerFunc(func(n int) string {
		if n > 1 && looked != 1 {
			t.Errorf("read %d with %d looks", n, looked)
		}
		return []string{"panic: ", "boom\n", strings.Repeat("x", 4000)}[min(n-1, 2)]
	})
	c := watchCrash(&r, func() ([]Heard, error) { looked++; return []Heard{{}}, nil })
	if looked != 1 || len(c.heard) != 1 || len(c.text) != maxTrace || !strings.HasPrefix(c.text, "panic: boom\n") {
		t.Errorf("looked %d, %d bytes", looked, len(c.text))
	}
}

type reads struct {
	n    int
	next func(int) string
}

func readerFunc(next func(int) string) reads { return reads{next: next} }

func (r *reads) Read(p []byte) (int, error) {
	if r.n++; r.n > 10 {
		return 0, bytes.ErrTooLarge
	}
	return copy(p, r.next(r.n)), nil
}

func TestForward(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, nil)).With("component", "speaker")
	rest := forward(strings.NewReader(`{"time":"2030-01-02T03:04:05.5Z","level":"WARN","msg":"hold timer expired","peer":"10.0.0.2","n":3,"f":1.5,"deep":{"a":1}}
{"level":"DEBUG","msg":"not wanted"}
{"level":"WARN","msg":
panic: boom
{"no":"message"}

goroutine 1 [running]:`), log)
	want := `time=2030-01-02T03:04:05.500Z level=WARN msg="hold timer expired" component=speaker peer=10.0.0.2 n=3 f=1.5 deep=map[a:1]` + "\n"
	if out.String() != want {
		t.Errorf("got  %swant %s", out.String(), want)
	}
	if want := "{\"level\":\"WARN\",\"msg\":\npanic: boom\n{\"no\":\"message\"}\ngoroutine 1 [running]:\n"; rest != want {
		t.Errorf("kept %q, want %q", rest, want)
	}
	if rest := forward(strings.NewReader(strings.Repeat("noise\n", 1<<16)+"last"), log); len(rest) > 2*maxTrace || lastLine(rest) != "last" {
		t.Errorf("kept %d bytes, last %q", len(rest), lastLine(rest))
	}
}

func TestCheckTCPAddr(t *testing.T) {
	for s, ok := range map[string]bool{
		"127.0.0.1:50051": true, "[::1]:50051": true, "127.8.9.1:1": true,
		"0.0.0.0:50051": false, ":50051": false, "10.0.0.1:50051": false, "localhost:50051": false,
		"127.0.0.1": false, "127.0.0.1:0": false, "127.0.0.1:ssh": false, "127.0.0.1:70000": false, "[::]:1": false, "127.0.0.1:": false,
	} {
		if err := CheckTCPAddr(s); (err == nil) != ok {
			t.Errorf("%s: %v", s, err)
		}
	}
}

// TestFatalErrorOfTheRuntime: its name stands on stderr alone.
func TestFatalErrorOfTheRuntime(t *testing.T) {
	d := newDeath(nil, false, "noise\nfatal error: concurrent map writes\n\ngoroutine 5 [running]:\n", crash{text: "\ngoroutine 5 [running]:\nmain.main()\n"})
	if d.Err.Error() != "speaker: fatal error: concurrent map writes" || d.Killed || !strings.HasPrefix(d.Trace, "fatal error: ") {
		t.Errorf("%+v", d)
	}
}
