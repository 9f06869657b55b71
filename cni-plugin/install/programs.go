// Package install owns what Causeway puts on the host for the container runtime: the
// plugins' programs in the runtime's folder, and the network configuration list that tells
// the runtime to use them. Every file is written whole, beside its place, and moved there,
// so that the runtime never meets half of one and may execute the old one meanwhile.
package install

import (
	"bytes"
	"context"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/version"
)

// Plugin is Causeway's own program; the others come with it.
const Plugin = "causeway-cni"

// Programs are all that the network configuration list names.
var Programs = []string{Plugin, "portmap", "bandwidth"}

// aside is added to the name of another's program that had to make way.
const aside = ".before-causeway"

// Place copies Programs from the folder source to the folder bin, and returns what it did,
// a sentence for each program. It is idempotent.
//
// Causeway's own plugin becomes source's whatever was there: it and the agent belong
// together, on the way back to an older version too. The others are standard plugins whose
// names anybody may use: one of the same or a newer version stays, and so does one of
// unknown version that speaks the CNI version of our list; any other is put aside.
func Place(ctx context.Context, source, bin string) (done []string, err error) {
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return nil, err
	}
	var errs []error
	for _, name := range Programs {
		what, err := place(ctx, name, source, bin)
		if err != nil {
			errs = append(errs, fmt.Errorf("program %s: %w", name, err))
			continue
		}
		done = append(done, name+": "+what)
	}
	return done, errors.Join(errs...)
}

func place(ctx context.Context, name, source, bin string) (string, error) {
	fresh, err := os.ReadFile(filepath.Join(source, name))
	if err != nil {
		return "", err
	}
	to := filepath.Join(bin, name)
	switch st, err := os.Lstat(to); {
	case errors.Is(err, fs.ErrNotExist):
		return "installed", writeFile(to, fresh, 0o755)
	case err != nil:
		return "", err
	case st.IsDir():
		return "", fmt.Errorf("%s is a folder: remove it", to)
	default:
		// A link, as of distributions that keep their plugins elsewhere, is followed to
		// compare and replaced itself.
		if same(to, fresh) {
			if st.Mode().IsRegular() && st.Mode().Perm() != 0o755 {
				return "is there already; mode set to 0755", os.Chmod(to, 0o755)
			}
			return "is there already", nil
		}
	}
	if name == Plugin {
		return "replaced", writeFile(to, fresh, 0o755)
	}
	have, want := pluginVersion(to), pluginVersion(filepath.Join(source, name))
	if newer, err := version.GreaterThanOrEqualTo(have, want); have != "" && want != "" && err == nil {
		if newer {
			return fmt.Sprintf("kept: version %s is there, ours is %s", have, want), nil
		}
	} else if speaks(ctx, to) {
		return "kept: a program of unknown version is there, and speaks CNI " + cniVersion, nil
	}
	if err := os.Rename(to, to+aside); err != nil {
		return "", err
	}
	if have == "" {
		have = "of unknown version, which does not speak CNI " + cniVersion + ","
	}
	return fmt.Sprintf("installed; the one that was there, %s, is now %s", have, name+aside), writeFile(to, fresh, 0o755)
}

func same(path string, content []byte) bool {
	have, err := os.ReadFile(path)
	return err == nil && bytes.Equal(have, content)
}

// pluginVersion is the version of a plugin of github.com/containernetworking/plugins, as
// "1.9.1", from what Go's linker wrote into it; empty when it is not one or does not tell.
func pluginVersion(path string) string {
	const module = "github.com/containernetworking/plugins"
	info, err := buildinfo.ReadFile(path)
	if err != nil || !strings.HasPrefix(info.Path, module+"/") {
		return ""
	}
	v := info.Main.Version
	for _, d := range info.Deps {
		if d.Path == module && info.Main.Path != module {
			v = d.Version
		}
	}
	v, _, _ = strings.Cut(strings.TrimPrefix(v, "v"), "-")
	if _, _, _, err := version.ParseVersion(v); err != nil {
		return ""
	}
	return v
}

// speaks asks the program for the CNI versions it knows (CNI spec 1.1.0, section 2,
// "VERSION").
func speaks(ctx context.Context, path string) bool {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, path)
	cmd.Env = []string{"CNI_COMMAND=VERSION", "CNI_NETNS=dummy", "CNI_IFNAME=dummy", "CNI_PATH=dummy", "CNI_CONTAINERID=dummy"}
	cmd.Stdin = strings.NewReader(`{"cniVersion":"` + cniVersion + `"}`)
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	var answer struct {
		SupportedVersions []string `json:"supportedVersions"`
	}
	return err == nil && json.Unmarshal(out, &answer) == nil && slices.Contains(answer.SupportedVersions, cniVersion)
}

// Remove takes back what Place did: Causeway's plugin, and those of the others that are
// byte for byte source's; what had been put aside returns to its place. It returns what it
// did.
func Remove(source, bin string) (done []string, err error) {
	var errs []error
	for _, name := range Programs {
		at := filepath.Join(bin, name)
		if _, err := os.Lstat(at); err == nil {
			fresh, err := os.ReadFile(filepath.Join(source, name))
			if name != Plugin && (err != nil || !same(at, fresh)) {
				continue
			}
			if err := os.Remove(at); err != nil {
				errs = append(errs, err)
				continue
			}
			done = append(done, "program "+at+" removed")
		}
		switch err := os.Rename(at+aside, at); {
		case err == nil:
			done = append(done, "program "+at+": the one that was there before Causeway is back")
		case !errors.Is(err, fs.ErrNotExist):
			errs = append(errs, err)
		}
	}
	return done, errors.Join(errs...)
}

// writeFile writes a file beside its place, makes it durable and moves it there. The name
// it has meanwhile begins with a dot and has no ending that a runtime looks for.
func writeFile(path string, content []byte, mode os.FileMode) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".new-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	_, err = f.Write(content)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
