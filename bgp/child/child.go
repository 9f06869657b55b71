package child

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// DefaultUID is the speaker's user and group unless configured: "nonroot" of the distroless
// images.
const DefaultUID = 65532

// Config says how to start the speaker.
type Config struct {
	// Exe is the absolute path of the program. Required.
	Exe string
	// Args follow the program's name: those that make it run speaker.Run, as "speaker".
	Args []string
	// RunDir is the agent's own folder, as /run/causeway. The child's lies in it as "speaker",
	// and gobgp.sock there is a link to the child's socket. Required.
	RunDir string
	// UID and GID are the child's; 0 means DefaultUID. The child never runs as root.
	UID, GID int
	// AllowWrites lets everyone who reaches the socket change the speaker.
	AllowWrites bool
	// TCPAddr is an additional gRPC address on loopback, as 127.0.0.1:50051; empty: none.
	TCPAddr string
	// Log gets the child's lines with component=speaker. Its level at the start is the
	// child's. Required.
	Log *slog.Logger
	// MemoryLimit is what the agent and the child may use together, in bytes; 0 means the limit
	// of the agent's cgroup. It is a limit of manners: what the child really needs it takes.
	MemoryLimit int64
	// ReadyWithin bounds the start; 0 means 10 s.
	ReadyWithin time.Duration
}

func (cfg *Config) complete() error {
	if cfg.UID == 0 {
		cfg.UID = DefaultUID
	}
	if cfg.GID == 0 {
		cfg.GID = DefaultUID
	}
	if cfg.MemoryLimit == 0 {
		cfg.MemoryLimit = cgroupLimit("/sys/fs/cgroup", "/proc/self/cgroup")
	}
	if cfg.ReadyWithin == 0 {
		cfg.ReadyWithin = 10 * time.Second
	}
	switch {
	case !filepath.IsAbs(cfg.Exe):
		return fmt.Errorf("Exe %q: want an absolute path", cfg.Exe)
	case !filepath.IsAbs(cfg.RunDir):
		return fmt.Errorf("RunDir %q: want an absolute path", cfg.RunDir)
	case cfg.MemoryLimit < 0:
		return fmt.Errorf("MemoryLimit %d: want a number of bytes, or 0 for the cgroup's", cfg.MemoryLimit)
	case cfg.UID < 0 || cfg.GID < 0:
		return fmt.Errorf("UID %d, GID %d: want positive numbers", cfg.UID, cfg.GID)
	case cfg.Log == nil:
		return errors.New("Log: missing")
	}
	if cfg.TCPAddr != "" {
		return CheckTCPAddr(cfg.TCPAddr)
	}
	return nil
}

// Instance is one life of the speaker.
type Instance struct {
	cfg     Config
	proc    *os.Process
	control *os.File // our end of the socket pair
	dir     *os.File // the child's folder
	dirFD   uintptr  // its descriptor; the file lives as long as the child
	token   string

	stopping sync.Once
	stopped  chan struct{} // closed when Stop was called

	died  chan struct{}
	death Death // written before died is closed
}

// Start starts the speaker and returns when it answers gRPC calls. ctx bounds the start, not
// the life. The caller must end it with Stop; it ends by itself when the caller's process does.
func Start(ctx context.Context, cfg Config) (*Instance, error) {
	inst, err := launch(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("speaker: %w", err)
	}
	return inst, nil
}

func launch(ctx context.Context, cfg Config) (*Instance, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, cfg.ReadyWithin)
	defer cancel()
	dir, err := prepare(cfg)
	if err != nil {
		return nil, err
	}
	p, err := newPlumbing(dir)
	if err != nil {
		dir.Close()
		return nil, err
	}
	inst := &Instance{
		cfg: cfg, control: p.control, dir: dir, dirFD: dir.Fd(), token: rand.Text(),
		stopped: make(chan struct{}), died: make(chan struct{}),
	}
	started, ended := make(chan spawned, 1), make(chan *os.ProcessState, 1)
	go spawn(cfg, p.child, dir, started, ended)
	s := <-started
	p.closeChild()
	if s.err != nil {
		p.close()
		dir.Close()
		return nil, s.err
	}
	inst.proc = s.proc
	expose(s.proc.Pid)
	if s.landlock != nil {
		cfg.Log.Warn("the speaker can see the file system (as its own user)", "component", "speaker", "reason", s.landlock)
	}
	go inst.attend(p, ended)

	level := slog.LevelError
	for _, l := range []slog.Level{slog.LevelWarn, slog.LevelInfo, slog.LevelDebug} {
		if cfg.Log.Enabled(ctx, l) {
			level = l
		}
	}
	hello, err := json.Marshal(Handover{Token: inst.token, AllowWrites: cfg.AllowWrites, TCPAddr: cfg.TCPAddr, LogLevel: level, Memory: memoryFor(cfg.MemoryLimit)})
	if err == nil {
		_, err = p.control.Write(append(hello, '\n'))
	}
	if err == nil {
		err = inst.awaitReady(ctx)
	}
	if err == nil {
		err = inst.probe(ctx)
	}
	if err != nil {
		return nil, inst.abandon(ctx, err)
	}
	return inst, nil
}

// awaitReady waits for the child's word; its end of the socket pair closes when it dies.
func (i *Instance) awaitReady(ctx context.Context) error {
	unhook := context.AfterFunc(ctx, func() { _ = i.control.SetReadDeadline(time.Now()) })
	defer unhook()
	buf := make([]byte, len(wordReady)+1)
	for n := 0; n < len(buf); {
		m, err := i.control.Read(buf[n:])
		if err != nil {
			if ctx.Err() != nil {
				return fmt.Errorf("not ready: %w", ctx.Err())
			}
			return fmt.Errorf("not ready: %w", err)
		}
		n += m
	}
	if string(buf) != wordReady+"\n" {
		return fmt.Errorf("not ready: it said %q", buf)
	}
	return nil
}

