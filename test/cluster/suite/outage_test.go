package suite

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/test/cluster"
)

// away is how long the API server stays away.
const away = 2 * time.Minute

// TestAPIServerAway stops the API server for two minutes. Flows live. On every node a pod that
// was known before is restarted: it gets an address and works. A pod that nobody knows, added
// by CNI directly, gets one, too; TestPolicyAPIServerAway sees that nothing passes by it. When the server is back everything is accounted for.
func TestAPIServerAway(t *testing.T) {
	ns := namespace(t)
	web := daemonSet(t, ns, "web")
	victims := daemonSet(t, ns, "victim")
	ghost := sandboxOf(t, c.Node("node2"), ns, "ghost") // its object never comes
	stop := streams(t, crossRack(t, web)...)

	ctx := t.Context()
	if err := c.StopAPIServer(ctx); err != nil {
		t.Fatal(err)
	}
	back := false
	t.Cleanup(func() {
		if !back {
			if err := c.StartAPIServer(context.Background()); err != nil {
				t.Error(err)
			}
		}
	})
	stopped := time.Now()

	was := map[string]model.Endpoint{}
	for _, v := range victims {
		ep, err := endpointOf(ctx, v)
		if err != nil {
			t.Fatal(err)
		}
		was[v.Name] = ep
		if _, err := v.Node.Exec(ctx, ctr(), "-n", "k8s.io", "tasks", "kill", "-s", "SIGKILL", ep.Key.ContainerID); err != nil {
			t.Fatal(err)
		}
	}
	start := time.Now()
	if err := ghost.add(ctx); err != nil {
		t.Errorf("ADD of a pod that nobody knows: %v", err)
	} else {
		t.Logf("%s has %v after %s", ghost, ghost.addrs, time.Since(start).Round(time.Millisecond))
	}
	for _, v := range victims {
		var ep model.Endpoint
		eventually(t, away-10*time.Second, func() (err error) {
			if ep, err = endpointOf(ctx, v); err == nil && ep.Key.ContainerID == was[v.Name].Key.ContainerID {
				err = fmt.Errorf("%s: kubelet has not restarted its sandbox yet", v)
			}
			return err
		})
		t.Logf("%s was restarted, with %v after %v, %s into the outage", v, ep.Addresses, was[v.Name].Addresses, time.Since(stopped).Round(time.Second))
		for _, a := range ep.Addresses {
			eventually(t, 30*time.Second, func() error {
				out, err := get(ctx, web[0], a.String(), 8080, "/hostname")
				if err == nil && out != v.Name {
					err = fmt.Errorf("%s answers at %s, want %s", out, a, v.Name)
				}
				return err
			})
		}
		eventually(t, 10*time.Second, func() error {
			_, err := get(ctx, v.Node, ep.Addresses[0].String(), 8080, "/hostname")
			return err
		})
	}
	for _, n := range c.Nodes() {
		if st, err := agentOf(ctx, n); err != nil || !st.Ready {
			t.Errorf("%s: not ready while the API server is away: %s %v", n, st.NotReady, err)
		}
	}
	// Not before the time is over: what has a deadline must meet it.
	<-time.After(time.Until(stopped.Add(away)))
	if err := c.StartAPIServer(ctx); err != nil {
		t.Fatal(err)
	}
	back = true
	kubectl(t, "wait", "--for=condition=Ready", "--timeout=120s", "nodes", "--all")
	stop()

	// The API hears of it all.
	eventually(t, 2*time.Minute, func() error {
		list, err := c.Pods(ctx, ns, "app=victim")
		if err != nil {
			return err
		}
		if len(list) != len(victims) {
			return fmt.Errorf("%d victims run, want %d", len(list), len(victims))
		}
		for _, p := range list {
			ep, err := endpointOf(ctx, p)
			if err != nil {
				return err
			}
			if !slices.Equal(p.Addrs, ep.Addresses) {
				return fmt.Errorf("%s says that it has %v, its agent %v", p, p.Addrs, ep.Addresses)
			}
		}
		return nil
	})
	balanced(t, 2*time.Minute)
	for _, n := range c.Nodes() {
		eventually(t, time.Minute, func() error {
			st, err := agentOf(ctx, n)
			if err == nil && st.Source.Error != "" {
				err = errors.New(st.Source.Error)
			}
			return err
		})
	}
	later := deployment(t, ns, "later", len(c.Nodes()))
	ping(t, ends(later), ends(pods(t, ns, "app=victim", len(victims))))
	if err := ghost.remove(ctx); err != nil {
		t.Error(err)
	}
	balanced(t, time.Minute)
}

// endpointOf is what the agent of a pod's node has promised it.
func endpointOf(ctx context.Context, p *cluster.Pod) (model.Endpoint, error) {
	st, err := agentOf(ctx, p.Node)
	if err != nil {
		return model.Endpoint{}, err
	}
	var found []model.Endpoint
	for _, ep := range st.Endpoints {
		if ep.Namespace == p.Namespace && ep.Pod == p.Name && ep.Wired() {
			found = append(found, ep)
		}
	}
	if len(found) != 1 {
		return model.Endpoint{}, fmt.Errorf("%s has %d endpoints: %v", p, len(found), found)
	}
	return found[0], nil
}

// ctr is containerd's own client.
func ctr() string { return strings.TrimSuffix(cluster.Images(), "images") + "bin/ctr" }
