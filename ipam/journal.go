package ipam

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"
)

const (
	journalFile = "journal"
	journalNew  = "journal.new" // a compaction that was not finished
	journalLock = "lock"
	compactMin  = 256 << 10 // bytes: a shorter journal is never compacted
)

// batch is the records that one write takes to the disk.
type batch struct {
	n   uint64
	err error // set, and never cleared, when the batch could not be written
}

// journal is the file of records. Many goroutines append and wait; the first that waits
// writes and syncs for all of them.
//
// After a write or sync that failed nobody knows what is on disk (the kernel drops dirty
// pages that it could not write), so the file is never appended to again: the next
// commit writes the whole state into a new file first.
type journal struct {
	dir      string
	log      *slog.Logger
	syncFile func(*os.File) error
	mirror   func() (*batch, []byte) // the frames of the whole state and the batch that it includes
	lock     *os.File

	mu       sync.Mutex
	cond     *sync.Cond
	file     *os.File
	buf      []byte // frames of the open batch
	open     *batch
	unsynced []*batch // written, not synced
	written  uint64   // the last batch that was written
	synced   uint64   // the last batch that is durable
	busy     bool     // someone is writing
	broken   error    // the file must be replaced before it is used again
	closed   bool
	size     int64 // of the file
	limit    int64 // size that calls for compaction
}

// openJournal opens the journal in cfg.JournalDir and replays it into s. The mirror
// function returns the frames of the state as it then is, and calls cut in the same
// critical section.
func openJournal(cfg Config, log *slog.Logger, s *state, mirror func() (*batch, []byte)) (j *journal, err error) {
	j = &journal{dir: cfg.JournalDir, log: log, syncFile: cfg.SyncFile, mirror: mirror, open: &batch{n: 1}, limit: compactMin}
	j.cond = sync.NewCond(&j.mu)
	if err := os.MkdirAll(j.dir, 0o700); err != nil {
		return nil, err
	}
	lockFile := filepath.Join(j.dir, journalLock)
	j.lock, err = os.OpenFile(lockFile, os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o600)
	if errors.Is(err, syscall.EROFS) { // a file system with an error on it: there may be a journal to read
		j.lock, err = os.OpenFile(lockFile, os.O_RDONLY|syscall.O_CLOEXEC, 0)
	}
	if err != nil {
		return nil, err
	}
	lock := j.lock
	defer func() {
		if err != nil {
			lock.Close()
		}
	}()
	if err := syscall.Flock(int(j.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, fmt.Errorf("%s is locked: another agent runs with this folder: %w", j.lock.Name(), err)
	}
	if err := os.Remove(filepath.Join(j.dir, journalNew)); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.EROFS) {
		return nil, err
	}
	path := filepath.Join(j.dir, journalFile)
	data, err := os.ReadFile(path)
	exists := err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	records, holes, end := scan(data)
	for _, r := range records {
		s.apply(r)
	}
	if len(records) > 0 && records[0].Version > journalVersion {
		return nil, fmt.Errorf("%s has version %d, want %d at most: it was written by a newer agent", path, records[0].Version, journalVersion)
	}
	if s.node != "" && s.node != cfg.Node {
		return nil, fmt.Errorf("%s is that of node %q and this is node %q: remove it only if no pod of the old name lives here", path, s.node, cfg.Node)
	}
	// A journal comes into being whole (rename), so its first record is always there.
	if len(records) == 0 {
		holes = []hole{{0, len(data)}}
	}
	if exists && len(holes) > 0 {
		s.whole = false
		kept := fmt.Sprintf("%s.damaged-%d", path, cfg.Now().UnixNano())
		if err := os.WriteFile(kept, data, 0o600); err != nil {
			return nil, fmt.Errorf("keep a copy of the damaged journal: %w", err)
		}
		for _, h := range holes {
			log.Error("journal is damaged, records are lost; addresses that they named stay allocated until DEL or GC names them",
				"file", path, "from", h.from, "to", h.to, "copy", kept)
		}
	} else if end < len(data) {
		log.Warn("journal had a torn end, as a crash leaves it; cut off", "file", path, "bytes", len(data)-end)
	}
	// A new file each time: it has no holes, no torn end and nothing superfluous.
	var frames []byte
	for _, r := range s.records(cfg.Node) {
		frames = appendFrame(frames, r)
	}
	s.node = cfg.Node
	if err := j.replace(frames); err != nil {
		// Everything is known and nothing can be promised. The node's pods and routes live
		// on with that; Run tries again, which batch 1 as a failed one makes it do.
		log.Error("journal cannot be written; no pod starts or ends until it can", "dir", j.dir, "error", err)
		j.broken = fmt.Errorf("journal %s: %w", j.dir, err)
		j.open = &batch{n: 2}
	}
	return j, nil
}

// append puts a record into the open batch. The state must not change between its
// change and this call.
func (j *journal) append(r record) *batch {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.buf = appendFrame(j.buf, r)
	return j.open
}

