package route

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/causeway-net/causeway/internal/model"
)

// snapshot reads a namespace for the golden model.
func snapshot(t *testing.T, s *sockets) *golden {
	t.Helper()
	for range 100 {
		g := &golden{kern: &fakeKernel{}}
		err := s.dump(t.Context(), func(ev *event) {
			switch ev.kind {
			case linkSet:
				g.kern.links = append(g.kern.links, &fakeLink{link: ev.link})
			case routeSet:
				r := ev.route
				r.hops = slices.Clone(r.hops)
				g.fib = append(g.fib, r)
			}
		})
		if err == nil {
			return g
		}
	}
	t.Fatal("the dump is interrupted again and again")
	return nil
}

// TestWalkOnTheKernel lets a Table run while links flap and somebody else changes routes,
// ours among them; at each rest the kernel has what the golden model wants (I5), and
// nobody else's route is gone.
func TestWalkOnTheKernel(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	u := newUniverse(seed)
	w := &world{t: t, ns: newNetNS(t)}
	w.links(3)
	w.start(walkOwners...)
	for _, o := range walkOwners {
		w.table.InSync(o)
	}
	look, err := openSockets(w.ns.path(), 82, func() {})
	if err != nil {
		t.Fatal(err)
	}
	defer look.close()
	cands := map[netip.Prefix]map[model.Owner]model.Route{}
	var story []string
	for step := range 40 {
		for range 1 + u.r.IntN(4) {
			switch p, o := u.prefix(), walkOwners[u.r.IntN(len(walkOwners))]; u.r.IntN(5) {
			case 0, 1:
				r := u.route(p)
				story = append(story, fmt.Sprintf("%s sets %v", o, r))
				w.set(o, r)
				if cands[p] == nil {
					cands[p] = map[model.Owner]model.Route{}
				}
				cands[p][o] = r
			case 2:
				story = append(story, fmt.Sprintf("%s deletes %s", o, p))
				w.del(o, p.String())
				delete(cands[p], o)
			default:
				line := u.harm()
				if u.r.IntN(20) == 0 {
					line = []string{"link add cali9 type veth peer name p9", "link del cali9", "link set cali9 up"}[u.r.IntN(3)]
				}
				out, err := w.ns.try(line)
				story = append(story, fmt.Sprintf("ip %s: %v %s", line, err, strings.TrimSpace(out)))
			}
		}
		foreign := w.show("static")
		var names []string
		for _, p := range u.prefixes {
			names = append(names, p.String())
		}
		_ = w.wait(names...)
		eventually(t, func() string {
			g := snapshot(t, look)
			g.cands = cands
			wrong := g.compare(u.prefixes, func(want fibRoute) bool {
				return slices.ContainsFunc(w.table.Status().Failures, func(f Failure) bool {
					return f.Prefix == want.prefix && f.Error != "" && !strings.Contains(f.Error, ErrContested.Error())
				})
			})
			if len(wrong) == 0 {
				return ""
			}
			return fmt.Sprintf("seed %d, step %d:\n%s\nstatus %+v\nkernel\n%s\nafter\n%s", seed, step, strings.Join(wrong, "\n"), w.table.Status(),
				strings.Join(texts(g.kern, g.fib), "\n"), strings.Join(story[max(0, len(story)-12):], "\n"))
		})
		if got := w.show("static"); !slices.Equal(got, foreign) {
			t.Fatalf("seed %d, step %d: foreign routes were\n%s\nand are\n%s\nafter\n%s", seed, step, strings.Join(foreign, "\n"), strings.Join(got, "\n"), strings.Join(story[max(0, len(story)-12):], "\n"))
		}
	}
}

// TestChurnOnTheKernel changes many routes again and again and takes them all away.
func TestChurnOnTheKernel(t *testing.T) {
	t.Parallel()
	w := &world{t: t, ns: newNetNS(t)}
	w.links(2)
	w.start()
	w.table.InSync(model.OwnerBGP)
	prefixes := manyPrefixes(3000)
	ways := [][]string{{"10.0.0.2"}, {"10.0.1.2"}, {"10.0.0.2", "10.0.1.2"}}
	for i := range 6 {
		var u model.RouteUpdate
		for j, p := range prefixes {
			if (i+j)%5 == 0 {
				u.Delete = append(u.Delete, p)
			} else {
				u.Set = append(u.Set, via(p.String(), ways[(i+j)%3]...))
			}
		}
		w.table.Update(model.OwnerBGP, u)
		if i == 3 {
			w.ns.ip("route flush proto 82")
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := w.table.Wait(ctx, prefixes...); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() string {
		if n := len(w.show("82")); n != 2400 {
			return fmt.Sprintf("%d routes and not 2400", n)
		}
		return ""
	})
	w.table.Replace(model.OwnerBGP, nil)
	if err := w.table.Wait(ctx, prefixes...); err != nil {
		t.Fatal(err)
	}
	w.want()
	if s := w.table.Status(); s.Pending+s.FailureCount+s.ConflictCount+s.Stale != 0 || s.Owners[0].Installed+s.Owners[0].Candidates != 0 {
		t.Fatalf("status %+v", s)
	}
}