// abandon ends a child that never came up and says why it did not, from its own words if it
// left any.
func (i *Instance) abandon(ctx context.Context, cause error) error {
	select {
	case <-i.died:
	case <-ctx.Done(): // it hangs, or is slow to go
		i.kill()
		<-i.died
		return cause
	}
	return fmt.Errorf("%w: %w", cause, i.death.Err)
}

// prepare makes the child's folder, free of a socket that an earlier life left, and the link
// to its socket.
func prepare(cfg Config) (*os.File, error) {
	if err := os.MkdirAll(cfg.RunDir, 0o755); err != nil {
		return nil, err
	}
	path := filepath.Join(cfg.RunDir, "speaker")
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	// The folder was another user's to fill: nothing in it is followed.
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	dir := os.NewFile(uintptr(fd), path)
	err = errors.Join(dir.Chown(cfg.UID, cfg.GID), dir.Chmod(0o700))
	// Nor is what it left believed to be a socket: a folder would keep the next one from starting.
	if root, e := os.OpenRoot(path); e != nil {
		err = errors.Join(err, e)
	} else {
		err = errors.Join(err, root.RemoveAll(SocketName), root.Close())
	}
	link, target := filepath.Join(cfg.RunDir, SocketName), filepath.Join("speaker", SocketName)
	if now, e := os.Readlink(link); e != nil || now != target {
		tmp := link + ".new"
		_ = os.Remove(tmp)
		err = errors.Join(err, os.Symlink(target, tmp), os.Rename(tmp, link))
	}
	if err != nil {
		dir.Close()
		return nil, err
	}
	return dir, nil
}

// PID is the child's process id.
func (i *Instance) PID() int { return i.proc.Pid }

// Died is closed when the child has ended.
func (i *Instance) Died() <-chan struct{} { return i.died }

// Death says how it ended. It waits for that.
func (i *Instance) Death() Death {
	<-i.died
	return i.death
}

// Stop ends the child and waits for it. A graceful stop tells the peers (CEASE, RFC 4486), and
// they drop the routes; otherwise the connections just end, and peers with graceful restart
// keep the routes. When ctx is done first, the child is killed and Stop returns ctx's error.
func (i *Instance) Stop(ctx context.Context, graceful bool) error {
	i.stopping.Do(func() { close(i.stopped) })
	if !graceful {
		i.kill()
	} else if _, err := i.control.WriteString(wordStop + "\n"); err != nil {
		i.kill()
	}
	select {
	case <-i.died:
		return nil
	case <-ctx.Done():
		i.kill()
		return fmt.Errorf("speaker: stop: %w", ctx.Err())
	}
}

// kill ends the child at once. Without CAP_KILL the signal is refused; the closed socket pair
// says the same.
func (i *Instance) kill() {
	_ = i.proc.Signal(syscall.SIGKILL)
	_ = i.control.Close()
}

// attend sees one child through to its end.
func (i *Instance) attend(p *plumbing, ended <-chan *os.ProcessState) {
	var except netip.AddrPort
	if i.cfg.TCPAddr != "" {
		except, _ = netip.ParseAddrPort(i.cfg.TCPAddr)
	}
	var (
		wg       sync.WaitGroup
		spoken   string
		evidence crash
	)
	wg.Go(func() { spoken = forward(p.stderr, i.cfg.Log.With("component", "speaker")) })
	wg.Go(func() {
		evidence = watchCrash(p.crash, func() ([]Heard, error) { return heard(i.proc.Pid, i.cfg.UID, except) })
	})
	state := <-ended
	// Nobody else holds the other ends; the deadline is for the day that is not so.
	for _, f := range []*os.File{p.stderr, p.crash} {
		_ = f.SetReadDeadline(time.Now().Add(time.Second))
	}
	wg.Wait()
	p.close()
	i.dir.Close()
	if evidence.err != nil {
		i.cfg.Log.Warn("cannot tell which peer spoke last before the speaker crashed", "component", "speaker", "error", evidence.err)
	}
	stopped := false
	select {
	case <-i.stopped:
		stopped = true
	default:
	}
	i.death = newDeath(state, stopped, spoken, evidence)
	close(i.died)
}

// newDeath draws the conclusion.
func newDeath(state *os.ProcessState, stopped bool, spoken string, evidence crash) Death {
	d := Death{At: time.Now(), Stopped: stopped, Killed: stopped}
	text := evidence.text
	r := parseReport(text)
	// A fatal error of the runtime is named on stderr before the report begins.
	if first := parseReport(spoken); r.headline == "" {
		r.headline = first.headline
		r.sent = r.sent || first.sent
	}
	if state != nil {
		if ws, ok := state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			d.Signal = ws.Signal()
		}
	}
	switch {
	case stopped:
		d.Err = errors.New("speaker: stopped")
	case text != "" && r.sent:
		d.Killed = true
		d.Err = fmt.Errorf("speaker: ended by a signal that somebody sent: %s", r.headline)
	case text != "":
		d.Trace = crashTrace(spoken, text)
		d.Suspect, d.LastSpeakers = accuse(r, evidence.heard)
		d.Err = fmt.Errorf("speaker: %s", r.headline)
	case d.Signal != 0:
		d.Killed = true
		d.Err = fmt.Errorf("speaker: killed by %s", unix.SignalName(d.Signal))
	case spoken != "":
		d.Err = fmt.Errorf("speaker: %v: %s", state, lastLine(spoken))
	default:
		d.Err = fmt.Errorf("speaker: %v", state)
	}
	return d
}
