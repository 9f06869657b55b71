package file

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/internal/watch"
)

// How long a file must stand unchanged before what it no longer says is believed.
const (
	// settleTime is for what would remove an object, and for a last document that
	// looks cut off.
	settleTime = 500 * time.Millisecond
	// tailTime is for the last document of a file otherwise: its writer may be between
	// two lines of it. Files in blockFolder are exempt, being put there by rename.
	tailTime = 100 * time.Millisecond
)

// blockFolder is where IPAM keeps its blocks, one to a file named <block>.yaml.
const blockFolder = "ipam/blocks/"

// folder is what a manifest folder says, as far as it can be believed. It reads no file and
// no clock: it is told what was seen and when.
//
// Invariant: an object once valid stays in force until a valid newer version of it takes
// its place, or until its file has stood for settleTime and is well-formed without it.
type folder struct {
	opt     watch.Options
	files   map[string]*file // by slash-separated name relative to the folder
	pending map[string]*file // those with a due time
	changed bool             // since input was last called
}

func newFolder(opt watch.Options) *folder {
	return &folder{opt: opt, files: map[string]*file{}, pending: map[string]*file{}}
}

// file is one file of the folder.
type file struct {
	name  string
	state state
	data  string
	print fingerprint
	err   error     // why it cannot be read, if that is to be reported
	since time.Time // when this was first seen
	due   time.Time // when time alone will change what is believed; zero: never

	raw      []rawDocument
	open     bool                 // the last of raw is not closed by a mark
	parsed   map[string]*document // by text: those of data and of what is held
	held     map[model.Object]held
	problems []model.Problem
}

type state uint8

const (
	present state = iota
	absent        // the file is gone
	unknown       // it cannot be read, or its folder cannot: it keeps what it holds
)

// held is an object in force because of a file.
type held struct {
	object *watch.Object
	source string
	text   string // the document it came from
	live   bool   // the file as it is now has a version of it, valid or not
}

// same reports whether two say the same to the outside.
func (h held) same(o held) bool {
	return h.object == o.object && h.source == o.source && h.live == o.live
}

func (d *folder) file(name string) *file {
	f := d.files[name]
	if f == nil {
		f = &file{name: name, state: unknown, held: map[model.Object]held{}}
		d.files[name] = f
	}
	return f
}

// observe notes what a file holds. age is for how long it is known to have been so.
func (d *folder) observe(name, data string, print fingerprint, now time.Time, age time.Duration) {
	f := d.file(name)
	if f.state == present && f.print == print && f.data == data {
		return
	}
	f.state, f.err, f.since, f.print = present, nil, now.Add(-age), print
	if f.data != data || f.raw == nil {
		f.data = data
		f.raw, f.open = split(data)
	}
	d.update(f, now)
}

// missing notes that a file is gone.
func (d *folder) missing(name string, now time.Time) {
	f, ok := d.files[name]
	if !ok || f.state == absent {
		return
	}
	f.state, f.err, f.since = absent, nil, now
	f.data, f.raw, f.open, f.print = "", nil, false, fingerprint{}
	d.update(f, now)
}

// unreadable notes that nothing is known of a file now; err, if not nil, is reported.
func (d *folder) unreadable(name string, err error, now time.Time) {
	f := d.file(name)
	if f.state == unknown && fmt.Sprint(f.err) == fmt.Sprint(err) {
		return
	}
	f.state, f.err, f.since = unknown, err, now
	f.data, f.raw, f.open, f.print = "", nil, false, fingerprint{}
	d.update(f, now)
}

// settle lets time pass. The caller has just looked at all files that waiting names.
func (d *folder) settle(now time.Time) {
	for _, name := range d.waiting(now) {
		d.update(d.files[name], now)
	}
}

