package ipam_test

import (
	"log/slog"
	"slices"
	"testing"

	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/internal/selector"
	"github.com/causeway-net/causeway/ipam"
)

func TestProblemsOfAPrivateFolder(t *testing.T) {
	pool := func(name, expr string) model.Pool {
		s, err := selector.Parse(expr)
		if err != nil {
			t.Fatal(err)
		}
		return model.Pool{Name: name, NodeSelector: s, AllowedUses: []model.Use{model.UseWorkload}}
	}
	snap := &model.Snapshot{
		Nodes: []model.Node{{Name: "n1", Labels: map[string]string{"kubernetes.io/hostname": "n1"}}},
		Pools: []model.Pool{pool("all", "all()"), pool("mine", `kubernetes.io/hostname == "n1"`), pool("theirs", `kubernetes.io/hostname == "n2"`)},
	}
	for _, private := range []bool{true, false} {
		a, err := ipam.New(ipam.Config{Node: "n1", Store: noStore{}, JournalDir: t.TempDir(), Log: slog.New(slog.DiscardHandler), Private: private})
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		a.Set(snap)
		var got []string
		for _, p := range a.Problems() {
			got = append(got, p.Object.Name)
		}
		if want := []string{"all"}; private && !slices.Equal(got, want) || !private && len(got) != 0 {
			t.Errorf("private %v: problems with %v", private, got)
		}
	}
}

// noStore is for tests that never get as far as the Store.
type noStore struct{ ipam.Store }
