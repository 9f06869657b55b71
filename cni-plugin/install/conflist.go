package install

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/causeway-net/causeway/cni-plugin/wire"
)

const (
	// File is the name of the network configuration list. Runtimes take the first of the
	// folder.
	File = "10-causeway.conflist"
	// Network is the name of the network, Calico's: addresses and links are known by it.
	Network = "k8s-pod-network"
	// cniVersion is what every runtime in use speaks: containerd 1.7 (libcni 1.1) fails
	// on results of 1.1.0. Those that speak it find it in cniVersions, which the others do
	// not read (libcni 1.2, CNI spec 1.1.0 section 1), and so execute STATUS and GC.
	cniVersion = "1.0.0"
)

var cniVersions = []string{cniVersion, "1.1.0"}

// Content is the network configuration list: Causeway's plugin, host ports, and bandwidth
// limits. The MTU is the agent's to choose. socket is where the agent listens.
func Content(socket string) []byte {
	plugin := map[string]any{"type": Plugin}
	if socket != "" && socket != wire.DefaultSocket {
		plugin["socket"] = socket
	}
	text, err := json.MarshalIndent(struct {
		CNIVersion  string           `json:"cniVersion"`
		CNIVersions []string         `json:"cniVersions"`
		Name        string           `json:"name"`
		Plugins     []map[string]any `json:"plugins"`
	}{cniVersion, cniVersions, Network, []map[string]any{
		plugin,
		{"type": "portmap", "snat": true, "capabilities": map[string]bool{"portMappings": true}},
		{"type": "bandwidth", "capabilities": map[string]bool{"bandwidth": true}},
	}}, "", "  ")
	if err != nil {
		panic(err) // strings and booleans
	}
	return append(text, '\n')
}

// Conflist keeps the network configuration list in the runtime's folder.
type Conflist struct {
	dir     string
	content []byte
	ready   func() error
	log     *slog.Logger

	mu      sync.Mutex // guards what follows
	err     error
	earlier []string // configurations that the runtime prefers
}

// NewConflist makes a Conflist for the folder dir. The file is written once ready returns
// nil, and stays from then on: a runtime whose configuration goes away takes its node out
// of service, and while the agent is away for an upgrade there is no need to.
func NewConflist(dir, socket string, ready func() error, log *slog.Logger) *Conflist {
	return &Conflist{dir: dir, content: Content(socket), ready: ready, log: log.With("task", "conflist")}
}

func (c *Conflist) String() string { return "conflist" }

// Warnings says what keeps the runtime from using the configuration.
func (c *Conflist) Warnings() (out []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		out = append(out, "network configuration of the container runtime: "+c.err.Error())
	}
	for _, name := range c.earlier {
		out = append(out, fmt.Sprintf("%s sorts before %s: the container runtime uses that one; remove it from %s", name, File, c.dir))
	}
	return out
}

// Run writes the file once the agent is ready, and again whenever it was changed or
// removed, until ctx is cancelled.
func (c *Conflist) Run(ctx context.Context) error {
	for c.ready() != nil {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(50 * time.Millisecond):
		}
	}
	for first := true; ; first = false {
		again, err := c.keep(ctx, first)
		if ctx.Err() != nil {
			return nil
		}
		c.mu.Lock()
		changed := err != nil && (c.err == nil || c.err.Error() != err.Error())
		c.err = err
		c.mu.Unlock()
		if changed {
			c.log.Error("network configuration not kept", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(again):
		}
	}
}

// rest is the time between two writes at least: whoever else writes the file is not to be
// outrun. look is how often the folder is looked at where the kernel tells of changes, and
// lookBlind where it does not: inotify instances are few (fs.inotify.max_user_instances),
// and other programs of the node may have them all.
const (
	rest      = time.Second
	look      = 30 * time.Second
	lookBlind = 2 * time.Second
)

// keep looks at the folder until something changes, and puts the file right. It returns
// how long to wait before it is called again.
func (c *Conflist) keep(ctx context.Context, first bool) (time.Duration, error) {
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return rest, err
	}
	var events <-chan fsnotify.Event
	wait := lookBlind
	if notify, err := fsnotify.NewWatcher(); err == nil {
		defer notify.Close()
		if notify.Add(c.dir) == nil {
			events, wait = notify.Events, look
		}
		go func() { // events that were lost are made up for by the next look
			for range notify.Errors {
			}
		}()
	}
	for {
		wrote, err := c.write()
		if err != nil {
			return rest, err
		}
		if wrote && !first {
			c.log.Warn("somebody changed or removed the network configuration; written again", "file", filepath.Join(c.dir, File))
		} else if wrote {
			c.log.Info("network configuration written", "file", filepath.Join(c.dir, File))
		}
		c.setEarlier()
		if wrote && !first {
			return rest, nil
		}
		first = false
		select {
		case <-ctx.Done():
			return 0, nil
		case ev := <-events:
			if ev.Name == c.dir {
				return rest, nil // the folder itself went away
			}
		case <-time.After(wait):
			return 0, nil // and watch anew: the folder may be another one
		}
	}
}

// write puts the file right and reports whether it was not.
func (c *Conflist) write() (bool, error) {
	path := filepath.Join(c.dir, File)
	have, err := os.ReadFile(path)
	switch {
	case err == nil && bytes.Equal(have, c.content):
		return false, nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return false, err
	}
	return true, writeFile(path, c.content, 0o644)
}

// setEarlier notes the configurations that sort before ours; libcni takes these endings
// (libcni.ConfFiles).
func (c *Conflist) setEarlier() {
	entries, _ := os.ReadDir(c.dir) // sorted
	var earlier []string
	for _, e := range entries {
		if !e.IsDir() && e.Name() < File && slices.Contains([]string{".conf", ".conflist", ".json"}, filepath.Ext(e.Name())) {
			earlier = append(earlier, e.Name())
		}
	}
	c.mu.Lock()
	fresh := !slices.Equal(earlier, c.earlier)
	c.earlier, c.err = earlier, nil
	c.mu.Unlock()
	if fresh && len(earlier) > 0 {
		c.log.Warn("the container runtime has configurations that it prefers to Causeway's", "folder", c.dir, "files", earlier)
	}
}

// RemoveConflist removes the file from the folder dir. It returns what it did.
func RemoveConflist(dir string) (done []string, err error) {
	path := filepath.Join(dir, File)
	switch err := os.Remove(path); {
	case err == nil:
		return []string{"network configuration " + path + " removed"}, nil
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	default:
		return nil, err
	}
}
