package kube

import (
	"cmp"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/internal/model"
)

// ignoredRest is how long the words about a kind that is not acted on stay as they are
// while its objects come and go; that there are any, or none any more, is told at once.
const ignoredRest = time.Minute

// ignoredNames is how many objects are named.
const ignoredNames = 3

// unused are the kinds that nothing acts on yet and whose silence would be dangerous or
// surprising. They are watched as metadata, so that the status says what is not in force.
var unused = []struct {
	kind     string
	resource schema.GroupVersionResource
	message  string
}{
	{"BGPFilter", calico("bgpfilters"), "is not acted on yet: no route is filtered"},
	{"CalicoNodeStatus", calico("caliconodestatuses"), "is not acted on yet"},
}

func calico(resource string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: v3.GroupName, Version: v3.SchemeGroupVersion.Version, Resource: resource}
}

// ignoredKind is what is known of one of them.
type ignoredKind struct {
	object model.Object
	format string // of the words
	names  *table[struct{}]
	rested rested
}

func (s *Source) addIgnored(add func(*feed)) {
	for _, u := range unused {
		k := &ignoredKind{
			object: model.Object{Kind: u.kind + "." + u.resource.Group, Name: "*"},
			format: u.message + "; there are %d: %s", rested: rested{again: s.changedAfter},
			names: newTable(func(struct{}, metav1.Object) (struct{}, bool) { return struct{}{}, false }),
		}
		s.ignored = append(s.ignored, k)
		add(&feed{
			name: u.resource.Resource + "." + u.resource.Group, resource: u.resource.Resource + "." + u.resource.Group,
			sample: &metav1.PartialObjectMetadata{}, strip: stripMetadata, contents: k.names,
			source: metadataOf(s.cfg.Clients, u.resource, all),
		})
	}
}

func stripMetadata(obj any) (any, error) {
	m, ok := obj.(*metav1.PartialObjectMetadata)
	if !ok {
		return obj, nil
	}
	return &metav1.PartialObjectMetadata{ObjectMeta: bare(&m.ObjectMeta)}, nil
}

// problem says how many objects of the kind there are. The Source's mutex is held.
func (k *ignoredKind) problem() (model.Problem, bool) {
	words := k.rested.say(k.names.rows, k.format)
	return model.Problem{Object: k.object, Message: words, Ignored: true}, words != ""
}

// firstNames returns the first names in order, without sorting all n of them, and how many
// there are more.
func firstNames(names iter.Seq[string], n int) string {
	var out []string
	for name := range names {
		i, _ := slices.BinarySearchFunc(out, name, cmp.Compare[string])
		if i < ignoredNames {
			out = slices.Insert(out, i, name)
			out = out[:min(len(out), ignoredNames)]
		}
	}
	if more := n - len(out); more > 0 {
		out = append(out, fmt.Sprintf("%d more", more))
	}
	return strings.Join(out, ", ")
}
