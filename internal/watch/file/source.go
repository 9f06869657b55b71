// Package file owns the standalone datastore: a folder of manifests, watched. It turns what
// the files say into snapshots and publishes each one that differs from the last.
//
// An addition or a change takes effect within milliseconds of the write. What would remove
// an object is believed only when its file has stood unchanged for half a second and is
// well-formed, so that a file that is being written, truncated or replaced removes nothing.
// A folder that vanishes or cannot be read removes nothing at all (DESIGN I4).
package file

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/internal/watch"
)

const (
	// debounce gathers the events of one write.
	debounce = 20 * time.Millisecond
	// pollTime is how often all files are compared with what was read, for file systems
	// that do not tell; pollFast is used while inotify is not to be had or a folder is
	// away.
	pollTime = 5 * time.Second
	pollFast = 250 * time.Millisecond
	// blockRest is how long a block that is in force is left unread after it was read:
	// its file is rewritten with every few addresses, which changes nothing here.
	blockRest = 200 * time.Millisecond
	// trustAge is how much older than its reading a file's mtime must be for an equal
	// mtime to mean equal content, whatever the clock's resolution.
	trustAge = 2 * time.Second
)

// Config of a Source.
type Config struct {
	Dir  string // required: the folder
	Node string // required: name of this node
	// SecretNamespace is where Secrets with passwords are; default "kube-system".
	SecretNamespace string
	Log             *slog.Logger // required
	// Publish is called from Run with each snapshot that differs from the one before;
	// required. It must not keep the source waiting for long.
	Publish func(*model.Snapshot)
	// Policy, if not nil, is called with each change of what concerns policy, one after the
	// other, from a goroutine of Run. Without it such manifests are not acted on.
	Policy func(*watch.PolicyUpdate)
}

// Source watches a folder of manifests.
type Source struct {
	cfg     Config
	log     *slog.Logger
	opt     watch.Options
	folder  *folder
	watcher *fsnotify.Watcher // nil: polled only

	dirs      map[string]*dir // by prefix
	watched   map[string]identity
	deaf      map[string]string // folders that cannot be watched, and why
	publisher *watch.Publisher
	stale     bool      // something changed since the last snapshot was made
	started   time.Time // when the first scan was
	scanned   time.Time // when the last scan was
	readAt    map[string]time.Time

	policies *watch.Policies                // nil without Config.Policy
	inForce  map[model.Object]*watch.Object // as policies was told
	noticed  chan struct{}                  // policies' problems are others; capacity 1
}

// dir is one of the two folders that are read: the manifests and IPAM's blocks.
type dir struct {
	prefix  string // of the names of its files
	path    string
	id      identity // of the folder whose files are known
	problem string   // why what is known of it is out of date
}

// New makes a Source. It reads nothing yet.
func New(cfg Config) (*Source, error) {
	switch {
	case cfg.Dir == "":
		return nil, errors.New("file.Config: Dir is required")
	case cfg.Node == "":
		return nil, errors.New("file.Config: Node is required")
	case cfg.Log == nil:
		return nil, errors.New("file.Config: Log is required")
	case cfg.Publish == nil:
		return nil, errors.New("file.Config: Publish is required")
	}
	cfg.Dir = filepath.Clean(cfg.Dir)
	s := &Source{
		cfg: cfg, log: cfg.Log.With("datastore", "file://"+cfg.Dir),
		opt:     watch.Options{Node: cfg.Node, SecretNamespace: cfg.SecretNamespace, Policy: cfg.Policy != nil},
		watched: map[string]identity{}, deaf: map[string]string{}, readAt: map[string]time.Time{},
		inForce: map[model.Object]*watch.Object{}, noticed: make(chan struct{}, 1),
	}
	if cfg.Policy != nil {
		s.policies = watch.NewPolicies(s.opt, cfg.Policy, func() {
			select {
			case s.noticed <- struct{}{}:
			default:
			}
		})
	}
	s.folder = newFolder(s.opt)
	s.publisher = &watch.Publisher{Options: s.opt, Log: s.log, Publish: cfg.Publish}
	s.dirs = map[string]*dir{
		"":          {path: cfg.Dir},
		blockFolder: {prefix: blockFolder, path: filepath.Join(cfg.Dir, blockFolder)},
	}
	return s, nil
}

// Policies is where this node says what it knows of itself: attached pods and interfaces. It
// is nil without Config.Policy.
func (s *Source) Policies() *watch.Policies { return s.policies }

func (s *Source) String() string { return "watch file://" + s.cfg.Dir }