// cut closes the open batch and returns it with its frames.
func (j *journal) cut() (*batch, []byte) {
	j.mu.Lock()
	defer j.mu.Unlock()
	b, buf := j.open, j.buf
	j.open, j.buf = &batch{n: b.n + 1}, nil
	return b, buf
}

// commit returns when the batch is written and, if sync is set, durable.
func (j *journal) commit(b *batch, sync bool) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	for {
		switch {
		case b.err != nil:
			return b.err
		case j.synced >= b.n || !sync && j.written >= b.n:
			return nil
		case j.busy:
			j.cond.Wait()
			continue
		case j.closed:
			return ErrClosed
		}
		j.busy = true
		j.mu.Unlock()
		j.write(sync)
		j.mu.Lock()
		j.busy = false
		j.cond.Broadcast()
		// A batch out of last carries no error of its own.
		if j.broken != nil && b.err == nil && j.synced < b.n && (sync || j.written < b.n) {
			return j.broken
		}
	}
}

// write takes the open batch, and all before it, to the disk. The caller has set busy.
func (j *journal) write(sync bool) {
	if j.needsReplacing() || j.gone() {
		j.rewrite()
		return
	}
	b, buf := j.cut()
	_, err := j.file.Write(buf)
	if err == nil && sync {
		err = j.syncFile(j.file)
	}
	j.mu.Lock()
	j.size += int64(len(buf))
	j.unsynced = append(j.unsynced, b)
	switch {
	case err != nil:
		j.fail(fmt.Errorf("journal %s: %w", j.file.Name(), err))
	case sync:
		j.written, j.synced, j.unsynced = b.n, b.n, nil
	default:
		j.written = b.n
	}
	compact := err == nil && j.size > j.limit
	if compact {
		j.cond.Broadcast() // nobody needs to wait for the compaction
	}
	j.mu.Unlock()
	if compact {
		j.rewrite()
	}
}

func (j *journal) needsReplacing() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.broken != nil
}

// gone reports whether somebody removed the file, or the folder, under us: the next agent
// would find nothing, and take the pods' routes away. The caller has set busy.
func (j *journal) gone() bool {
	ours, err := j.file.Stat()
	if err != nil {
		return false // a write tells
	}
	there, err := os.Stat(filepath.Join(j.dir, journalFile))
	gone := errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(ours, there)
	if gone {
		j.log.Warn("journal was removed by somebody; it is written again", "dir", j.dir)
	}
	return gone
}

// restore writes the file again where somebody removed it. Errors show in health.
func (j *journal) restore() {
	j.mu.Lock()
	defer j.mu.Unlock()
	for j.busy {
		j.cond.Wait()
	}
	if j.closed || j.broken != nil {
		return // commit does the same with a broken one
	}
	j.busy = true
	j.mu.Unlock()
	if j.gone() {
		j.rewrite()
	}
	j.mu.Lock()
	j.busy = false
	j.cond.Broadcast()
}

// fail marks the file as unusable and all that is not durable as failed. mu is held.
func (j *journal) fail(err error) {
	j.broken = err
	for _, b := range j.unsynced {
		b.err = err
	}
	j.unsynced = nil
}

// rewrite replaces the file by one that holds the state of this moment. The caller has
// set busy.
func (j *journal) rewrite() {
	b, frames := j.mirror()
	err := j.replace(frames)
	j.mu.Lock()
	defer j.mu.Unlock()
	if err != nil {
		j.unsynced = append(j.unsynced, b)
		j.fail(fmt.Errorf("journal %s: rewrite: %w", j.dir, err))
		return
	}
	j.written, j.synced, j.unsynced, j.broken = b.n, b.n, nil, nil
}

// replace writes frames to a new file, makes it durable and puts it in the old one's place.
func (j *journal) replace(frames []byte) error {
	tmp, path := filepath.Join(j.dir, journalNew), filepath.Join(j.dir, journalFile)
	if err := os.MkdirAll(j.dir, 0o700); err != nil { // somebody may have removed it
		return err
	}
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|os.O_APPEND|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(frames)
	if err == nil {
		err = j.syncFile(f)
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err == nil {
		err = syncDir(j.dir)
	}
	if err != nil {
		f.Close()
		_ = os.Remove(tmp) // it may be what fills the disk
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.file != nil {
		j.file.Close()
	}
	j.file, j.size = f, int64(len(frames))
	j.limit = max(compactMin, 4*j.size)
	return nil
}

// last returns a batch that is durable when everything appended so far is.
func (j *journal) last() *batch {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.buf) > 0 {
		return j.open
	}
	return &batch{n: j.open.n - 1}
}

// health returns why the journal cannot be written, or nil.
func (j *journal) health() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return ErrClosed
	}
	return j.broken
}

// close waits for a write under way and closes the file.
func (j *journal) close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	for j.busy {
		j.cond.Wait()
	}
	if j.closed {
		return nil
	}
	j.closed = true
	j.cond.Broadcast()
	err := j.lock.Close()
	if j.file != nil {
		err = errors.Join(j.file.Close(), err)
	}
	return err
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
