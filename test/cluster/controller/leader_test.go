package controller_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func (c *cluster) holder() (string, error) {
	l, err := c.Core.CoordinationV1().Leases(c.namespace).Get(c.ctx, "causeway-controller", metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	if l.Spec.HolderIdentity == nil {
		return "", nil
	}
	return *l.Spec.HolderIdentity, nil
}

// TestTwoReplicas checks that one of two works, that the other stands by and takes over at
// once when the first ends, and that a lease which nobody gave back runs out.
func TestTwoReplicas(t *testing.T) {
	c := newCluster(t)
	c.pool("lb", "10.5.0.0/28", size(28), loadBalancerPool)
	first := c.replica()
	c.ready(first)
	c.service("one")
	c.shows("one", "10.5.0.0")
	second := c.replica()
	c.ready(second)
	if err := second.Live(); err != nil {
		t.Errorf("the one that stands by: %v", err)
	}
	leader, err := c.holder()
	c.must(err)
	began := time.Now()
	first.stop()
	if id, err := c.holder(); err != nil || id == leader {
		t.Errorf("the lease is held by %q (%v) after its holder ended", id, err)
	}
	c.service("two")
	c.shows("two", "10.5.0.1")
	if d := time.Since(began); d > 3*time.Second {
		t.Errorf("taking over took %s, as if the lease had to run out", d)
	}
	c.holders(map[string]string{"10.5.0.0": "one", "10.5.0.1": "two"})
}

// TestServerRestart stops the API server under a leader: nothing is lost or freed, and what
// happens afterwards is seen.
func TestServerRestart(t *testing.T) {
	c := newCluster(t)
	c.node("a", "192.0.2.1")
	c.pool("lb", "10.5.0.0/28", size(28), loadBalancerPool)
	c.block("10.244.0.0/29", "a", slot{node: "a", pod: "p"})
	r := c.replica()
	c.ready(r)
	c.service("one")
	c.shows("one", "10.5.0.0")
	server.StopAPI()
	// Long enough for the lease to be lost.
	c.until(func() error {
		if err := r.Ready(); err == nil {
			if _, err := c.holder(); err == nil {
				return fmt.Errorf("the API server answers")
			}
		}
		return nil
	})
	timer := time.NewTimer(4 * time.Second)
	<-timer.C
	c.must(server.StartAPI())
	c.service("two")
	c.shows("two", "10.5.0.1")
	c.ready(r)
	c.must(c.says("10.244.0.0/29", "a: 0=p"))
	c.deleteNode("a")
	c.become(map[string]string{"10.244.0.0/29": ""})
}

// TestHealthAndMetrics asks a replica over HTTP.
func TestHealthAndMetrics(t *testing.T) {
	c := newCluster(t)
	c.node("a")
	c.pool("small", "10.1.0.0/28", size(29))
	c.block("10.1.0.0/29", "a", slot{node: "a", pod: "p"}, slot{node: "a"})
	r := c.replica()
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	free := func() string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		c.must(err)
		defer l.Close()
		return l.Addr().String()
	}
	health, metrics := free(), free()
	done := make(chan error, 2)
	go func() { done <- r.Health(health).Run(ctx) }()
	go func() { done <- r.Metrics(metrics).Run(ctx) }()
	get := func(url string, words ...string) func() error {
		return func() error {
			res, err := http.Get(url)
			if err != nil {
				return err
			}
			defer res.Body.Close()
			body, err := io.ReadAll(res.Body)
			if err != nil {
				return err
			}
			for _, w := range words {
				if !strings.Contains(string(body), w) {
					return fmt.Errorf("%s: %s: %s lacks %q", url, res.Status, body, w)
				}
			}
			if res.StatusCode != http.StatusOK {
				return fmt.Errorf("%s: %s", url, res.Status)
			}
			return nil
		}
	}
	c.until(get("http://"+health+"/readyz", "ok"))
	c.until(get("http://"+health+"/livez", "ok"))
	c.until(get("http://"+metrics+"/metrics",
		`causeway_pool_addresses{pool="small",state="in_use"} 1`, `causeway_pool_addresses{pool="small",state="stash"} 1`,
		`causeway_pool_capacity_addresses{pool="small"} 16`, `causeway_pool_blocks{pool="small"} 1`, `causeway_node_blocks{node="a"} 1`,
		`causeway_controller_leader 1`, `causeway_controller_addresses_freed_total 0`))
	cancel()
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}
