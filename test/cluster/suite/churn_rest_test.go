package suite

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-net/causeway/ipam"
	"github.com/causeway-net/causeway/test/cluster/bench/requests"
)

// holders knows who has which address. Who is entered surely has the addresses: pods are
// entered when they have got them, and leave before anybody begins to take them away. So
// an address that is entered twice is two pods' at one moment.
type holders struct {
	mu   sync.Mutex
	who  map[netip.Addr]string   // address → a description of its pod
	of   map[string][]netip.Addr // container id or pod UID → its addresses
	left map[string]bool         // ids that left, of whom late news may come
}

func newHolders() *holders {
	return &holders{who: map[netip.Addr]string{}, of: map[string][]netip.Addr{}, left: map[string]bool{}}
}

// took enters what a pod has got; the error tells of an address that is another's.
func (l *holders) took(id, who string, addrs []netip.Addr) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.left[id] || l.of[id] != nil {
		return nil
	}
	l.of[id] = addrs
	var errs []error
	for _, a := range addrs {
		if other, ok := l.who[a]; ok {
			errs = append(errs, fmt.Errorf("%s is the address of two pods: %s, and %s", a, other, who))
		}
		l.who[a] = who
	}
	return errors.Join(errs...)
}

// leaves says that a pod is about to lose its addresses.
func (l *holders) leaves(id string) { l.allLeave(func(other string) bool { return id == other }) }

// allLeave is leaves for all pods whose id is one of those.
func (l *holders) allLeave(those func(id string) bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, addrs := range l.of {
		if !those(id) {
			continue
		}
		for _, a := range addrs {
			delete(l.who, a)
		}
		delete(l.of, id)
		l.left[id] = true
	}
}

// count returns how many pods have addresses whose id is one of those.
func (l *holders) count(those func(id string) bool) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for id := range l.of {
		if those(id) {
			n++
		}
	}
	return n
}

// held returns the addresses of the direct calls' pods on a node.
func (n *churnNode) held() []netip.Addr {
	n.holders.mu.Lock()
	defer n.holders.mu.Unlock()
	var out []netip.Addr
	for _, l := range n.lanes {
		for _, a := range l.held {
			out = append(out, n.holders.of[a.ContainerID]...)
		}
	}
	return out
}

// atRest waits until the blocks, the agents and the kernels of all nodes name the same
// pods (see ledger), which are those that there are, and no node has put by too much.
func (x *churn) atRest(t *testing.T) {
	t.Helper()
	eventually(t, 2*time.Minute, func() error {
		want, err := x.pods(t.Context())
		if err != nil {
			return err
		}
		var errs []error
		for _, n := range x.nodes {
			st, err := agentOf(t.Context(), n.Node)
			if err != nil {
				return err
			}
			var got []netip.Addr
			for _, ep := range st.Endpoints {
				got = append(got, ep.Addresses...)
			}
			if missing, more := compare(want[n.Name()], got); len(missing)+len(more) > 0 {
				errs = append(errs, fmt.Errorf("%s: the agent's journal lacks %v, and has %v, which no pod has", n, missing, more))
			}
		}
		return errors.Join(append(errs, ledger(t.Context()), stashes(t.Context()))...)
	})
}

// pods returns the addresses of all pods there are, by node.
func (x *churn) pods(ctx context.Context) (map[string][]netip.Addr, error) {
	list, err := client.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	out := map[string][]netip.Addr{}
	for _, p := range list.Items {
		if p.Spec.HostNetwork || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
			continue
		}
		for _, ip := range p.Status.PodIPs {
			out[p.Spec.NodeName] = append(out[p.Spec.NodeName], netip.MustParseAddr(ip.IP))
		}
	}
	for _, n := range x.nodes {
		out[n.Name()] = append(out[n.Name()], n.held()...)
	}
	return out, nil
}

// stashLimit is the most that a node puts by of a pool: 32, which is half a block, and as
// much again before it gives some back.
const stashLimit = 64

// stashes returns an error when a node has put by more than it may: a leak that no handle
// of a pod shows.
func stashes(ctx context.Context) error {
	blocks, err := blocksOf(ctx)
	if err != nil {
		return err
	}
	type whose struct {
		stash string
		v6    bool
	}
	size := map[whose]int{}
	for i := range blocks {
		b := &blocks[i].Spec
		for _, at := range b.Allocations {
			if at == nil {
				continue
			}
			if handle := value(b.Attributes[*at].HandleID); strings.HasPrefix(handle, ipam.StashPrefix) {
				size[whose{handle, strings.Contains(b.CIDR, ":")}]++
			}
		}
	}
	var errs []error
	for w, n := range size {
		if n > stashLimit {
			errs = append(errs, fmt.Errorf("%s: %d addresses (IPv6: %t) are put by, want %d at most", w.stash, n, w.v6, stashLimit))
		}
	}
	return errors.Join(errs...)
}

