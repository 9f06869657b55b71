// Package machine runs computers as sets of Linux namespaces: each has a network, mount,
// pid, uts, ipc and cgroup namespace of its own, its own /run, /sys and /proc, a first
// process that starts daemons again when they end, and a place in every cgroup hierarchy.
//
// It owns these namespaces, processes, cgroups and the machine's folder, from Boot to
// PowerOff. It wires no network: a booted machine has loopback only.
//
// A program that uses it calls Reexec first thing in main or TestMain.
package machine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Config of a machine. Paths are absolute.
type Config struct {
	Hostname string // required
	// Dir, required, holds the machine's state: control socket, logs, and whatever Binds
	// point to. It stays when the machine is off.
	Dir string
	// Cgroup is the name of the machine's group in every cgroup v1 hierarchy, below the
	// group of the caller. Required, and unlike any other machine's.
	Cgroup string
	// Dirs are folders of the machine that live in Dir/fs and survive PowerOff:
	// "/var/lib/kubelet". All else below /etc, /opt, /var and /run does not.
	Dirs []string
	// Files are written when the machine boots, below /etc, /opt or /var: path to content.
	Files map[string]string
	// Masks show a value of a sysctl ("vm.panic_on_oom") and keep writes from the kernel:
	// for settings that are the whole computer's.
	Masks map[string]string
	// Sysctls of the machine's network namespace: "net.ipv4.ip_forward": "1".
	Sysctls map[string]string
}

// Machine is a computer that is on.
type Machine struct {
	dir  string
	init process
}

// record is what Dir/machine.json says of a machine that is on, or was.
type record struct {
	Init    process  `json:"init"`
	Cgroups []string `json:"cgroups"` // folders, made by Boot
}

func recordPath(dir string) string { return filepath.Join(dir, "machine.json") }

// Boot starts a machine and returns when its first process serves. It is an error if the
// machine of that Dir is on.
func Boot(ctx context.Context, cfg Config) (*Machine, error) {
	if !reexecReady {
		return nil, errors.New("machine: the program must call machine.Reexec first thing in main or TestMain")
	}
	m, err := boot(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("machine %s: %w", cfg.Hostname, err)
	}
	return m, nil
}

func boot(ctx context.Context, cfg Config) (*Machine, error) {
	if on, err := Open(cfg.Dir); err == nil && on.init.alive() {
		return nil, fmt.Errorf("is on already, as process %d", on.init.PID)
	}
	if len(controlPath(cfg.Dir)) > 107 {
		return nil, fmt.Errorf("%s: the path of a socket has 107 bytes at most; choose a shorter folder", controlPath(cfg.Dir))
	}
	if err := os.MkdirAll(filepath.Join(cfg.Dir, "logs"), 0o755); err != nil {
		return nil, err
	}
	groups, err := cgroupDirs(cfg.Cgroup)
	if err != nil {
		return nil, err
	}
	log, err := os.OpenFile(filepath.Join(cfg.Dir, "logs", "init.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	configR, configW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer configW.Close()
	answerR, answerW, err := os.Pipe()
	if err != nil {
		configR.Close()
		return nil, err
	}
	defer answerR.Close()
	cmd := &exec.Cmd{Path: "/proc/self/exe", Args: []string{initName, cfg.Dir}, Dir: "/", Env: []string{"PATH=" + Path}, Stdin: configR,
		Stdout: log, Stderr: log, ExtraFiles: []*os.File{answerW}}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true,
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC}
	err = cmd.Start()
	configR.Close()
	answerW.Close()
	if err != nil {
		return nil, fmt.Errorf("start init: %w", err)
	}
	go cmd.Wait() // reaps it when it ends
	m := &Machine{dir: cfg.Dir}
	// Until it has its configuration init does nothing, and it ends when this process
	// does: what follows is recorded before it can leave anything behind.
	if m.init, err = processOf(cmd.Process.Pid); err == nil {
		err = writeJSON(recordPath(cfg.Dir), record{Init: m.init, Cgroups: groups})
	}
	if err == nil {
		err = makeCgroups(groups)
	}
	if err == nil {
		err = json.NewEncoder(configW).Encode(initConfig{Config: cfg, Cgroups: groups})
	}
	if err == nil {
		err = m.awaitAnswer(ctx, answerR)
	}
	if err != nil {
		return nil, errors.Join(err, m.PowerOff(context.WithoutCancel(ctx)))
	}
	return m, nil
}

// awaitAnswer returns when init has closed its answer without a word.
func (m *Machine) awaitAnswer(ctx context.Context, answer *os.File) error {
	stop := context.AfterFunc(ctx, func() { answer.Close() })
	defer stop()
	complaint, err := io.ReadAll(answer)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return fmt.Errorf("init: %w", err)
	case len(complaint) > 0:
		return errors.New(strings.TrimSpace(string(complaint)))
	case !m.init.alive():
		return fmt.Errorf("init ended: %s", tail(m.LogPath("init")))
	}
	return nil
}

// Open returns the machine of a folder, on or off.
func Open(dir string) (*Machine, error) {
	var r record
	b, err := os.ReadFile(recordPath(dir))
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("%s: %w", recordPath(dir), err)
	}
	return &Machine{dir: dir, init: r.Init}, nil
}

// On reports whether the machine's first process lives.
func (m *Machine) On() bool { return m.init.alive() }

// Root is where this computer sees the machine's file system.
func (m *Machine) Root() string { return fmt.Sprintf("/proc/%d/root", m.init.PID) }

// NetNS is the path of the machine's network namespace, as long as it is on.
func (m *Machine) NetNS() string { return fmt.Sprintf("/proc/%d/ns/net", m.init.PID) }

// Dir is the machine's folder.
func (m *Machine) Dir() string { return m.dir }

// LogPath is the file, on this computer, with what a daemon said.
func (m *Machine) LogPath(daemon string) string {
	return filepath.Join(m.dir, "logs", daemon+".log")
}

// PowerOff ends all processes of the machine at once, as a pulled plug does: its network
// namespace and mounts go, Dirs stay. Its cgroups are removed, since a kubelet that finds
// groups of pods it does not know syncs nothing for minutes.
func (m *Machine) PowerOff(ctx context.Context) error {
	if err := m.init.end(ctx); err != nil {
		return fmt.Errorf("machine %s: %w", filepath.Base(m.dir), err)
	}
	var r record
	b, err := os.ReadFile(recordPath(m.dir))
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	if err != nil {
		return err
	}
	for _, dir := range r.Cgroups {
		if err := removeCgroup(ctx, dir); err != nil {
			return fmt.Errorf("machine %s: %w", filepath.Base(m.dir), err)
		}
	}
	if err := os.Remove(controlPath(m.dir)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func writeJSON(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	tmp := path + ".new"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// tail returns the end of a file, for error messages.
func tail(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	const most = 2000
	if len(b) > most {
		b = append([]byte("..."), b[len(b)-most:]...)
	}
	return strings.TrimSpace(string(b))
}
