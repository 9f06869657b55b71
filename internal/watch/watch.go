// Package watch owns the way from objects of the datastore (Node, Secret and the kinds of
// projectcalico.org/v3) to a model.Snapshot: validation, defaults, conversion and what
// objects mean to each other. It reads nothing; the sources that feed it (internal/watch/file
// and internal/watch/kube) do.
//
// It has two steps. Check looks at one version of one object, so that a source can keep the
// last valid version in force while a newer one is broken (Succeed). Build makes the snapshot
// of all objects in force, and disables those that conflict or lack something; a Publisher
// hands on those that differ.
package watch

import (
	"fmt"
	"reflect"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/internal/model"
)

// The kinds of the core API that are understood.
const (
	KindNode   = "Node"
	KindSecret = "Secret"
)

// DefaultSecretNamespace is where Secrets are looked up unless configured.
const DefaultSecretNamespace = "kube-system"

// Options say for whom objects are read.
type Options struct {
	Node string // name of this node, whose overrides are merged in
	// SecretNamespace is where Secrets that hold passwords live; a Secret without a
	// namespace is taken to be there. Empty: DefaultSecretNamespace.
	SecretNamespace string
	// NamespaceLabels: the labels of namespaces are known, so that pools with a
	// namespaceSelector work.
	NamespaceLabels bool
	// OwnBlocks: the objects hold the blocks of this node alone, so that their number says
	// nothing of which pool is in use.
	OwnBlocks bool
	// Policy: what concerns policy is acted on.
	Policy bool
	// Interface says which interface the host will have for a pod of this node; nil: nobody
	// knows before it is attached. See Policies.SetPod.
	Interface func(namespace, pod string) string
}

func (o Options) secretNamespace() string {
	if o.SecretNamespace == "" {
		return DefaultSecretNamespace
	}
	return o.SecretNamespace
}

// Object is one version of one object, checked. It is immutable.
type Object struct {
	Key model.Object
	// Problems of this version, without Source. Those that are not Ignored make it
	// invalid.
	Problems []model.Problem

	created time.Time
	value   any // the converted form: model.Node, model.Pool, ...; nil when invalid
}

// Valid reports whether this version may be in force.
func (o *Object) Valid() bool { return o.value != nil }

// Check validates and converts one object: *corev1.Node, *corev1.Secret, a policy of
// Kubernetes or a pointer to a kind of package v3. It panics when given another type.
func Check(obj metav1.Object, opt Options) *Object {
	c := &checker{opt: opt, o: &Object{created: obj.GetCreationTimestamp().Time}}
	c.o.Key.Name = obj.GetName()
	var value any
	switch x := obj.(type) {
	case *corev1.Node:
		c.o.Key.Kind = KindNode
		value = c.node(x)
	case *corev1.Secret:
		c.o.Key.Kind = KindSecret
		c.o.Key.Namespace = obj.GetNamespace()
		if c.o.Key.Namespace == "" {
			c.o.Key.Namespace = opt.secretNamespace()
		}
		value = c.secret(x)
	case *v3.IPPool:
		c.o.Key.Kind = v3.KindIPPool
		value = c.pool(x)
	case *v3.BGPConfiguration:
		c.o.Key.Kind = v3.KindBGPConfiguration
		value = c.bgpConfiguration(x)
	case *v3.FelixConfiguration:
		c.o.Key.Kind = v3.KindFelixConfiguration
		value = c.felixConfiguration(x)
	case *v3.BGPPeer:
		c.o.Key.Kind = v3.KindBGPPeer
		value = c.bgpPeer(x)
	case *v3.IPAMConfiguration:
		c.o.Key.Kind = v3.KindIPAMConfiguration
		value = c.ipamConfiguration(x)
	case *v3.IPReservation:
		c.o.Key.Kind = v3.KindIPReservation
		value = c.reservation(x)
	case *v3.IPAMBlock:
		c.o.Key.Kind = v3.KindIPAMBlock
		value = c.block(x)
	default:
		var ok bool
		if value, ok = c.policyKind(obj); !ok {
			panic(fmt.Sprintf("watch.Check: unexpected type %T", obj))
		}
		c.o.Key.Namespace = obj.GetNamespace()
	}
	c.metadata(obj)
	if !c.invalid {
		c.o.value = value
	}
	for i := range c.o.Problems {
		c.o.Problems[i].Object = c.o.Key
	}
	return c.o
}

// checker collects what is wrong with one object.
type checker struct {
	opt     Options
	o       *Object
	invalid bool
}

// bad notes that the object cannot be in force.
func (c *checker) bad(field, format string, args ...any) {
	c.invalid = true
	c.o.Problems = append(c.o.Problems, model.Problem{Field: field, Message: fmt.Sprintf(format, args...)})
}

// ignored notes that the object is in force and field is not acted on.
func (c *checker) ignored(field, format string, args ...any) {
	c.o.Problems = append(c.o.Problems, model.Problem{Field: field, Message: fmt.Sprintf(format, args...), Ignored: true})
}

const notYet = "is not acted on yet"

func (c *checker) metadata(obj metav1.Object) {
	if obj.GetName() == "" {
		c.bad(".metadata.name", "is missing; every object needs a name")
	} else if msgs := validation.IsDNS1123Subdomain(obj.GetName()); len(msgs) > 0 {
		c.bad(".metadata.name", "is %q; %s", obj.GetName(), msgs[0])
	}
	switch ns := obj.GetNamespace(); {
	case ns != "" && !Namespaced(c.o.Key.Kind):
		c.ignored(".metadata.namespace", "is %q, but a %s belongs to no namespace; remove it", ns, c.o.Key.Kind)
		c.o.Key.Namespace = ""
	case ns == "" && Namespaced(c.o.Key.Kind) && c.o.Key.Kind != KindSecret:
		c.bad(".metadata.namespace", "is missing; a %s belongs to a namespace", c.o.Key.Kind)
	}
}

// Equal reports whether two versions mean the same, so that the old one can stay.
func (o *Object) Equal(p *Object) bool { return o == p || reflect.DeepEqual(o, p) }
