package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
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
	// Policy is what /policy shows, and what /metrics counts packets by, and Explain what /trace
	// does; optional: there is no policy. An error of Explain is the asker's to mend.
	Policy  func(context.Context) PolicyDetail
	Explain func(context.Context, Question) ([]Answer, error)
	// Ready says why the agent cannot do its work, and Live why it should be started
	// anew, or nil. Both must be quick: who probes has little patience. Required.
	Ready, Live func() error
}

// Server answers /status, /policy and /trace (JSON), /metrics (Prometheus), and /livez, /readyz and /healthz,
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
		answer(w, s.cfg.Read())
	})
	if s.cfg.Policy != nil {
		mux.HandleFunc("GET /policy", func(w http.ResponseWriter, r *http.Request) { answer(w, s.cfg.Policy(r.Context())) })
	}
	if s.cfg.Explain != nil {
		mux.HandleFunc("GET /trace", s.explain)
	}
	return mux
}

func answer(w http.ResponseWriter, what any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(what) // the other end is gone if this fails
}

func (s *Server) explain(w http.ResponseWriter, r *http.Request) {
	q, err := ParseQuestion(r.URL.Query())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	answers, err := s.cfg.Explain(r.Context(), q)
	if err != nil {
		http.Error(w, err.Error(), http.StatusUnprocessableEntity)
		return
	}
	answer(w, answers)
}

func (s *Server) metrics(mux *http.ServeMux) {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collector{s.cfg.Read, s.cfg.Policy}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
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
func Fetch(ctx context.Context, socket string) (st Status, err error) {
	return st, ask(ctx, socket, "/status", nil, &st)
}

// FetchPolicy asks the agent behind socket which policies are in force.
func FetchPolicy(ctx context.Context, socket string) (d PolicyDetail, err error) {
	return d, ask(ctx, socket, "/policy", nil, &d)
}

// Trace asks the agent behind socket what becomes of a connection; v is as ParseQuestion has it.
func Trace(ctx context.Context, socket string, v url.Values) (answers []Answer, err error) {
	return answers, ask(ctx, socket, "/trace", v, &answers)
}

// maxReason bounds what is read of a refusal, in bytes.
const maxReason = 4096

func ask(ctx context.Context, socket, path string, v url.Values, into any) error {
	client := http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
		DisableKeepAlives: true,
	}}
	u := url.URL{Scheme: "http", Host: "agent", Path: path, RawQuery: v.Encode()}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return err
	}
	res, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("no agent answers at %s: %w", socket, err)
	}
	defer res.Body.Close()
	switch res.StatusCode {
	case http.StatusOK:
	case http.StatusBadRequest, http.StatusUnprocessableEntity:
		why, _ := io.ReadAll(io.LimitReader(res.Body, maxReason))
		return errors.New(strings.TrimSpace(string(why)))
	case http.StatusNotFound:
		return fmt.Errorf("the agent at %s does not know %s: it is of another version", socket, path)
	default:
		return fmt.Errorf("the agent at %s answers %s with %s", socket, path, res.Status)
	}
	if err := json.NewDecoder(res.Body).Decode(into); err != nil {
		return fmt.Errorf("answer of the agent at %s: %w", socket, err)
	}
	return nil
}
