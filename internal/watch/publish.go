package watch

import (
	"log/slog"
	"reflect"
	"slices"

	"github.com/causeway-net/causeway/internal/model"
)

// Succeed decides what is in force when newer is the newest version of an object of which
// held is in force, and what is to be said of newer: a version that is broken leaves the
// last valid one in force, and one that means the same leaves the old one in its place.
//
// held is nil when none is in force; newer is nil for a version that cannot be decoded,
// whose problems the source found itself. The problems of a valid version are its own, and
// Build tells them.
func Succeed(held, newer *Object, problems []model.Problem) (*Object, []model.Problem) {
	if newer != nil && newer.Valid() {
		if held != nil && held.Equal(newer) {
			return held, nil
		}
		return newer, nil
	}
	out := slices.Clone(problems)
	if newer != nil {
		out = append(out, newer.Problems...)
	}
	if held != nil {
		for i := range out {
			if !out[i].Ignored {
				out[i].Message += "; its last valid version stays in force"
			}
		}
	}
	return held, out
}

// Publisher makes snapshots of what a source knows and hands on those that differ from the
// one before. It is for one goroutine.
type Publisher struct {
	Options Options
	Log     *slog.Logger          // required
	Publish func(*model.Snapshot) // required

	last     *model.Snapshot
	reported map[model.Problem]bool
	held     map[passwordKey]string // passwords in force
}

// Last is the snapshot published last, or nil.
func (p *Publisher) Last() *model.Snapshot { return p.last }

// Update builds a snapshot, and publishes it if it is another one.
func (p *Publisher) Update(in Input) {
	in.held = p.held
	snap, held := buildWith(in, p.Options)
	p.held = held
	p.Report(snap.Problems)
	if p.last != nil {
		snap.Revision = p.last.Revision
		if reflect.DeepEqual(p.last, snap) {
			return
		}
	}
	snap.Revision++
	p.last = snap
	p.Log.Info("snapshot", "revision", snap.Revision, "nodes", len(snap.Nodes), "pools", len(snap.Pools),
		"blocks", len(snap.Blocks), "peers", len(snap.Peers), "problems", len(snap.Problems))
	p.Publish(snap)
}

// MaxReported bounds the lines that one snapshot adds to the log; the status has all
// problems.
const MaxReported = 100

// Report logs each problem when it comes and when it goes, and not in between.
func (p *Publisher) Report(problems []model.Problem) {
	now := make(map[model.Problem]bool, len(problems))
	come, gone := 0, 0
	for _, x := range problems {
		if now[x] {
			continue
		}
		now[x] = true
		if p.reported[x] {
			continue
		}
		if come++; come > MaxReported {
			continue
		}
		if x.Ignored {
			p.Log.Warn("field is not acted on", attributes(x)...)
		} else {
			p.Log.Error("object is not in force", attributes(x)...)
		}
	}
	for x := range p.reported {
		if now[x] {
			continue
		}
		if gone++; gone <= MaxReported {
			p.Log.Info("problem is gone", attributes(x)...)
		}
	}
	p.reported = now
	if come > MaxReported {
		p.Log.Error("more objects and fields are not in force", "count", come-MaxReported)
	}
	if gone > MaxReported {
		p.Log.Info("more problems are gone", "count", gone-MaxReported)
	}
}

func attributes(p model.Problem) []any {
	return []any{"object", p.Object.String(), "source", p.Source, "field", p.Field, "problem", p.Message}
}
