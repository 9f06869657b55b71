package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Config says what a Server says, and where.
type Config struct {
	// Socket is a unix socket that root alone may use: it answers everything. Required.
	Socket string
	// Health is a TCP address (host:port) that answers /livez and /readyz alone, and
	// Metrics one that answers /metrics alone; empty: none.
	Health, Metrics string
	// Read is what /status and /metrics show; it may take a second. Required.
	Read func() Status
	// Ready says why the agent cannot do its work, and Live why it should be started
	// anew, or nil. Both must be quick: who probes has little patience. Required.
	Ready, Live func() error
}

// Server answers /status (JSON), /metrics (Prometheus), and /livez, /readyz and /healthz,
// which is /readyz too: 200, or 503 and why.
type Server struct{ cfg Config }

// NewServer makes a Server.
func NewServer(cfg Config) *Server { return &Server{cfg} }

func (s *Server) String() string { return "status" }

// Run serves until ctx is cancelled. A TCP address that is taken ends it.
func (s *Server) Run(ctx context.Context) error {
	var lc net.ListenConfig
	var listeners []net.Listener
	var handlers []http.Handler
	closeAll := func() {
		for _, l := range listeners {
			l.Close()
		}
	}
	l, err := s.listenUnix()
	if err != nil {
		return err
	}
	listeners, handlers = append(listeners, l), append(handlers, s.handler())
	for _, at := range []struct {
		flag, addr string
		handler    func(*http.ServeMux)
	}{{"--health-address", s.cfg.Health, s.health}, {"--metrics-address", s.cfg.Metrics, s.metrics}} {
		if at.addr == "" {
			continue
		}
		l, err := lc.Listen(ctx, "tcp", at.addr)
		if err != nil {
			closeAll()
			return fmt.Errorf("%s %s: %w; is another program there? Name another address", at.flag, at.addr, err)
		}
		mux := http.NewServeMux()
		at.handler(mux)
		listeners, handlers = append(listeners, l), append(handlers, mux)
	}
	ended := make(chan error, len(listeners))
	for i, l := range listeners {
		srv := &http.Server{Handler: handlers[i], ReadHeaderTimeout: 5 * time.Second}
		stopped := context.AfterFunc(ctx, func() { srv.Close() })
		defer stopped()
		defer srv.Close()
		go func() { ended <- srv.Serve(l) }()
	}
	for range listeners {
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			return err
		}
	}
	return nil
}

func (s *Server) listenUnix() (net.Listener, error) {
	if err := os.Remove(s.cfg.Socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove a former agent's socket: %w", err)
	}
	l, err := net.Listen("unix", s.cfg.Socket)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(s.cfg.Socket, 0o600); err != nil { // until here the folder's mode, 0700, keeps others out
		l.Close()
		return nil, err
	}
	return l, nil
}

func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	s.metrics(mux)
	s.health(mux)
	mux.HandleFunc("GET /healthz", probe(s.cfg.Ready))
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(s.cfg.Read()) // the other end is gone if this fails
	})
	return mux
}

func (s *Server) metrics(mux *http.ServeMux) {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collector{s.cfg.Read}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
}

func (s *Server) health(mux *http.ServeMux) {
	mux.HandleFunc("GET /readyz", probe(s.cfg.Ready))
	mux.HandleFunc("GET /livez", probe(s.cfg.Live))
}

func probe(why func() error) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		if err := why(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	}
}

// Fetch asks the agent behind socket for its status.
func Fetch(ctx context.Context, socket string) (Status, error) {
	client := http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
		DisableKeepAlives: true,
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent/status", nil)
	if err != nil {
		return Status{}, err
	}
	res, err := client.Do(req)
	if err != nil {
		return Status{}, fmt.Errorf("no agent answers at %s: %w", socket, err)
	}
	defer res.Body.Close()
	var st Status
	if err := json.NewDecoder(res.Body).Decode(&st); err != nil {
		return Status{}, fmt.Errorf("answer of the agent at %s: %w", socket, err)
	}
	return st, nil
}
