// Package file is ipam's Store in a folder: each block is an IPAMBlock manifest
// DIR/ipam/blocks/<name>.yaml. One node may have the folder to itself, or several may
// share it (a file system with flock(2), link(2) and rename(2), as NFS has).
//
// Every change happens under an exclusive flock of DIR/ipam/lock and comes into force with
// one link or rename, so that a reader sees a whole manifest or none, and a crash leaves
// nothing but a temporary file that the next start removes.
package file

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"iter"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/ipam"
	"github.com/causeway-net/causeway/ipam/manifest"
)

const (
	blockExt  = ".yaml"
	tmpPrefix = ".tmp-"
)

// Config is what New needs.
type Config struct {
	Dir string       // required: the datastore's folder; ipam/blocks is made in it
	Log *slog.Logger // required
	// Shared says that several nodes see the folder. One without a manifest is then taken
	// for a mount point that nothing is mounted on: what is claimed there nobody else sees.
	Shared bool
}

// Store keeps blocks as files. It implements ipam.Store.
type Store struct {
	dir      string // DIR, when it must hold a manifest; else empty
	blocks   string // DIR/ipam/blocks
	lockPath string // DIR/ipam/lock
	log      *slog.Logger

	mu     sync.Mutex // of this process; the flock is for the others
	lock   *os.File   // nil: not open
	closed bool
}

// New makes the folders and removes what a crash left.
func New(cfg Config) (*Store, error) {
	if cfg.Dir == "" || cfg.Log == nil {
		return nil, errors.New("ipam/file: Config.Dir and Config.Log are required")
	}
	dir := filepath.Join(cfg.Dir, "ipam")
	s := &Store{blocks: filepath.Join(dir, "blocks"), lockPath: filepath.Join(dir, "lock"), log: cfg.Log.With("component", "ipam/file")}
	if cfg.Shared {
		s.dir = cfg.Dir
	}
	if err := os.MkdirAll(s.blocks, 0o755); err != nil {
		return nil, fmt.Errorf("ipam/file: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := s.locked(ctx, s.clean); err != nil {
		return nil, errors.Join(fmt.Errorf("ipam/file: %w", err), s.Close())
	}
	return s, nil
}

// Close gives up the lock file. Calls after it fail.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.lock == nil {
		return nil
	}
	err := s.lock.Close()
	s.lock = nil
	return err
}

