package install

import (
	"context"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
)

// sources is a folder with the three programs; portmap is a real build of the upstream
// plugin, so that its version can be read.
func sources(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if out, err := exec.Command("go", "build", "-o", dir+"/", "github.com/containernetworking/plugins/plugins/meta/portmap").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	put(t, dir, Plugin, "#!/bin/sh\necho v1\n")
	put(t, dir, "bandwidth", "#!/bin/sh\necho bandwidth\n")
	return dir
}

func put(t *testing.T, dir, name, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o755); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, dir, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestPlace(t *testing.T) {
	source, bin := sources(t), filepath.Join(t.TempDir(), "bin")
	if v := pluginVersion(filepath.Join(source, "portmap")); v == "" {
		t.Fatal("no version in portmap")
	}
	place := func(want ...string) {
		t.Helper()
		done, err := Place(context.Background(), source, bin)
		if err != nil {
			t.Fatal(err)
		}
		for i, w := range want {
			if !strings.Contains(done[i], w) {
				t.Errorf("did %q, want %q", done[i], w)
			}
		}
	}
	place("causeway-cni: installed", "portmap: installed", "bandwidth: installed")
	if st, err := os.Stat(filepath.Join(bin, Plugin)); err != nil || st.Mode().Perm() != 0o755 {
		t.Fatal(st.Mode(), err)
	}
	os.Chmod(filepath.Join(bin, Plugin), 0o600)
	place("mode set to 0755", "is there already", "is there already")

	// While the runtime executes the old one, which refuses to be written to (ETXTBSY).
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	old, _ := os.ReadFile(sleep)
	put(t, bin, Plugin, string(old))
	running := exec.Command(filepath.Join(bin, Plugin), "60")
	if err := running.Start(); err != nil {
		t.Fatal(err)
	}
	defer running.Wait()
	defer running.Process.Kill()
	place("replaced")
	if !strings.Contains(get(t, bin, Plugin), "v1") {
		t.Error("the plugin is not the source's")
	}

	// Others' programs of unknown version: one speaks our CNI version and one does not.
	speaking := "#!/bin/sh\necho '{\"cniVersion\":\"1.0.0\",\"supportedVersions\":[\"0.4.0\",\"1.0.0\"]}'\n"
	mute := "#!/bin/sh\nexit 1\n"
	put(t, bin, "portmap", speaking)
	put(t, bin, "bandwidth", mute)
	place("is there", "portmap: kept", "bandwidth: installed; the one that was there")
	if get(t, bin, "portmap") != speaking || get(t, bin, "bandwidth"+aside) != mute {
		t.Error("others' programs were not kept")
	}
	// One of the same version and other bytes stays.
	os.Remove(filepath.Join(bin, "portmap"))
	if out, err := exec.Command("go", "build", "-o", bin+"/", "-ldflags=-s", "github.com/containernetworking/plugins/plugins/meta/portmap").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	place("", "portmap: kept: version ")

	done, err := Remove(source, bin)
	if err != nil || len(done) != 3 {
		t.Fatal(done, err)
	}
	if get(t, bin, "bandwidth") != mute {
		t.Error("what was there before did not come back")
	}
	if entries, _ := os.ReadDir(bin); len(entries) != 2 { // it, and the portmap that is not ours
		t.Error(entries)
	}
	if done, err := Remove(source, bin); err != nil || len(done) != 0 {
		t.Error("removed again:", done, err)
	}

	os.Remove(filepath.Join(source, "bandwidth"))
	if done, err := Place(context.Background(), source, bin); err == nil || !strings.Contains(err.Error(), "bandwidth") || len(done) != 2 {
		t.Error("a missing source:", done, err)
	}
}

// TestContent: the list is one that the runtime's library reads, and takes 1.1.0 from.
func TestContent(t *testing.T) {
	list, err := libcni.ConfListFromBytes(Content("/run/causeway/cni.sock"))
	if err != nil {
		t.Fatal(err)
	}
	if list.Name != Network || list.CNIVersion != "1.1.0" || len(list.Plugins) != len(Programs) {
		t.Errorf("%+v", list)
	}
	for i, p := range list.Plugins {
		if p.Network.Type != Programs[i] {
			t.Errorf("plugin %d is %s", i, p.Network.Type)
		}
	}
	if caps := list.Plugins[1].Network.Capabilities; !caps["portMappings"] {
		t.Error(caps)
	}
	if strings.Contains(string(Content("")), "socket") || !strings.Contains(string(Content("/run/x/cni.sock")), `"socket": "/run/x/cni.sock"`) {
		t.Error("socket")
	}
}

func TestConflist(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "net.d")
	var ready atomic.Bool
	asked := make(chan struct{}, 1000)
	c := NewConflist(dir, "", func() error {
		select {
		case asked <- struct{}{}:
		default:
		}
		if ready.Load() {
			return nil
		}
		return os.ErrProcessDone
	}, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- c.Run(ctx) }()
	eventually := func(what string, holds func() bool) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); !holds(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("not within 10 s: " + what)
			}
		}
	}
	right := func() bool {
		b, err := os.ReadFile(filepath.Join(dir, File))
		return err == nil && string(b) == string(c.content)
	}
	<-asked
	<-asked
	if _, err := os.Stat(dir); err == nil {
		t.Fatal("written before the agent is ready")
	}
	ready.Store(true)
	eventually("the file is written", right)
	ready.Store(false) // it stays
	put(t, dir, File, "{}")
	eventually("a changed file is put right", right)
	os.Remove(filepath.Join(dir, File))
	eventually("a removed file comes back", right)
	os.RemoveAll(dir)
	eventually("a removed folder comes back", right)
	put(t, dir, "05-other.conf", "{}")
	put(t, dir, "05-no.txt", "")
	put(t, dir, "99-other.conflist", "{}")
	eventually("an earlier configuration is reported", func() bool {
		return slices.Equal(c.Warnings(), []string{"05-other.conf sorts before 10-causeway.conflist: the container runtime uses that one; remove it from " + dir})
	})
	os.Remove(filepath.Join(dir, "05-other.conf"))
	eventually("the report goes away", func() bool { return c.Warnings() == nil })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if !right() {
		t.Error("the file went away with the agent")
	}
	if did, err := RemoveConflist(dir); err != nil || len(did) != 1 {
		t.Error(did, err)
	}
	if did, err := RemoveConflist(dir); err != nil || len(did) != 0 {
		t.Error(did, err)
	}
}
