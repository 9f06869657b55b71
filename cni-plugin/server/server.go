// Package server is the agent's half of the CNI plugin: it answers the plugin's requests
// on a unix socket. It owns the order of things within a request: an address is durable
// before a link bears it, and a link is gone before its address is free.
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/causeway-net/causeway/cni-plugin/veth"
	"github.com/causeway-net/causeway/cni-plugin/wire"
	"github.com/causeway-net/causeway/internal/model"
)

// IPAM keeps the addresses of pods and the record of what was promised to them. All of its
// methods are idempotent.
type IPAM interface {
	// Assign returns the endpoint of req.Key with its addresses, which it has made
	// durable; the same ones as before when the key has some.
	Assign(ctx context.Context, req model.AddressRequest) (model.Endpoint, error)
	// Wired records how the endpoint was wired.
	Wired(ctx context.Context, ep model.Endpoint) error
	// Release frees the addresses of one attachment and returns what it freed.
	Release(ctx context.Context, containerID, ifName string) ([]model.Endpoint, error)
	// Retain frees every attachment of the network that is not in keep.
	Retain(ctx context.Context, network string, keep []model.AttachmentKey) ([]model.Endpoint, error)
	// Endpoint returns the record of an attachment.
	Endpoint(key model.AttachmentKey) (model.Endpoint, bool)
}

// Dataplane keeps the host's routes to pods and their rules. Its methods return when the
// kernel has them, and are idempotent.
type Dataplane interface {
	Attach(ctx context.Context, ep model.Endpoint) error
	Detach(ctx context.Context, ep model.Endpoint) error
	// Check returns an error that says what of the endpoint is not in the kernel.
	Check(ctx context.Context, ep model.Endpoint) error
}

// Workload is what the datastore knows of a pod. The zero value means that it is unknown.
type Workload struct {
	// UID is the pod object's. A static pod has another than K8S_POD_UID says, which is
	// the one of the kubelet's own copy.
	UID                  string
	Annotations          map[string]string // the pod's
	NamespaceAnnotations map[string]string
	NamespaceLabels      map[string]string
}

// ErrLimited is wrapped by an error of Config.Ready when new pods can be attached and only
// their connectivity is limited (STATUS error 51).
var ErrLimited = errors.New("limited connectivity")

// Config says what a Server works with.
type Config struct {
	Socket    string       // path to listen on; default wire.DefaultSocket
	ReadyFile string       // default wire.ReadyFile(Socket), where the plugin looks
	Log       *slog.Logger // required
	IPAM      IPAM         // required
	Dataplane Dataplane    // required
	// Ready says why pods cannot be attached now; nil when they can. Required. It is
	// called every second or more often and must be quick.
	Ready func() error
	// MTU is for pods whose network configuration names none, bytes. Required.
	MTU func() int
	// Workload looks up a pod, waiting for it as long as it likes within ctx; nil
	// without Kubernetes. uid is K8S_POD_UID, which is empty where the runtime does not
	// tell. Its error fails the ADD.
	Workload func(ctx context.Context, namespace, pod, uid string) (Workload, error)
	// ProcSys is the folder of the sysctls; default /proc/sys.
	ProcSys string
	// MaxInflight bounds the ADD, DEL, CHECK and GC that are worked on at once; others
	// wait. Default 32.
	MaxInflight int
	// Timeout bounds the work on one request, waiting included. Default
	// wire.RequestTimeout, and not longer: the plugin would have given up.
	Timeout time.Duration
	// Resync is how often the host's ends of the pods' links are looked at, to mend what
	// others changed. Default 90 s.
	Resync time.Duration
	// Drain is how long requests may go on when Run is to end. Default 5 s. What they need
	// must live as long as Run does.
	Drain time.Duration
}

const (
	maxConnections = 1024            // answered or waiting; the rest wait in the listen queue
	readTimeout    = 5 * time.Second // for a request to arrive, and for an answer to be taken
	undoTimeout    = 15 * time.Second
)

// Server answers CNI requests.
type Server struct {
	Config
	wirer      *veth.Wirer
	slots      chan struct{} // a place for each request being worked on
	containers gates         // one request at a time for each container
	gc         sync.RWMutex  // held for reading by all but GC
	everReady  atomic.Bool   // Ready was nil once since the start
}