// waiting names the files that are due.
func (d *folder) waiting(now time.Time) []string {
	var out []string
	for name, f := range d.pending {
		if !f.due.After(now) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// next is when settle has something to do, or the zero time.
func (d *folder) next() time.Time {
	var next time.Time
	for _, f := range d.pending {
		if next.IsZero() || f.due.Before(next) {
			next = f.due
		}
	}
	return next
}

// update decides what is believed of one file.
func (d *folder) update(f *file, now time.Time) {
	b := belief{folder: d, file: f, now: now, quiet: now.Sub(f.since), next: map[model.Object]held{}}
	b.decide()
	if !maps.EqualFunc(f.held, b.next, held.same) || !slices.Equal(f.problems, b.problems) {
		d.changed = true
	}
	f.held, f.problems, f.parsed, f.due = b.next, b.problems, b.parsed, b.due
	if f.due.IsZero() {
		delete(d.pending, f.name)
	} else {
		d.pending[f.name] = f
	}
	if f.state == absent && len(f.held) == 0 {
		delete(d.files, f.name)
	}
}

// belief is one decision about one file.
type belief struct {
	*folder
	file  *file
	now   time.Time
	quiet time.Duration // for how long the file has been as it is

	next     map[model.Object]held
	parsed   map[string]*document
	problems []model.Problem
	due      time.Time
	unclear  bool            // the file may say more than was understood
	mistyped map[string]bool // names of objects whose kind is perhaps a slip of the pen
}

func (b *belief) decide() {
	f := b.file
	b.parsed = make(map[string]*document, len(f.raw))
	if f.state == unknown {
		if f.err != nil {
			b.note(model.Object{}, f.name, model.Problem{Message: fmt.Sprintf("cannot be read: %v; what it held stays in force", f.err)})
		}
		for k, h := range f.held {
			b.next[k] = h
		}
		return
	}
	for i, raw := range f.raw {
		if wait := b.tailWait(i); wait > b.quiet {
			b.wait(wait)
			b.unclear = true
			break
		}
		b.document(i, raw)
	}
	for k, h := range f.held {
		if _, ok := b.next[k]; ok {
			continue
		}
		if b.quiet < settleTime {
			b.wait(settleTime)
		} else if !b.unclear && !b.mistyped[k.Name] {
			continue // gone
		}
		h.live = false
		b.next[k] = h
	}
}

// wait asks for another decision when the file has been as it is for that long.
func (b *belief) wait(quiet time.Duration) {
	if at := b.file.since.Add(quiet); b.due.IsZero() || at.Before(b.due) {
		b.due = at
	}
}

// tailWait is how long document i must stand before it is believed: 0 except for a last
// document, of which more may be to come, that was not there before.
func (b *belief) tailWait(i int) time.Duration {
	f := b.file
	if i != len(f.raw)-1 || !f.open {
		return 0
	}
	text := f.raw[i].text
	if _, known := f.parsed[text]; known {
		return 0
	}
	wait := tailTime
	if strings.HasPrefix(f.name, blockFolder) {
		wait = 0
	}
	if !strings.HasSuffix(f.data, "\n") && !strings.HasSuffix(text, "}") {
		wait = settleTime
	}
	for _, h := range f.held {
		switch {
		case h.text == text:
			return 0
		case wait > 0 && strings.HasPrefix(h.text, text):
			wait = settleTime
		}
	}
	return wait
}

// document takes in what document i says.
func (b *belief) document(i int, raw rawDocument) {
	f := b.file
	doc := f.parsed[raw.text]
	inBlocks := strings.HasPrefix(f.name, blockFolder)
	if doc == nil || doc.broken { // broken: its messages say lines, which may have moved
		doc = parse(raw, b.opt, inBlocks)
	}
	b.parsed[raw.text] = doc
	source := fmt.Sprintf("%s document %d", f.name, i+1)
	b.unclear = b.unclear || doc.broken
	for _, p := range doc.problems {
		b.note(model.Object{}, source, p)
	}
	for _, v := range doc.versions {
		b.version(v, source+v.item, raw.text, inBlocks)
	}
}

func (b *belief) version(v version, source, text string, inBlocks bool) {
	old, wasHeld := b.file.held[v.key]
	_, twice := b.next[v.key]
	switch {
	case v.mistyped:
		if b.mistyped == nil {
			b.mistyped = map[string]bool{}
		}
		b.mistyped[v.key.Name] = true
	case v.foreign:
	case v.key.Kind == "" || v.key.Name == "":
	case twice:
		b.note(v.key, source, model.Problem{Message: "stands in this file already; remove one of them"})
		return
	case inBlocks != (v.key.Kind == v3.KindIPAMBlock):
		msg := "belongs in the folder " + strings.TrimSuffix(blockFolder, "/") + ", where IPAM keeps its blocks"
		if inBlocks {
			msg = "does not belong in " + strings.TrimSuffix(blockFolder, "/") + ", which is IPAM's own; move it to the manifests"
		}
		b.note(v.key, source, model.Problem{Message: msg})
		return
	}
	var last *watch.Object
	if wasHeld && !v.foreign && v.key.Name != "" {
		last = old.object
	}
	object, problems := watch.Succeed(last, v.object, v.problems)
	switch {
	case v.valid():
		b.next[v.key] = held{object: object, source: source, text: text, live: true}
	case last != nil:
		old.live = true
		b.next[v.key] = old
	}
	for _, p := range problems {
		b.note(v.key, source, p)
	}
}

// note keeps a problem. What has no name is the file's.
func (b *belief) note(key model.Object, source string, p model.Problem) {
	p.Object, p.Source = key, source
	if p.Object.Kind == "" || p.Object.Name == "" {
		p.Object = model.Object{Kind: "File", Name: b.file.name}
	}
	b.problems = append(b.problems, p)
}

// holds reports whether any file under prefix, and not deeper, keeps an object in force.
func (d *folder) holds(prefix string) bool {
	for name, f := range d.files {
		if inFolder(name, prefix) && len(f.held) > 0 {
			return true
		}
	}
	return false
}

// inFolder reports whether the file name is in the folder that prefix names ("" or
// blockFolder).
func inFolder(name, prefix string) bool {
	rest, ok := strings.CutPrefix(name, prefix)
	return ok && !strings.Contains(rest, "/")
}

// input is what all files say together. Of an object in two files, the one in the first
// file by name is in force.
func (d *folder) input() watch.Input {
	d.changed = false
	var in watch.Input
	winners := map[model.Object]held{}
	for _, name := range sortedKeys(d.files) {
		f := d.files[name]
		in.Problems = append(in.Problems, f.problems...)
		for k, h := range f.held {
			first, ok := winners[k]
			if !ok {
				winners[k] = h
				in.Objects = append(in.Objects, watch.Sourced{Object: h.object, Source: h.source})
			} else if first.live && h.live { // otherwise it is only moving
				in.Problems = append(in.Problems, model.Problem{
					Object: k, Source: h.source,
					Message: "is not in force, because it stands in " + first.source + " too; remove one of them",
				})
			}
		}
	}
	slices.SortFunc(in.Objects, func(a, b watch.Sourced) int { return compareKey(a.Key, b.Key) })
	return in
}

func compareKey(a, b model.Object) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}