// Run publishes snapshots until ctx is cancelled. The first comes when the folder could be
// read; before that nothing is published, for nothing is known.
func (s *Source) Run(ctx context.Context) error {
	var events <-chan fsnotify.Event
	var failures <-chan error
	w, err := fsnotify.NewWatcher()
	if err != nil {
		s.log.Warn("inotify is not to be had; the folder is polled", "error", err)
	} else {
		s.watcher = w
		defer w.Close()
		events, failures = w.Events, w.Errors
	}
	if s.policies != nil {
		ctx, cancel := context.WithCancel(ctx)
		var running sync.WaitGroup
		defer running.Wait()
		defer cancel()
		running.Go(func() { s.policies.Run(ctx) })
	}
	s.started = time.Now()
	s.scan()
	s.publish()

	dirty := map[string]bool{}
	var rescan bool
	var due time.Time // when dirty is looked at; zero: nothing is dirty
	soon := func(wait time.Duration) {
		if at := time.Now().Add(wait); due.IsZero() || at.Before(due) {
			due = at
		}
	}
	for {
		gather, settle, poll := after(due), after(s.folder.next()), after(s.scanned.Add(s.pollTime()))
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-events:
			if !ok {
				return errors.New("inotify ended")
			}
			switch name, all := s.concerns(e); {
			case all:
				rescan = true
				soon(debounce)
			case name != "":
				dirty[name] = true
				soon(debounce)
			}
		case err, ok := <-failures:
			if !ok {
				return errors.New("inotify ended")
			}
			s.log.Debug("inotify lost events; reading the folder anew", "error", err)
			rescan = true
			soon(debounce)
		case <-s.noticed:
			s.stale = true
			s.publish()
		case <-gather:
			due = time.Time{}
			if rescan {
				s.scan()
				rescan = false
			}
			for name := range dirty {
				if rest := s.rest(name); rest > 0 {
					soon(rest)
					continue
				}
				delete(dirty, name)
				s.read(name, 0)
			}
			s.publish()
		case <-settle:
			now := time.Now()
			for _, name := range s.folder.waiting(now) {
				s.read(name, 0)
			}
			s.folder.settle(now)
			s.publish()
		case <-poll:
			s.scan()
			s.publish()
		}
	}
}

// after is a channel that delivers at t, or never for the zero time.
func after(t time.Time) <-chan time.Time {
	if t.IsZero() {
		return nil
	}
	return time.After(time.Until(t))
}

// rest is how long a file should still be left alone.
func (s *Source) rest(name string) time.Duration {
	f := s.folder.files[name]
	if !strings.HasPrefix(name, blockFolder) || f == nil || f.state != present || len(f.held) == 0 {
		return 0
	}
	return blockRest - time.Since(s.readAt[name])
}

func (s *Source) pollTime() time.Duration {
	if s.watcher == nil || len(s.deaf) > 0 || s.dirs[""].problem != "" || s.dirs[blockFolder].problem != "" {
		return pollFast
	}
	return pollTime
}

// concerns says which file an event is about, or that all must be looked at.
func (s *Source) concerns(e fsnotify.Event) (name string, all bool) {
	path := filepath.Clean(e.Name)
	blocks := s.dirs[blockFolder].path
	if path == s.cfg.Dir || path == blocks || path == filepath.Dir(blocks) {
		return "", true
	}
	base := filepath.Base(path)
	if strings.HasPrefix(base, "..") { // a mounted ConfigMap changes by its "..data" link
		return "", true
	}
	if !isManifest(base) {
		return "", false
	}
	switch filepath.Dir(path) {
	case s.cfg.Dir:
		return base, false
	case blocks:
		return blockFolder + base, false
	}
	return "", false
}

// scan looks at all files, and reads those that changed.
func (s *Source) scan() {
	s.scanned = time.Now()
	s.rewatch()
	s.scanDir(s.dirs[""])
	s.scanDir(s.dirs[blockFolder])
}

// rewatch watches the folders that are there, anew where another took a place.
func (s *Source) rewatch() {
	if s.watcher == nil {
		return
	}
	blocks := s.dirs[blockFolder].path
	for _, path := range []string{s.cfg.Dir, filepath.Dir(blocks), blocks} {
		st, err := os.Stat(path)
		if err != nil || !st.IsDir() {
			delete(s.watched, path)
			delete(s.deaf, path)
			continue
		}
		id := identityOf(st)
		if s.watched[path] == id && slices.Contains(s.watcher.WatchList(), path) {
			continue
		}
		_ = s.watcher.Remove(path) // of the folder that was there before, if any
		if err := s.watcher.Add(path); err != nil {
			if s.deaf[path] != err.Error() {
				s.log.Warn("folder cannot be watched; it is polled", "path", path, "error", err)
			}
			s.deaf[path] = err.Error()
			delete(s.watched, path)
			continue
		}
		s.watched[path] = id
		delete(s.deaf, path)
	}
}

