package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Node is a host, router or switch of a lab that is up.
type Node struct {
	Spec *NodeSpec

	lab  *Lab
	dir  string
	init proc // pid 1 of the node, as this machine sees it
}

// Name is the node's name in the topology.
func (n *Node) Name() string { return n.Spec.Name }

// String is the node's name.
func (n *Node) String() string { return n.Spec.Name }

// NetNS is the path of the node's network namespace; its base name is what ip-netns(8)
// takes.
func (n *Node) NetNS() string { return netnsPath(netnsName(n.lab.Name, n.Spec.Name)) }

// InitPID is the process id, on this machine, of the node's first process.
func (n *Node) InitPID() int { return n.init.PID }

// Path returns where this machine sees an absolute path of the node's file system. It
// does not follow absolute symbolic links within the node.
func (n *Node) Path(path string) string { return fmt.Sprintf("/proc/%d/root%s", n.init.PID, path) }

// StateDir is the node's folder on this machine: logs and /var/lib/causeway (causeway).
func (n *Node) StateDir() string { return n.dir }

// startInit starts the node's init in its new namespaces and waits until it is set up.
func (n *Node) startInit(dirs *bindDirs) error {
	if err := n.boot(dirs); err != nil {
		return fmt.Errorf("node %s: %w", n.Spec.Name, err)
	}
	n.lab.step("node %s", n.Spec.Name)
	return nil
}

func (n *Node) boot(dirs *bindDirs) error {
	cfg := initConfig{Hostname: n.Spec.Name, Dir: n.dir, Sysctls: sysctlsOf(n.Spec)}
	var err error
	if cfg.Binds, err = dirs.resolve(n); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(n.dir, "causeway"), 0o700); err != nil {
		return err
	}
	if len(controlPath(n.dir)) > 107 {
		return fmt.Errorf("state folder %s: the path of the control socket has more than 107 bytes; choose a shorter StateRoot", n.dir)
	}
	cmd := reexecCommand(initName, n.lab.Name, n.Spec.Name, n.lab.dir)
	log, err := os.OpenFile(filepath.Join(n.dir, "logs", "init.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	configR, configW, err := os.Pipe()
	if err != nil {
		return err
	}
	defer configW.Close()
	answerR, answerW, err := os.Pipe()
	if err != nil {
		configR.Close()
		return err
	}
	defer answerR.Close()
	cmd.Stdin, cmd.ExtraFiles = configR, []*os.File{answerW}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true,
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC}
	err = cmd.Start()
	configR.Close()
	answerW.Close()
	if err != nil {
		return fmt.Errorf("start init: %w", err)
	}
	go cmd.Wait() // reaps it when it ends
	n.lab.step("init %s", n.Spec.Name)
	if n.init, err = procOf(cmd.Process.Pid); err != nil {
		return fmt.Errorf("init: %w", err)
	}
	if err := writeJSON(filepath.Join(n.dir, "init.json"), n.init); err != nil {
		return err
	}
	n.lab.step("record %s", n.Spec.Name)
	if err := json.NewEncoder(configW).Encode(cfg); err != nil {
		return fmt.Errorf("init: %w", err)
	}
	complaint, err := io.ReadAll(answerR)
	if err != nil {
		return fmt.Errorf("init: %w", err)
	}
	if len(complaint) > 0 {
		return errors.New(strings.TrimSpace(string(complaint)))
	}
	if !n.init.alive() {
		return fmt.Errorf("init ended: %s", tail(filepath.Join(n.dir, "logs", "init.log")))
	}
	return nil
}

// nameNetNS gives the node's network namespace its name below /run/netns.
func (n *Node) nameNetNS() error {
	if err := prepareNetnsDir(); err != nil {
		return err
	}
	if err := bindNetNS(fmt.Sprintf("/proc/%d/ns/net", n.init.PID), n.NetNS()); err != nil {
		return fmt.Errorf("node %s: %w", n.Spec.Name, err)
	}
	return nil
}

// sysctlsOf are the node's sysctls: what a lab needs to be quick and deterministic, what
// the role needs, and on top what the topology says.
func sysctlsOf(s *NodeSpec) map[string]string {
	forward := "0"
	switch s.Role {
	case RoleFRR, RoleBIRD, RoleGoBGP:
		forward = "1"
	}
	m := map[string]string{
		// Addresses are usable at once: no duplicate address detection.
		"net.ipv6.conf.all.accept_dad":     "0",
		"net.ipv6.conf.default.accept_dad": "0",
		"net.ipv6.conf.all.disable_ipv6":   "0",
		// Nobody sends router advertisements here that a node should believe.
		"net.ipv6.conf.all.accept_ra":         "0",
		"net.ipv6.conf.default.accept_ra":     "0",
		"net.ipv4.conf.all.forwarding":        forward,
		"net.ipv4.conf.default.forwarding":    forward,
		"net.ipv6.conf.all.forwarding":        forward,
		"net.ipv6.conf.default.forwarding":    forward,
		"net.ipv4.conf.all.rp_filter":         "0",
		"net.ipv4.conf.default.rp_filter":     "0",
		"net.ipv4.fib_multipath_hash_policy":  "1", // ports count
		"net.ipv6.fib_multipath_hash_policy":  "1",
		"net.ipv6.conf.all.keep_addr_on_down": "1", // a link that comes back is as it was
	}
	maps.Copy(m, s.Sysctls)
	return m
}

