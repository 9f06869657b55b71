package controller

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Health serves /livez and /readyz on a TCP address: 200, or 503 and why not. Its Run
// blocks until its context is cancelled.
func (c *Controller) Health(address string) *Server {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", answer(c.Live))
	mux.HandleFunc("GET /readyz", answer(c.Ready))
	return &Server{"health", address, mux}
}

// Metrics serves /metrics (Prometheus) on a TCP address.
func (c *Controller) Metrics(address string) *Server {
	reg := prometheus.NewRegistry()
	reg.MustRegister(c.Collector(), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	return &Server{"metrics", address, mux}
}

func answer(check func() error) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		if err := check(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	}
}

// Server is a task that serves HTTP.
type Server struct {
	name, address string
	handler       http.Handler
}

func (s *Server) String() string { return s.name }

// Run serves until ctx is cancelled.
func (s *Server) Run(ctx context.Context) error {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", s.address)
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: s.handler, ReadHeaderTimeout: 5 * time.Second}
	defer context.AfterFunc(ctx, func() { srv.Close() })()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