// scanDir reads one folder. One that is away, cannot be read or was replaced by an empty
// one keeps what it held.
func (s *Source) scanDir(d *dir) {
	names, id, err := list(d.path)
	now := time.Now()
	problem := ""
	switch {
	case err != nil && errors.Is(err, fs.ErrNotExist) && d.prefix != "" && !s.folder.holds(d.prefix):
		names, id = nil, identity{} // IPAM makes it with the first block
	case err != nil:
		problem = fmt.Sprintf("cannot be read: %v; what it held stays in force", err)
	case len(names) == 0 && d.id != (identity{}) && id != d.id && s.folder.holds(d.prefix):
		problem = "was replaced by an empty folder; what it held stays in force until there is a manifest in it"
	}
	if problem != d.problem {
		d.problem, s.stale = problem, true
	}
	if problem != "" {
		for name := range s.folder.files {
			if inFolder(name, d.prefix) {
				s.folder.unreadable(name, nil, now)
			}
		}
		return
	}
	d.id = id
	seen := make(map[string]bool, len(names))
	for _, base := range names {
		seen[d.prefix+base] = true
		s.look(d.prefix + base)
	}
	for name := range s.folder.files {
		if inFolder(name, d.prefix) && !seen[name] {
			s.folder.missing(name, now)
		}
	}
}

func (s *Source) path(name string) string { return filepath.Join(s.cfg.Dir, filepath.FromSlash(name)) }

// look reads a file unless it is surely as it was.
func (s *Source) look(name string) {
	f, known := s.folder.files[name]
	if known && f.state == present {
		st, err := os.Stat(s.path(name))
		if err == nil && printOf(st) == f.print && s.readAt[name].Sub(st.ModTime()) > trustAge {
			return
		}
	}
	age := time.Duration(0)
	if s.publisher.Last() == nil && !known { // at the start, a file that is old is not being written
		if st, err := os.Stat(s.path(name)); err == nil {
			age = min(max(0, time.Since(st.ModTime())), time.Minute)
		}
	}
	s.read(name, age)
}

// read reads one file and tells the folder.
func (s *Source) read(name string, age time.Duration) {
	now := time.Now()
	path := s.path(name)
	data, print, err := readFile(path)
	switch {
	case err == nil:
		s.readAt[name] = now
		s.folder.observe(name, data, print, now, age)
	case !errors.Is(err, fs.ErrNotExist):
		s.folder.unreadable(name, err, now)
	case isLink(path): // to nowhere
		s.folder.unreadable(name, err, now)
	case s.dirOf(name).problem != "" || !isDir(filepath.Dir(path)):
		if _, known := s.folder.files[name]; known { // gone with its folder: scanDir decides
			s.folder.unreadable(name, nil, now)
		}
	default:
		delete(s.readAt, name)
		s.folder.missing(name, now)
	}
}

func (s *Source) dirOf(name string) *dir {
	if strings.HasPrefix(name, blockFolder) {
		return s.dirs[blockFolder]
	}
	return s.dirs[""]
}

// publish makes a snapshot if something changed, and hands it on if it is another one.
func (s *Source) publish() {
	s.stale = s.stale || s.folder.changed
	if !s.stale {
		return
	}
	in := s.folder.input()
	for _, d := range s.dirs {
		if d.problem != "" {
			in.Problems = append(in.Problems, model.Problem{
				Object: model.Object{Kind: "Folder", Name: d.path}, Message: d.problem,
			})
		}
	}
	if s.publisher.Last() == nil {
		if s.dirs[""].problem != "" {
			s.publisher.Report(in.Problems)
			return // nothing is known yet
		}
		if !s.folder.next().IsZero() && time.Since(s.started) < settleTime {
			return // a file is perhaps being written
		}
	}
	s.stale = false
	if s.policies != nil {
		s.tellPolicies(in.Objects)
		in.Problems = append(in.Problems, s.policies.Problems()...)
	}
	s.publisher.Update(in)
}

// tellPolicies tells which objects are others than before.
func (s *Source) tellPolicies(objects []watch.Sourced) {
	seen := make(map[model.Object]bool, len(objects))
	for _, o := range objects {
		if !watch.PolicyObject(o.Key.Kind) {
			continue
		}
		seen[o.Key] = true
		if s.inForce[o.Key] != o.Object {
			s.inForce[o.Key] = o.Object
			s.policies.Set(o.Object)
		}
	}
	for key := range s.inForce {
		if !seen[key] {
			delete(s.inForce, key)
			s.policies.Remove(key)
		}
	}
	s.policies.SetPending(nil)
}