// clean removes temporary files. Whoever has the lock knows that nobody writes them.
func (s *Store) clean() error {
	entries, err := os.ReadDir(s.blocks)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), tmpPrefix) {
			if err := os.Remove(filepath.Join(s.blocks, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// open opens the lock file, anew where another one has taken its place: the folder was
// mounted, unmounted or replaced, and the lock of the old one would keep nobody else away.
func (s *Store) open() error {
	if s.closed {
		return os.ErrClosed
	}
	if s.lock != nil {
		there, err := os.Stat(s.lockPath)
		if err == nil {
			var ours fs.FileInfo
			if ours, err = s.lock.Stat(); err == nil && os.SameFile(there, ours) {
				return nil
			}
		}
		s.lock.Close()
		s.lock = nil
	}
	lock, err := os.OpenFile(s.lockPath, os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	s.lock = lock
	return nil
}

// locked calls f with the exclusive lock of the folder as it now is. It polls, because a
// blocking flock(2) cannot be given up when ctx ends.
func (s *Store) locked(ctx context.Context, f func() error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for wait := time.Millisecond; ; wait = min(2*wait, 20*time.Millisecond) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := s.open(); err != nil {
			return err
		}
		held := s.lock
		err := syscall.Flock(int(held.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			if err := s.open(); err != nil {
				return err
			}
			if s.lock == held {
				break
			}
			continue // it was replaced while we waited
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return fmt.Errorf("lock %s: %w", s.lock.Name(), err)
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("lock %s: %w", s.lock.Name(), ctx.Err())
		}
	}
	defer syscall.Flock(int(s.lock.Fd()), syscall.LOCK_UN)
	return f()
}

// mounted returns an error when the folder is one of Config.Shared and holds no manifest.
func (s *Store) mounted() error {
	if s.dir == "" {
		return nil
	}
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); (ext == ".yaml" || ext == ".yml") && !strings.HasPrefix(e.Name(), ".") {
			return nil
		}
	}
	return fmt.Errorf("%s holds no manifest: is it not mounted? nothing is claimed there", s.dir)
}

func (s *Store) path(cidr netip.Prefix) string {
	return filepath.Join(s.blocks, v3.BlockName(cidr)+blockExt)
}

// A revision is the sequence number and a checksum of the whole file, so that an edit by
// hand, which leaves the number alone, is a change as well.
func revision(seq uint64, data []byte) string {
	return fmt.Sprintf("%d.%08x", seq, crc32.Checksum(data, castagnoli))
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Create claims a block: ipam.Store.
func (s *Store) Create(ctx context.Context, b *ipam.Block) error {
	return s.locked(ctx, func() error {
		if err := s.mounted(); err != nil {
			return err
		}
		entries, err := os.ReadDir(s.blocks)
		if err != nil {
			return err
		}
		for _, e := range entries {
			name, ok := strings.CutSuffix(e.Name(), blockExt)
			if !ok {
				continue
			}
			if p, ok := manifest.ParseName(name); ok && p.Overlaps(b.CIDR) {
				return fmt.Errorf("block %s: %w: %s", b.CIDR, ipam.ErrExists, e.Name())
			}
		}
		data := encode(b, 1)
		tmp, err := s.writeTemp(b.CIDR, data)
		if err != nil {
			return err
		}
		defer os.Remove(tmp)
		if err := os.Link(tmp, s.path(b.CIDR)); errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("block %s: %w", b.CIDR, ipam.ErrExists)
		} else if err != nil {
			return err
		}
		if err := syncDir(s.blocks); err != nil {
			return err
		}
		b.Revision = revision(1, data)
		return nil
	})
}

// current returns the sequence number of b's stored version if that is still b.Revision.
// The lock is held.
func (s *Store) current(b *ipam.Block) (uint64, error) {
	data, err := os.ReadFile(s.path(b.CIDR))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("block %s: %w", b.CIDR, ipam.ErrNotFound)
	}
	if err != nil {
		return 0, err
	}
	number, _, _ := strings.Cut(b.Revision, ".")
	seq, err := strconv.ParseUint(number, 10, 64)
	if err != nil || revision(seq, data) != b.Revision {
		return 0, fmt.Errorf("block %s: %w", b.CIDR, ipam.ErrConflict)
	}
	return seq, nil
}

// Update replaces a block: ipam.Store.
func (s *Store) Update(ctx context.Context, b *ipam.Block) error {
	return s.locked(ctx, func() error {
		seq, err := s.current(b)
		if err != nil {
			return err
		}
		data := encode(b, seq+1)
		tmp, err := s.writeTemp(b.CIDR, data)
		if err != nil {
			return err
		}
		if err := os.Rename(tmp, s.path(b.CIDR)); err != nil {
			os.Remove(tmp)
			return err
		}
		if err := syncDir(s.blocks); err != nil {
			return err
		}
		b.Revision = revision(seq+1, data)
		return nil
	})
}

// Delete removes a block: ipam.Store.
func (s *Store) Delete(ctx context.Context, b *ipam.Block) error {
	return s.locked(ctx, func() error {
		if _, err := s.current(b); err != nil {
			return err
		}
		if err := os.Remove(s.path(b.CIDR)); err != nil {
			return err
		}
		return syncDir(s.blocks)
	})
}

// Get reads a block: ipam.Store.
func (s *Store) Get(ctx context.Context, cidr netip.Prefix) (*ipam.Block, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return s.read(cidr)
}

func (s *Store) read(cidr netip.Prefix) (*ipam.Block, error) {
	data, err := os.ReadFile(s.path(cidr))
	if errors.Is(err, syscall.ESTALE) { // NFS: it was replaced between open and read
		data, err = os.ReadFile(s.path(cidr))
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("block %s: %w", cidr, ipam.ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	b, seq, err := decode(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.path(cidr), err)
	}
	if b.CIDR != cidr {
		return nil, fmt.Errorf("%s: .spec.cidr: %s, want %s as the file's name says", s.path(cidr), b.CIDR, cidr)
	}
	b.Revision = revision(seq, data)
	return b, nil
}

// List reads blocks: ipam.Store. One that cannot be read is logged and left out; its
// name still keeps others from claiming its addresses.
func (s *Store) List(ctx context.Context, q ipam.Query) iter.Seq2[*ipam.Block, error] {
	return func(yield func(*ipam.Block, error) bool) {
		blocks, err := s.list(ctx)
		if err != nil {
			yield(nil, err)
			return
		}
		for _, b := range blocks {
			if q.Selects(b) && !yield(b, nil) {
				return
			}
		}
	}
}

// Claimed returns the CIDRs that the names of the files say: ipam.Store.
func (s *Store) Claimed(ctx context.Context, _ bool) ([]netip.Prefix, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := s.mounted(); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(s.blocks)
	if err != nil {
		return nil, err
	}
	var out []netip.Prefix
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), blockExt); ok {
			if p, ok := manifest.ParseName(name); ok {
				out = append(out, p)
			}
		}
	}
	return out, nil
}

func (s *Store) list(ctx context.Context) ([]*ipam.Block, error) {
	var out []*ipam.Block
	err := s.locked(ctx, func() error {
		if err := s.mounted(); err != nil {
			return err
		}
		entries, err := os.ReadDir(s.blocks)
		if err != nil {
			return err
		}
		for _, e := range entries {
			name, ok := strings.CutSuffix(e.Name(), blockExt)
			if !ok || strings.HasPrefix(e.Name(), ".") {
				continue
			}
			p, ok := manifest.ParseName(name)
			if !ok {
				s.log.Error("not a block: its name is no CIDR with dashes, as 10-244-0-0-26.yaml is", "file", e.Name())
				continue
			}
			b, err := s.read(p)
			if err != nil {
				s.log.Error("block cannot be read and is left alone", "file", e.Name(), "error", err)
				continue
			}
			out = append(out, b)
		}
		return nil
	})
	return out, err
}

// writeTemp writes data to a new file beside the block's and makes it durable.
func (s *Store) writeTemp(cidr netip.Prefix, data []byte) (name string, err error) {
	name = filepath.Join(s.blocks, tmpPrefix+v3.BlockName(cidr))
	f, err := os.OpenFile(name, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|syscall.O_CLOEXEC, 0o644)
	if err != nil {
		return "", err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(0o644) // whatever the umask: other nodes read it
	}
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		os.Remove(name)
		return "", err
	}
	return name, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
