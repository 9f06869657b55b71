package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Down removes the lab of that name, whole or half built: it ends its processes, deletes
// its links and namespaces and its folder. A lab that is not there is no error. stateRoot
// is empty for the default.
func Down(ctx context.Context, stateRoot, name string) error {
	if stateRoot == "" {
		stateRoot = DefaultStateRoot
	}
	if !validLabName(name) {
		return fmt.Errorf("lab name %q: not a lab's name", name)
	}
	unlock, err := lockLab(stateRoot, name)
	if err != nil {
		return err
	}
	defer unlock()
	return takeDown(ctx, stateRoot, name)
}

// takeDown is Down for who holds the lab's lock.
func takeDown(ctx context.Context, stateRoot, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return removeLab(stateRoot, name)
}

func removeLab(root, name string) error {
	st, err := readState(root, name)
	if err != nil {
		st = &state{Name: name} // killed before the record was whole, or the record is broken
	}
	names := namespacesOf(root, st)
	var errs []error
	// Links first: a namespace that somebody else still holds open (a shell in it, a
	// mount namespace that copied ours) lives on, but empty.
	for _, ns := range names {
		if err := deleteLinks(netnsPath(ns)); err != nil {
			errs = append(errs, err)
		}
	}
	for _, p := range initsOf(root, st) {
		errs = append(errs, endProc(p))
	}
	for _, ns := range names {
		errs = append(errs, unbindNetNS(netnsPath(ns)))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("lab %s: %w", name, err)
	}
	return os.RemoveAll(filepath.Join(root, name))
}

// namespacesOf lists the names below /run/netns that belong to the lab: those that its
// record says, or without a record those with its prefix that no other lab claims.
func namespacesOf(root string, st *state) []string {
	var names []string
	if len(st.Nodes) > 0 {
		for _, n := range st.Nodes {
			if _, err := os.Lstat(netnsPath(n.NetNS)); err == nil {
				names = append(names, n.NetNS)
			}
		}
		return names
	}
	if _, err := os.Stat(filepath.Join(root, st.Name)); err != nil {
		return nil // there was never such a lab
	}
	others := map[string]bool{}
	for _, lab := range List(root) {
		if o, err := readState(root, lab); err == nil && lab != st.Name {
			for _, n := range o.Nodes {
				others[n.NetNS] = true
			}
		}
	}
	entries, _ := os.ReadDir(netnsDir)
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), st.Name+"-") && !others[e.Name()] {
			names = append(names, e.Name())
		}
	}
	return names
}

// initsOf finds the init processes of the lab: the recorded ones, and by their command
// line those that were started and not recorded any more.
func initsOf(root string, st *state) []proc {
	var out []proc
	for _, n := range st.Nodes {
		if p, err := readProc(filepath.Join(root, st.Name, "nodes", n.Name, "init.json")); err == nil {
			out = append(out, p)
		}
	}
	eachProcess(func(pid int) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil {
			return
		}
		args := strings.Split(strings.TrimRight(string(b), "\x00"), "\x00")
		if len(args) != 4 || args[0] != initName || args[1] != st.Name || args[3] != filepath.Join(root, st.Name) {
			return
		}
		if p, err := procOf(pid); err == nil && !slices.Contains(out, p) {
			out = append(out, p)
		}
	})
	return out
}

// deleteLinks deletes what can be deleted of the links in a named namespace.
func deleteLinks(path string) error {
	if mounted, err := isMounted(path); err != nil || !mounted {
		return nil // nothing there
	}
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	defer h.Close()
	links, err := listLinks(h)
	if err != nil {
		return fmt.Errorf("%s: links: %w", path, err)
	}
	for _, l := range links {
		if l.Type() != "veth" && l.Type() != "bridge" {
			continue
		}
		if err := h.LinkDel(l); err != nil && !isGone(err) {
			return fmt.Errorf("%s: delete %s: %w", path, l.Attrs().Name, err)
		}
	}
	return nil
}

// isGone reports whether an error of a deletion means that the link went by itself, as
// the other end of a veth pair does.
func isGone(err error) bool {
	var notFound netlink.LinkNotFoundError
	return errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) || errors.As(err, &notFound)
}

// listLinks repeats a dump that a change interrupted.
func listLinks(h *netlink.Handle) ([]netlink.Link, error) {
	for range 20 {
		links, err := h.LinkList()
		if !errors.Is(err, netlink.ErrDumpInterrupted) && !errors.Is(err, unix.EINTR) {
			return links, err
		}
	}
	return nil, fmt.Errorf("the dump was interrupted twenty times: %w", netlink.ErrDumpInterrupted)
}

// Reap takes down ephemeral labs whose owner is dead.
func Reap(ctx context.Context, stateRoot string) error {
	if stateRoot == "" {
		stateRoot = DefaultStateRoot
	}
	var errs []error
	for _, name := range List(stateRoot) {
		st, err := readState(stateRoot, name)
		if err != nil || st.Owner == nil || st.Owner.alive() {
			continue
		}
		unlock, err := lockLab(stateRoot, name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		// Look again under the lock: the name may have a new owner.
		if st, err := readState(stateRoot, name); err == nil && st.Owner != nil && !st.Owner.alive() {
			errs = append(errs, takeDown(ctx, stateRoot, name))
		}
		unlock()
	}
	return errors.Join(errs...)
}

// startWarden starts the process that takes the lab down when this one ends without
// having done it. The returned pipe end tells it that this process lives.
func startWarden(root, name string) (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd := reexecCommand(wardenName, name, root)
	cmd.Stdin = r
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true} // a terminal's ^C must not reach it
	log, err := os.OpenFile(filepath.Join(root, name, "warden.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err == nil {
		cmd.Stderr = log
		err = cmd.Start()
		log.Close()
	}
	r.Close()
	if err != nil {
		w.Close()
		return nil, fmt.Errorf("warden: %w", err)
	}
	go cmd.Wait() // reaps it; it ends soon after the pipe is closed
	return w, nil
}

// runWarden blocks until the owner closes the pipe or dies.
func runWarden(args []string) error {
	if len(args) != 2 {
		return errors.New("wants lab and state root")
	}
	name, root := args[0], args[1]
	owner, err := readState(root, name)
	if err != nil {
		return err
	}
	os.Stdin.Read(make([]byte, 1))
	if _, err := os.Stat(filepath.Join(root, name)); err != nil {
		return nil // taken down in good order
	}
	unlock, err := lockLab(root, name)
	if err != nil {
		return err
	}
	defer unlock()
	st, err := readState(root, name)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	// Another lab of the same name, with an owner of its own, is not ours to end.
	if err == nil && (st.Owner == nil || *st.Owner != *owner.Owner || !st.Created.Equal(owner.Created)) {
		return nil
	}
	return takeDown(context.Background(), root, name)
}

func eachProcess(f func(pid int)) {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid := 0
		for _, c := range e.Name() {
			if c < '0' || c > '9' {
				pid = 0
				break
			}
			pid = pid*10 + int(c-'0')
		}
		if pid > 0 {
			f(pid)
		}
	}
}