// environ is the environment of the node's processes.
func (n *Node) environ() []string {
	env := []string{"PATH=" + basePath + ":" + n.lab.opts.BinDir, "HOME=/root", "TERM=dumb", "HOSTNAME=" + n.Spec.Name}
	for _, k := range slices.Sorted(maps.Keys(n.Spec.Env)) {
		env = append(env, k+"="+n.Spec.Env[k])
	}
	return env
}

// lookPath finds a program in the node's PATH.
func (n *Node) lookPath(name string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for _, dir := range filepath.SplitList(basePath + ":" + n.lab.opts.BinDir) {
		p := filepath.Join(dir, name)
		if st, err := os.Stat(n.Path(p)); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return p, nil
		}
	}
	return "", fmt.Errorf("%s: not found in %s:%s", name, basePath, n.lab.opts.BinDir)
}

// Exec runs a command in the node and returns its standard output. An error carries the
// standard error.
func (n *Node) Exec(ctx context.Context, args ...string) (string, error) {
	return n.exec(ctx, "", args)
}

func (n *Node) exec(ctx context.Context, netns string, args []string) (string, error) {
	if len(args) == 0 {
		return "", errors.New("no command")
	}
	path, err := n.lookPath(args[0])
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, path, args[1:]...)
	cmd.Args[0] = args[0]
	cmd.Env, cmd.Dir = n.environ(), "/"
	// A process that the command left in the background must not keep us waiting.
	cmd.WaitDelay = 2 * time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := startIn(n.init, netns, cmd); err != nil {
		return "", fmt.Errorf("%s: %w", args[0], err)
	}
	if err := cmd.Wait(); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return stdout.String(), fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err,
			strings.TrimSpace(first(stderr.String(), stdout.String())))
	}
	return stdout.String(), nil
}

// Command prepares a command in the node, to be started by the caller, who may set
// standard input, output and more environment. Signals sent to it reach the command, and
// the command ends with it.
func (n *Node) Command(ctx context.Context, args ...string) *exec.Cmd {
	return n.command(ctx, "", args)
}

func (n *Node) command(ctx context.Context, netns string, args []string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args = enterArgs(n.init, netns, args)
	cmd.Env, cmd.Dir = n.environ(), "/"
	return cmd
}

// Do runs f on a thread in the node's network namespace. Sockets that f opens stay there;
// goroutines that it starts run elsewhere.
func (n *Node) Do(f func() error) error {
	return inThread(func() error {
		if err := enter(n.init, "", "net"); err != nil {
			return fmt.Errorf("node %s: %w", n.Spec.Name, err)
		}
		return f()
	})
}

// handle opens a netlink socket in the node.
func (n *Node) handle() (*netlink.Handle, error) {
	return handleAt(fmt.Sprintf("/proc/%d/ns/net", n.init.PID))
}

func handleAt(path string) (*netlink.Handle, error) {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	defer ns.Close()
	return netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
}

// LinkDown takes an interface down; its other end loses the carrier.
func (n *Node) LinkDown(ifname string) error { return n.setLink(ifname, (*netlink.Handle).LinkSetDown) }

// LinkUp brings an interface up.
func (n *Node) LinkUp(ifname string) error { return n.setLink(ifname, (*netlink.Handle).LinkSetUp) }

func (n *Node) setLink(ifname string, set func(*netlink.Handle, netlink.Link) error) error {
	h, err := n.handle()
	if err == nil {
		defer h.Close()
		var l netlink.Link
		if l, err = h.LinkByName(ifname); err == nil {
			err = set(h, l)
		}
	}
	if err != nil {
		return fmt.Errorf("node %s: link %s: %w", n.Spec.Name, ifname, err)
	}
	return nil
}

// Addresses returns the node's addresses on all links, without loopback's own and
// link-local ones, sorted by interface.
func (n *Node) Addresses() (map[string][]netip.Prefix, error) {
	h, err := n.handle()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	return addressesOf(h)
}

func addressesOf(h *netlink.Handle) (map[string][]netip.Prefix, error) {
	links, err := listLinks(h)
	if err != nil {
		return nil, err
	}
	out := map[string][]netip.Prefix{}
	for _, l := range links {
		addrs, err := h.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			return nil, err
		}
		for _, a := range addrs {
			ip, _ := netip.AddrFromSlice(a.IP)
			bits, _ := a.Mask.Size()
			if ip = ip.Unmap(); !ip.IsLoopback() && !ip.IsLinkLocalUnicast() {
				out[l.Attrs().Name] = append(out[l.Attrs().Name], netip.PrefixFrom(ip, bits))
			}
		}
	}
	return out, nil
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

func idsOf(name string) (uid, gid int, ok bool) {
	u, err := user.Lookup(name)
	if err != nil {
		return 0, 0, false
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	return uid, gid, err1 == nil && err2 == nil
}
