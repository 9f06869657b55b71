package vm

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// bootModules are what the machine needs before it sees any other module.
var bootModules = []string{"virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay"}

// initramfs makes the file system that the kernel starts in: this very program as /init,
// and the boot modules in the order in which it loads them.
func initramfs(ctx context.Context, k kernel) ([]byte, error) {
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	if err := static(self); err != nil {
		return nil, err
	}
	files, err := k.moduleFiles(ctx, bootModules...)
	if err != nil {
		return nil, err
	}
	var a archive
	for _, dir := range []string{"proc", "sys", "dev", "modules", lowerDir, writeDir, rootDir} {
		a.add(dir, 0o040755, nil)
	}
	a.add("init", 0o100755, self)
	for i, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		a.add(fmt.Sprintf("modules/%03d-%s", i, filepath.Base(file)), 0o100644, b)
	}
	return a.end(), nil
}

// static refuses a program that needs a library: there are none beside it.
func static(program []byte) error {
	f, err := elf.NewFile(bytes.NewReader(program))
	if err != nil {
		return err
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return errors.New("this program is the machine's first process and must be static: build it with CGO_ENABLED=0 and without -race")
		}
	}
	return nil
}

// archive is a cpio archive of the "newc" format
// (Documentation/driver-api/early-userspace/buffer-format.rst). The zero value is empty.
type archive struct {
	buf bytes.Buffer
	ino int
}

func (a *archive) add(name string, mode int, content []byte) {
	a.ino++
	fmt.Fprintf(&a.buf, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		a.ino, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name)+1, 0, name)
	a.pad()
	a.buf.Write(content)
	a.pad()
}

// pad fills up to four bytes, as headers and contents must be.
func (a *archive) pad() { a.buf.Write(make([]byte, -a.buf.Len()&3)) }

// end returns the whole archive.
func (a *archive) end() []byte {
	a.add("TRAILER!!!", 0, nil)
	return a.buf.Bytes()
}