// compare returns what want has and got has not, and the other way round; what one has
// twice and the other once is different, too.
func compare(want, got []netip.Addr) (missing, more []netip.Addr) {
	count := map[netip.Addr]int{}
	for _, a := range want {
		count[a]++
	}
	for _, a := range got {
		count[a]--
	}
	for _, a := range slices.SortedFunc(maps.Keys(count), netip.Addr.Compare) {
		switch {
		case count[a] > 0:
			missing = append(missing, a)
		case count[a] < 0:
			more = append(more, a)
		}
	}
	return missing, more
}

var podLink = regexp.MustCompile(`\bcali[0-9a-f]{11}\b`)

// nothingLeft waits until no rule, route or neighbour of a node names a link that is gone, or
// a container of the direct calls, as the chains of host ports do.
func (x *churn) nothingLeft(t *testing.T) {
	t.Helper()
	eventually(t, 30*time.Second, func() error {
		var errs []error
		for _, n := range x.nodes {
			errs = append(errs, x.leftOn(t.Context(), n))
		}
		return errors.Join(errs...)
	})
}

// leftOn names what nothingLeft looks for on a node.
func (x *churn) leftOn(ctx context.Context, n *churnNode) error {
	// Links come second: one that is made meanwhile is there then.
	rules, err := n.Exec(ctx, "sh", "-c", "iptables-save; ip6tables-save; nft list ruleset; for f in -4 -6; do ip $f rule; ip $f route; ip $f neigh; done")
	if err != nil {
		return err
	}
	links, err := n.Exec(ctx, "ip", "-brief", "link")
	if err != nil {
		return err
	}
	x.holders.mu.Lock()
	defer x.holders.mu.Unlock()
	var errs []error
	for line := range strings.Lines(rules) {
		left := false
		for _, link := range podLink.FindAllString(line, -1) {
			left = left || !strings.Contains(links, link)
		}
		for id := range x.holders.left {
			left = left || strings.Contains(line, id[:16])
		}
		if left {
			errs = append(errs, fmt.Errorf("%s: left behind: %s", n, strings.TrimSpace(line)))
		}
	}
	return errors.Join(errs...)
}

// count begins to count what the agents ask the API server. The function that it returns
// says what that is for each of so many addresses, and fails the test when it is too much.
func (x *churn) count(t *testing.T) (cost func(addresses int, mostWrites float64)) {
	t.Helper()
	log, err := requests.Open(c.AuditLog())
	if err != nil {
		t.Fatal(err)
	}
	before := x.served(t)
	return func(addresses int, mostWrites float64) {
		t.Helper()
		// The log has all that the server's own metrics have, whoever asked: not in the same
		// instant, and agents may write until then.
		var all []requests.Request
		eventually(t, 30*time.Second, func() error {
			served := x.served(t) - before
			more, err := log.Next()
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, more...)
			logged := 0
			for _, r := range all {
				if r.Resource == "ipamblocks" && r.Write() {
					logged++
				}
			}
			if logged != served || logged == 0 {
				return fmt.Errorf("the audit log has %d writes of blocks, the API server's metrics %d: want the same, and some", logged, served)
			}
			return nil
		})
		n := requests.CostOf(all)
		writes, reads := float64(n.Writes)/float64(addresses), float64(n.Reads)/float64(addresses)
		t.Logf("%d addresses, %.3f writes and %.3f reads for each: %s", addresses, writes, reads, n)
		if writes > mostWrites {
			t.Errorf("%.3f writes for an address, want %.2f at most", writes, mostWrites)
		}
		if n.Reads > 0 {
			t.Errorf("%d reads, want none in the path of an ADD or a DEL", n.Reads)
		}
		if n.ClaimReads > n.Claims {
			t.Errorf("%d reads for %d claims, want one for each at most", n.ClaimReads, n.Claims)
		}
	}
}

var writesTotal = regexp.MustCompile(`(?m)^apiserver_request_total\{.*resource="ipamblocks".*verb="(?:POST|PUT|PATCH|DELETE)".*\} ([0-9.e+]+)$`)

// served returns how many writes of blocks the API server's metrics have, all users'.
func (x *churn) served(t *testing.T) int {
	t.Helper()
	body, err := x.api.V3.Get().AbsPath("/metrics").Do(t.Context()).Raw()
	if err != nil {
		t.Fatal(err)
	}
	sum := 0.0
	for _, m := range writesTotal.FindAllSubmatch(body, -1) {
		n, err := strconv.ParseFloat(string(m[1]), 64)
		if err != nil {
			t.Fatal(err)
		}
		sum += n
	}
	return int(sum)
}