// New checks the configuration. The Server works in the network namespace of the thread
// that calls New, which must be the process's.
func New(c Config) (*Server, error) {
	switch {
	case c.Log == nil:
		return nil, errors.New("cni server: Config.Log is required")
	case c.IPAM == nil:
		return nil, errors.New("cni server: Config.IPAM is required")
	case c.Dataplane == nil:
		return nil, errors.New("cni server: Config.Dataplane is required")
	case c.Ready == nil:
		return nil, errors.New("cni server: Config.Ready is required")
	case c.MTU == nil:
		return nil, errors.New("cni server: Config.MTU is required")
	}
	if c.Socket == "" {
		c.Socket = wire.DefaultSocket
	}
	if !filepath.IsAbs(c.Socket) || len(c.Socket) > maxSocketPath {
		return nil, fmt.Errorf("cni server: Config.Socket %q: want an absolute path of at most %d bytes", c.Socket, maxSocketPath)
	}
	if c.ReadyFile == "" {
		c.ReadyFile = wire.ReadyFile(c.Socket)
	}
	if c.ProcSys == "" {
		c.ProcSys = "/proc/sys"
	}
	if c.MaxInflight == 0 {
		c.MaxInflight = 32
	}
	if c.MaxInflight < 0 {
		return nil, fmt.Errorf("cni server: Config.MaxInflight %d: want 1 or more, or 0 for the default", c.MaxInflight)
	}
	if c.Timeout == 0 {
		c.Timeout = wire.RequestTimeout
	}
	if c.Timeout < 0 || c.Timeout > wire.RequestTimeout {
		return nil, fmt.Errorf("cni server: Config.Timeout %v: want at most %v", c.Timeout, wire.RequestTimeout)
	}
	if c.Resync == 0 {
		c.Resync = 90 * time.Second
	}
	if c.Resync < 0 {
		return nil, fmt.Errorf("cni server: Config.Resync %v: want a positive time, or 0 for the default", c.Resync)
	}
	if c.Drain == 0 {
		c.Drain = 5 * time.Second
	}
	w, err := veth.New(c.ProcSys)
	if err != nil {
		return nil, fmt.Errorf("cni server: %w", err)
	}
	c.Log = c.Log.With("task", "cni server")
	return &Server{Config: c, wirer: w, slots: make(chan struct{}, c.MaxInflight)}, nil
}

func (s *Server) String() string { return "cni server" }

// Run listens and answers until ctx is cancelled; requests that are being worked on then
// may go on for Config.Drain. What is not done by then is taken back and gets no answer, as do
// requests that still waited for their turn: the plugin brings them to the next agent. It may
// be called once.
func (s *Server) Run(ctx context.Context) error {
	defer s.wirer.Close()
	l, err := listen(s.Socket)
	if err != nil {
		return fmt.Errorf("cni server: %w", err)
	}
	s.Log.Info("listening", "socket", s.Socket)
	// Requests outlive ctx by Drain.
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var tasks, requests sync.WaitGroup
	tasks.Go(func() { s.keepReadyFile(ctx) })
	tasks.Go(func() { s.keepLinks(ctx) })
	unlisten := context.AfterFunc(ctx, func() { l.Close() })
	defer unlisten()

	err = s.accept(ctx, work, l, &requests)
	if ctx.Err() != nil {
		err = nil
	}
	l.Close()
	drained := make(chan struct{})
	go func() { requests.Wait(); close(drained) }()
	select {
	case <-drained:
	case <-time.After(s.Drain):
		stop()
		<-drained
	}
	if err != nil {
		return fmt.Errorf("cni server: %w", err)
	}
	tasks.Wait()
	return nil
}

// accept answers connections until ctx is cancelled; what it starts works within work,
// which outlives ctx.
func (s *Server) accept(ctx, work context.Context, l *net.UnixListener, requests *sync.WaitGroup) error {
	places := make(chan struct{}, maxConnections)
	for {
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		conn, err := l.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		if err != nil { // out of descriptors: those in use come free
			s.Log.Error("accept failed", "error", err)
			<-places
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		requests.Go(func() {
			defer func() { <-places }()
			s.serve(ctx, work, conn)
		})
	}
}

// ready asks Config.Ready and remembers that it once was.
func (s *Server) ready() error {
	err := s.Ready()
	if err == nil {
		s.everReady.Store(true)
	}
	return err
}

// starting reports whether the agent is coming back from being away for a short time: it
// has not been ready yet, and the one before it was less than wire.Away ago.
func (s *Server) starting() bool {
	return !s.everReady.Load() && wire.WasReady(s.ReadyFile, time.Now())
}

// keepReadyFile keeps the time of the ready file fresh while the agent is ready, and
// removes the file when it is not any more. At the end of a ready agent it sets the time
// once again, and that is when its absence begins.
func (s *Server) keepReadyFile(ctx context.Context) {
	var last error
	for {
		was, err := s.everReady.Load(), s.ready()
		switch {
		case err == nil:
			err = wire.MarkReady(s.ReadyFile, time.Now())
		case was:
			if err = os.Remove(s.ReadyFile); errors.Is(err, os.ErrNotExist) {
				err = nil
			}
		default:
			err = nil
		}
		if err != nil && (last == nil || last.Error() != err.Error()) {
			s.Log.Error("ready file failed", "error", err)
		}
		last = err
		wait := wire.RefreshReady
		if !s.everReady.Load() {
			wait = 50 * time.Millisecond
		}
		select {
		case <-time.After(wait):
			continue
		case <-ctx.Done():
		}
		if s.ready() == nil {
			if err := wire.MarkReady(s.ReadyFile, time.Now()); err != nil {
				s.Log.Error("ready file failed", "error", err)
			}
		}
		return
	}
}
