package file

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"
)

// maxFile bounds what is read of one file, in bytes.
const maxFile = 32 << 20

// identity tells a folder from another one at the same path.
type identity struct{ dev, ino uint64 }

// fingerprint changes when a file does.
type fingerprint struct {
	dev, ino     uint64
	size         int64
	mtime, ctime int64 // nanoseconds
}

// isManifest reports whether a file of that name is read. Names that begin with a dot are
// those of editors and of files on their way.
func isManifest(base string) bool {
	return (strings.HasSuffix(base, ".yaml") || strings.HasSuffix(base, ".yml")) && !strings.HasPrefix(base, ".")
}

// list names the manifests in a folder.
func list(path string) ([]string, identity, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, identity{}, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, identity{}, err
	}
	entries, err := f.ReadDir(-1)
	if err != nil {
		return nil, identity{}, err
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		if isManifest(e.Name()) {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return names, identityOf(st), nil
}

func isDir(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.IsDir()
}

func isLink(path string) bool {
	st, err := os.Lstat(path)
	return err == nil && st.Mode()&fs.ModeSymlink != 0
}

// readTime bounds the reading of a file that lets its readers wait.
const readTime = 100 * time.Millisecond

func readFile(path string) (string, fingerprint, error) {
	// Without blocking, should it be a pipe.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return "", fingerprint{}, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return "", fingerprint{}, err
	}
	if !st.Mode().IsRegular() {
		return "", fingerprint{}, errors.New("it is no regular file")
	}
	// A file of /proc can be regular by its mode and still have its readers wait, as kmsg
	// does. Those can be given a deadline, and others need none.
	_ = f.SetReadDeadline(time.Now().Add(readTime))
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return "", fingerprint{}, err
	}
	if len(data) > maxFile {
		return "", fingerprint{}, fmt.Errorf("it has more than %d bytes; split it", maxFile)
	}
	// The print from before the read: a write meanwhile shows as another one.
	return string(data), printOf(st), nil
}

func identityOf(st fs.FileInfo) identity {
	sys := st.Sys().(*syscall.Stat_t)
	return identity{dev: uint64(sys.Dev), ino: sys.Ino}
}

func printOf(st fs.FileInfo) fingerprint {
	sys := st.Sys().(*syscall.Stat_t)
	return fingerprint{
		dev: uint64(sys.Dev), ino: sys.Ino, size: st.Size(),
		mtime: st.ModTime().UnixNano(), ctime: sys.Ctim.Nano(),
	}
}
