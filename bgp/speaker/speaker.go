// Package speaker is the child process: the embedded GoBGP server and nothing else. It owns the
// gRPC listener, who may call what on it, what its answers show, and GoBGP's log. It parses what
// the fabric sends, so it runs with no right but to bind port 179 (see bgp/child, which starts
// it) and refuses to run with more.
package speaker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	api "github.com/osrg/gobgp/v3/api"
	"github.com/osrg/gobgp/v3/pkg/server"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/causeway-net/causeway/bgp/child"
)

// Options is what the speaker needs to run.
type Options struct {
	// Inheritance is what the agent handed over (child.Inherit). Required.
	Inheritance *child.Inheritance
	// Stderr gets the log, a JSON object a line. Required.
	Stderr io.Writer
}

// maxMessage bounds one gRPC message in bytes, as the agent's end does.
const maxMessage = 64 << 20

// Run runs the BGP speaker until the agent asks for an orderly end or ctx is done, and returns
// nil, or until the agent is gone, and returns child.ErrOrphaned. Only the orderly end tells the
// peers (CEASE); after any other the caller must exit at once, so that peers with graceful
// restart keep the routes.
//
// It changes the whole process (limits, umask, current folder, signals) and can run once in it.
func Run(ctx context.Context, opts Options) error {
	in := opts.Inheritance
	// The agent decides when the speaker ends. A signal for the whole service must not end it
	// first, in whatever way.
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	if err := debug.SetCrashOutput(in.Crash, debug.CrashOptions{}); err != nil {
		return fmt.Errorf("crash output: %w", err)
	}
	if err := errors.Join(checkRights(), limit()); err != nil {
		return err
	}

	paceMemory(in.Memory)

	listen := "unix://" + child.SocketName
	if in.TCPAddr != "" {
		if err := child.CheckTCPAddr(in.TCPAddr); err != nil {
			return err
		}
		listen += "," + in.TCPAddr
	}
	if err := unix.Fchdir(int(in.Dir.Fd())); err != nil {
		return fmt.Errorf("chdir to the speaker's folder: %w", err)
	}
	syscall.Umask(0o177) // the socket becomes 0600

	log := newLog(opts.Stderr, in.LogLevel)
	g := guard{token: in.Token, open: in.AllowWrites, log: log.slog}
	srv := server.NewBgpServer(
		server.LoggerOption(log),
		server.TimingHookOption(forget{}),
		server.GrpcListenAddress(listen),
		server.GrpcOption([]grpc.ServerOption{
			grpc.UnaryInterceptor(g.unary),
			grpc.StreamInterceptor(g.stream),
			grpc.MaxRecvMsgSize(maxMessage),
			grpc.MaxSendMsgSize(maxMessage),
		}),
	)
	go srv.Serve() // for as long as the process lives; GoBGP has no way to end it

	if err := awaitListener(ctx, log.failed); err != nil {
		return err
	}
	if err := in.Ready(); err != nil {
		return child.ErrOrphaned
	}
	word := make(chan error, 1)
	go func() { word <- in.AwaitStop() }()
	select {
	case <-ctx.Done():
		return nil
	case err := <-word:
		if err == nil {
			err = srv.StopBgp(ctx, &api.StopBgpRequest{})
		}
		return err
	}
}

// awaitListener returns when the socket accepts. GoBGP listens in its own time and says
// nothing, unless it fails.
func awaitListener(ctx context.Context, failed <-chan string) error {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		if c, err := net.Dial("unix", child.SocketName); err == nil {
			return c.Close()
		}
		select {
		case <-ctx.Done():
			return nil
		case msg := <-failed:
			return errors.New(msg)
		case <-tick.C:
		}
	}
}

// limit bounds what the process may use, and keeps its memory, which holds the token and the
// sessions' passwords, from others of the same user.
func limit() error {
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return fmt.Errorf("RLIMIT_NOFILE: %w", err)
	}
	files.Max = min(files.Max, maxFiles)
	files.Cur = files.Max
	for _, l := range []struct {
		name string
		res  int
		lim  unix.Rlimit
	}{
		{"RLIMIT_NOFILE", unix.RLIMIT_NOFILE, files},
		{"RLIMIT_CORE", unix.RLIMIT_CORE, unix.Rlimit{}},
		{"RLIMIT_FSIZE", unix.RLIMIT_FSIZE, unix.Rlimit{}},
	} {
		if err := unix.Setrlimit(l.res, &l.lim); err != nil {
			return fmt.Errorf("%s: %w", l.name, err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("prctl(PR_SET_DUMPABLE): %w", err)
	}
	return nil
}

// maxFiles bounds open descriptors: a connection for each peer and gRPC client.
const maxFiles = 16384

// checkRights refuses to parse the fabric's bytes with rights they could be turned into.
func checkRights() error {
	if os.Getuid() == 0 || os.Geteuid() == 0 {
		return errors.New("the speaker must not run as root")
	}
	if nnp, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0); err != nil || nnp != 1 {
		return errors.New("the speaker must run with no_new_privs")
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return fmt.Errorf("capget: %w", err)
	}
	const bind = 1 << unix.CAP_NET_BIND_SERVICE
	if data[0].Permitted&^bind != 0 || data[1].Permitted != 0 {
		return fmt.Errorf("the speaker must hold no capability but CAP_NET_BIND_SERVICE; it holds %#x", uint64(data[1].Permitted)<<32|uint64(data[0].Permitted))
	}
	return nil
}
