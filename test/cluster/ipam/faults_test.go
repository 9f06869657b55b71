package ipam_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"

	"k8s.io/client-go/rest"
)

// road is a node's way to the API server: it counts the requests and, while it has faults,
// does to them what networks and overloaded servers do.
type road struct {
	mu     sync.Mutex
	next   http.RoundTripper
	rng    *rand.Rand
	rate   float64
	away   bool
	counts map[string]int // by method, "LIST" for a GET of many, "NAMES" for one of metadata
	bytes  int
}

func newRoad(seed uint64) *road {
	return &road{rng: rand.New(rand.NewPCG(seed, 2)), counts: map[string]int{}}
}

// wrap puts the road under a client.
func (r *road) wrap(c *rest.Config) {
	c.WrapTransport = func(next http.RoundTripper) http.RoundTripper {
		r.next = next
		return r
	}
}

func (r *road) faults(rate float64, away bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rate, r.away = rate, away
}

// taken returns the counts since the last call.
func (r *road) taken() (counts map[string]int, bytes int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	counts, bytes = r.counts, r.bytes
	r.counts, r.bytes = map[string]int{}, 0
	return counts, bytes
}

func (r *road) RoundTrip(req *http.Request) (*http.Response, error) {
	fault := r.roll(req)
	switch fault {
	case "away":
		return nil, errors.New("connection refused")
	case "timeout":
		return nil, context.DeadlineExceeded
	case "409":
		return answer(req, http.StatusConflict, "Conflict"), nil
	case "429":
		return answer(req, http.StatusTooManyRequests, "TooManyRequests"), nil
	case "500":
		return answer(req, http.StatusInternalServerError, "InternalError"), nil
	}
	resp, err := r.next.RoundTrip(req)
	if err != nil {
		return resp, err
	}
	if fault == "lost" { // done, and the answer lost
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		return nil, errors.New("connection reset by peer")
	}
	resp.Body = &meter{resp.Body, r}
	return resp, nil
}

func (r *road) roll(req *http.Request) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	kind := req.Method
	switch {
	case req.Method == http.MethodGet && bytes.Contains([]byte(req.Header.Get("Accept")), []byte("PartialObjectMetadata")):
		kind = "NAMES"
	case req.Method == http.MethodGet && (req.URL.Query().Has("limit") || req.URL.Query().Has("resourceVersion")):
		kind = "LIST"
		if !req.URL.Query().Has("fieldSelector") && !req.URL.Query().Has("labelSelector") {
			kind = "LISTALL"
		}
	}
	r.counts[kind]++
	if r.away {
		return "away"
	}
	if r.rng.Float64() >= r.rate {
		return ""
	}
	faults := []string{"lost", "timeout", "429", "500", "409"}
	n := len(faults)
	if req.Method != http.MethodPut && req.Method != http.MethodDelete {
		n-- // nothing else is answered so by anything
	}
	return faults[r.rng.IntN(n)]
}

func answer(req *http.Request, code int, reason string) *http.Response {
	body := fmt.Sprintf(`{"kind":"Status","apiVersion":"v1","status":"Failure","message":"made up","reason":%q,"code":%d}`, reason, code)
	return &http.Response{
		StatusCode: code, Status: http.StatusText(code), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: req,
		Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(bytes.NewReader([]byte(body))), ContentLength: int64(len(body)),
	}
}

// meter counts the bytes of answers, as they are after decompression.
type meter struct {
	io.ReadCloser
	r *road
}

func (m *meter) Read(p []byte) (int, error) {
	n, err := m.ReadCloser.Read(p)
	m.r.mu.Lock()
	m.r.bytes += n
	m.r.mu.Unlock()
	return n, err
}
