package speaker

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/osrg/gobgp/v3/pkg/log"
	"github.com/osrg/gobgp/v3/pkg/server"

	"github.com/causeway-net/causeway/bgp/child"
)

// bgpLog is GoBGP's logger: slog lines for the agent, and the place where goroutines that work
// on a peer's bytes get that peer's label (see label).
type bgpLog struct {
	slog    *slog.Logger
	handler slog.Handler
	level   *slog.LevelVar
	failed  chan string // Fatal of the gRPC listener

	mu     sync.Mutex
	labels map[string]context.Context // by peer; see label
	bursts map[string]*burst          // by message; see allow
}

// Whoever reaches port 179 makes GoBGP say something with every connection, and a peer with
// every message. So much of one message is let through, and then so long nothing.
const (
	burstLines = 50
	burstTime  = 10 * time.Second
)

// burst counts one message's lines since the first.
type burst struct {
	since time.Time
	lines int
}

func newLog(w io.Writer, level slog.Level) *bgpLog {
	l := &bgpLog{level: new(slog.LevelVar), failed: make(chan string, 1), labels: map[string]context.Context{}, bursts: map[string]*burst{}}
	l.level.Set(level)
	l.handler = slog.NewJSONHandler(w, &slog.HandlerOptions{Level: l.level})
	l.slog = slog.New(l.handler)
	return l
}

// listenFailed is what GoBGP says, fatally, when its gRPC listener cannot be opened.
const listenFailed = "failed to listen grpc port"

// Panic is GoBGP's word for a state that cannot be; the report that follows is the evidence.
func (l *bgpLog) Panic(msg string, f log.Fields) { panic(describe(msg, f)) }

// Fatal ends the process as GoBGP expects, but not in silence: the panic leaves a report. Two
// are no reason to end it: a bad set in SetPolicies, which GoBGP also answers with an error,
// and the gRPC listener, whose failure Run reports.
func (l *bgpLog) Fatal(msg string, f log.Fields) {
	switch msg {
	case "failed to create routing policy":
		l.emit(slog.LevelError, msg, f)
	case listenFailed:
		select {
		case l.failed <- describe(msg, f):
		default:
		}
	default:
		panic(describe(msg, f))
	}
}

func (l *bgpLog) Error(msg string, f log.Fields) { l.emit(slog.LevelError, msg, f) }
func (l *bgpLog) Warn(msg string, f log.Fields)  { l.emit(slog.LevelWarn, msg, f) }
func (l *bgpLog) Info(msg string, f log.Fields)  { l.emit(slog.LevelInfo, msg, f) }

func (l *bgpLog) Debug(msg string, f log.Fields) {
	l.label(msg, f)
	l.emit(slog.LevelDebug, msg, f)
}

func (l *bgpLog) SetLevel(level log.LogLevel) {
	switch {
	case level <= log.ErrorLevel:
		l.level.Set(slog.LevelError)
	case level == log.WarnLevel:
		l.level.Set(slog.LevelWarn)
	case level == log.InfoLevel:
		l.level.Set(slog.LevelInfo)
	default:
		l.level.Set(slog.LevelDebug)
	}
}

// GetLevel answers above every level: GoBGP asks before it tells of an update, and label wants
// to hear of each. (GoBGP's SetLogLevel skips a level that is already set; this one never is.)
func (l *bgpLog) GetLevel() log.LogLevel { return log.TraceLevel + 1 }

// label names the peer whose bytes the calling goroutine works on from here. GoBGP tells of two
// moments on its server goroutine: "state changed", after which it starts the goroutines that
// read from the peer in the new state and which inherit the label, and "received update". Should
// the words change, labels are missing and nothing else: the agent has a second witness.
func (l *bgpLog) label(msg string, f log.Fields) {
	if msg != "state changed" && msg != "received update" {
		return
	}
	key, ok := f["Key"].(string)
	if !ok {
		return
	}
	l.mu.Lock()
	ctx, ok := l.labels[key]
	if !ok {
		if len(l.labels) >= maxLabels {
			clear(l.labels)
		}
		ctx = pprof.WithLabels(context.Background(), pprof.Labels(child.PeerLabel, key))
		l.labels[key] = ctx
	}
	l.mu.Unlock()
	pprof.SetGoroutineLabels(ctx)
}

// maxLabels bounds the labels kept ready. Dynamic neighbours come from any address of a range.
const maxLabels = 1024

// forget takes the label off the server goroutine when it is done with one thing.
type forget struct{}

func (forget) Observe(server.FSMOperation, time.Duration, time.Duration) {
	pprof.SetGoroutineLabels(context.Background())
}

// emit writes one line. GoBGP's fields come as a map; they are written in one order.
func (l *bgpLog) emit(level slog.Level, msg string, f log.Fields) {
	ctx := context.Background()
	if !l.handler.Enabled(ctx, level) {
		return
	}
	now := time.Now()
	ok, left := l.allow(level, msg, now)
	if !ok {
		return
	}
	r := slog.NewRecord(now, level, msg, 0)
	r.AddAttrs(attrs(f)...)
	if left > 0 {
		r.AddAttrs(slog.Int("leftOut", left))
	}
	_ = l.handler.Handle(ctx, r)
}

// allow reports whether a line may be written now, and how many lines of the
// same message were left out before it. GoBGP's messages are constants, so that the map stays
// small.
func (l *bgpLog) allow(level slog.Level, msg string, now time.Time) (ok bool, leftOut int) {
	if level < slog.LevelInfo {
		return true, 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.bursts[msg]
	if b == nil || now.Sub(b.since) >= burstTime {
		if b != nil {
			leftOut = max(0, b.lines-burstLines)
		} else if len(l.bursts) >= maxLabels {
			clear(l.bursts)
		}
		b = &burst{since: now}
		l.bursts[msg] = b
	}
	b.lines++
	return b.lines <= burstLines, leftOut
}

func attrs(f log.Fields) []slog.Attr {
	out := make([]slog.Attr, 0, len(f))
	for k, v := range f {
		switch {
		case k == log.FieldFacility:
			continue
		case k == "Key" && f["Topic"] == "Peer":
			k = "peer"
		case k == "Err":
			k = "error"
		}
		out = append(out, slog.Any(strings.ToLower(k), plain(v)))
	}
	slices.SortFunc(out, func(a, b slog.Attr) int { return strings.Compare(a.Key, b.Key) })
	return out
}

// plain makes text of what JSON would render as something else or not at all. fmt takes care of
// Stringers that are nil pointers, which GoBGP passes.
func plain(v any) any {
	switch v := v.(type) {
	case nil, bool, string, int, int8, int16, int32, int64, uint, uint8, uint16, uint32, uint64:
		return v
	}
	return fmt.Sprint(v)
}

func describe(msg string, f log.Fields) string {
	var b strings.Builder
	b.WriteString(msg)
	for _, a := range attrs(f) {
		fmt.Fprintf(&b, " %s=%v", a.Key, a.Value)
	}
	return b.String()
}
