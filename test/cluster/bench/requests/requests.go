// Package requests counts what an API server was asked, and by whom, out of its audit log
// (one JSON event a line, level Metadata at least). It owns nothing but the place in the
// log up to which it has read.
package requests

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
)

// Agent is the user of Causeway's agents.
const Agent = "system:serviceaccount:kube-system:causeway-agent"

// Request is one request that was answered, or a watch that began.
type Request struct {
	User     string
	Verb     string // "create", "update", "list", "watch" ...
	Resource string // plural, with the subresource: "nodes/status"; empty for other paths
	URI      string
	Code     int // HTTP status
}

// Write reports whether the request was to change something.
func (r Request) Write() bool {
	return r.Verb == "create" || r.Verb == "update" || r.Verb == "patch" || r.Verb == "delete" || r.Verb == "deletecollection"
}

// Log is an audit log that is being written.
type Log struct {
	path string
	at   int64
}

// Open returns the log from its present end on. It holds nothing open.
func Open(path string) (*Log, error) {
	f, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("audit log: %w", err)
	}
	return &Log{path: path, at: f.Size()}, nil
}

// Next returns the requests that were recorded since Open or the last Next.
func (l *Log) Next() ([]Request, error) {
	f, err := os.Open(l.path)
	if err != nil {
		return nil, fmt.Errorf("audit log: %w", err)
	}
	defer f.Close()
	if _, err := f.Seek(l.at, io.SeekStart); err != nil {
		return nil, fmt.Errorf("audit log: %w", err)
	}
	var out []Request
	for in := bufio.NewReader(f); ; {
		line, err := in.ReadBytes('\n')
		if err == io.EOF {
			return out, nil // what is there of the next line is read again
		} else if err != nil {
			return nil, fmt.Errorf("audit log: %w", err)
		}
		l.at += int64(len(line))
		r, ok, err := parse(line)
		if err != nil {
			return nil, fmt.Errorf("audit log %s, before byte %d: %w", l.path, l.at, err)
		}
		if ok {
			out = append(out, r)
		}
	}
}

// event is what is used of audit.k8s.io/v1 Event.
type event struct {
	Stage      string `json:"stage"`
	RequestURI string `json:"requestURI"`
	Verb       string `json:"verb"`
	User       struct {
		Username string `json:"username"`
	} `json:"user"`
	ObjectRef struct {
		Resource    string `json:"resource"`
		Subresource string `json:"subresource"`
	} `json:"objectRef"`
	ResponseStatus struct {
		Code int `json:"code"`
	} `json:"responseStatus"`
}

// parse returns the request of an event that counts it: of a watch, which lasts, the one
// that tells of its begin, of all others the one that tells of their end.
func parse(line []byte) (Request, bool, error) {
	var e event
	if err := json.Unmarshal(bytes.TrimSpace(line), &e); err != nil {
		return Request{}, false, err
	}
	counts := "ResponseComplete"
	if e.Verb == "watch" {
		counts = "ResponseStarted"
	}
	r := Request{User: e.User.Username, Verb: e.Verb, Resource: e.ObjectRef.Resource, URI: e.RequestURI, Code: e.ResponseStatus.Code}
	if e.ObjectRef.Subresource != "" {
		r.Resource += "/" + e.ObjectRef.Subresource
	}
	return r, e.Stage == counts || e.Stage == "Panic", nil
}

// Cost is what Causeway's agents asked in some time.
type Cost struct {
	Claims int // blocks that were created
	Writes int // of blocks: Claims, changes and deletions
	// Reads are gets and lists of anything. Not among them are what a resync reads, which
	// happens by the clock, and the one list that belongs to a claim: whether a block of
	// another size overlaps.
	Reads int
	// Resyncs and ClaimReads are those.
	Resyncs, ClaimReads int
	// Refused are writes of blocks that another's came before (HTTP 409), or that failed.
	Refused int
	All     map[string]int // all requests, by "verb resource"
}

// CostOf sums up what the agents asked.
func CostOf(all []Request) Cost {
	c := Cost{All: map[string]int{}}
	for _, r := range all {
		if r.User != Agent {
			continue
		}
		c.All[r.Verb+" "+r.Resource]++
		switch {
		case r.Resource == "ipamblocks" && r.Write():
			c.Writes++
			if r.Code >= 300 {
				c.Refused++
			} else if r.Verb == "create" {
				c.Claims++
			}
		case r.Resource == "ipamblocks" && r.Verb == "list" && overlapList(r.URI):
			c.ClaimReads++
		case r.Resource == "ipamblocks" && r.Verb == "list" && resyncList(r.URI):
			c.Resyncs++
		case r.Verb == "get" || r.Verb == "list":
			c.Reads++
		}
	}
	return c
}

// overlapList reports whether a list asks for blocks of other sizes (ipam/kube, overlap.go).
func overlapList(uri string) bool {
	return strings.Contains(uri, "resourceVersionMatch=NotOlderThan") && strings.Contains(uri, "labelSelector=")
}

// resyncList reports whether a list asks for a node's own blocks or those it borrows from.
func resyncList(uri string) bool {
	return strings.Contains(uri, "fieldSelector=spec.affinity") || strings.Contains(uri, "labelSelector=causeway-net.github.io%2Fborrower-")
}

// String tells all counts in one line.
func (c Cost) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d writes of blocks (%d claims, %d refused), %d reads", c.Writes, c.Claims, c.Refused, c.Reads)
	if c.ClaimReads+c.Resyncs > 0 {
		fmt.Fprintf(&b, " (and %d for claims, %d of resyncs)", c.ClaimReads, c.Resyncs)
	}
	b.WriteString("; all requests:")
	for _, k := range slices.SortedFunc(maps.Keys(c.All), func(x, y string) int { return cmp.Or(c.All[y]-c.All[x], strings.Compare(x, y)) }) {
		fmt.Fprintf(&b, " %d %s,", c.All[k], k)
	}
	return strings.TrimSuffix(b.String(), ",")
}
