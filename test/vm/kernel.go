package vm

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// metapackage is Debian's name for the newest kernel of a release.
const metapackage = "linux-image-amd64"

// kernel is a stock kernel, unpacked and not installed.
type kernel struct {
	version string // as uname -r says it
	dir     string // as the package has it: boot, lib/modules
}

func (k kernel) image() string   { return filepath.Join(k.dir, "boot", "vmlinuz-"+k.version) }
func (k kernel) modules() string { return filepath.Join(k.dir, "lib/modules", k.version) }

// stockKernel returns the kernel that the machine's package lists call the newest. It is
// downloaded and unpacked when it is not yet below cache, in a folder of its version.
func stockKernel(ctx context.Context, cache string, log *slog.Logger) (kernel, error) {
	if runtime.GOARCH != "amd64" {
		return kernel{}, fmt.Errorf("the machine is emulated for amd64 alone, this is %s", runtime.GOARCH)
	}
	version, err := newest(ctx)
	if err != nil { // a new machine has no lists
		log.Info("apt-get update", "because", err)
		if _, uerr := output(ctx, "", "apt-get", "update", "-qq"); uerr != nil {
			return kernel{}, errors.Join(err, uerr)
		}
		if version, err = newest(ctx); err != nil {
			return kernel{}, err
		}
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return kernel{}, err
	}
	unlock, err := lock(filepath.Join(cache, "lock"))
	if err != nil {
		return kernel{}, err
	}
	defer unlock()
	k := kernel{version: version, dir: filepath.Join(cache, version)}
	if _, err := os.Stat(k.dir); err == nil {
		return k, nil
	}
	log.Info("fetching Debian's kernel", "version", version, "folder", k.dir)
	if err := unpack(ctx, version, k.dir); err != nil {
		// The lists may be older than the archive, which keeps no old packages.
		if _, uerr := output(ctx, "", "apt-get", "update", "-qq"); uerr != nil {
			return kernel{}, errors.Join(err, uerr)
		}
		if k.version, err = newest(ctx); err != nil {
			return kernel{}, err
		}
		k.dir = filepath.Join(cache, k.version)
		if _, err := os.Stat(k.dir); err == nil {
			return k, nil
		}
		if err := unpack(ctx, k.version, k.dir); err != nil {
			return kernel{}, fmt.Errorf("kernel %s: %w", k.version, err)
		}
	}
	return k, nil
}

// newest asks apt which kernel the metapackage stands for.
func newest(ctx context.Context) (string, error) {
	out, err := output(ctx, "", "apt-cache", "depends", "--important", metapackage)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(out)) {
		if _, version, ok := strings.Cut(strings.TrimSpace(line), "Depends: linux-image-"); ok {
			return version, nil
		}
	}
	return "", fmt.Errorf("apt knows no package %s: Debian's archive must be among its sources", metapackage)
}

// unpack makes dir out of the kernel's package, whole or not at all.
func unpack(ctx context.Context, version, dir string) error {
	tmp, err := os.MkdirTemp(filepath.Dir(dir), "unpacking-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	// apt reads as a user of its own where that user can.
	if err := os.Chmod(tmp, 0o755); err != nil {
		return err
	}
	if _, err := output(ctx, tmp, "apt-get", "download", "-qq", "linux-image-"+version); err != nil {
		return err
	}
	debs, err := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if err != nil || len(debs) != 1 {
		return fmt.Errorf("apt-get download left %d packages, not one", len(debs))
	}
	root := filepath.Join(tmp, "root")
	if _, err := output(ctx, "", "dpkg-deb", "-x", debs[0], root); err != nil {
		return err
	}
	if _, err := output(ctx, "", "depmod", "-b", root, version); err != nil {
		return err
	}
	if err := os.Chmod(root, 0o755); err != nil {
		return err
	}
	return os.Rename(root, dir)
}

// moduleFiles lists the files of the named modules and of all they need, in the order in
// which they must be loaded. What the kernel has built in is left out.
func (k kernel) moduleFiles(ctx context.Context, names ...string) ([]string, error) {
	var files []string
	seen := map[string]bool{}
	for _, name := range names {
		out, err := output(ctx, "", "modprobe", "-d", k.dir, "-S", k.version, "--show-depends", name)
		if err != nil {
			return nil, fmt.Errorf("module %s of kernel %s: %w", name, k.version, err)
		}
		for s := bufio.NewScanner(bytes.NewReader(out)); s.Scan(); {
			if f := strings.Fields(s.Text()); len(f) >= 2 && f[0] == "insmod" && !seen[f[1]] {
				seen[f[1]] = true
				files = append(files, f[1])
			}
		}
	}
	return files, nil
}

// output runs a command; its error carries what the command complained of.
func output(ctx context.Context, dir, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return out, nil
}

// lock waits for the file's lock, which also ends with this process.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { f.Close() }, nil
}
