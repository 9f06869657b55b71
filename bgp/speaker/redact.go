package speaker

import (
	"strings"
	"sync"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// plan says where in messages of one type passwords can stand. It follows from the type alone,
// so a message that can hold none, as those of a route stream, costs one lookup.
type plan struct {
	blank []protoreflect.FieldDescriptor // strings and bytes whose name says password
	into  []step                         // fields whose messages must be looked into
}

type step struct {
	field protoreflect.FieldDescriptor
	plan  *plan
}

func (p *plan) idle() bool { return len(p.blank) == 0 && len(p.into) == 0 }

var plans sync.Map // protoreflect.MessageDescriptor -> *plan

// redact blanks every password in an answer, in place: GoBGP builds each answer anew.
func redact(answer any) {
	m, ok := answer.(proto.Message)
	if !ok {
		return
	}
	r := m.ProtoReflect()
	if !r.IsValid() {
		return
	}
	d := r.Descriptor()
	p, ok := plans.Load(d)
	if !ok {
		p, _ = plans.LoadOrStore(d, planFor(d, map[protoreflect.FullName]bool{}))
	}
	p.(*plan).apply(r)
}

// planFor walks a type. A type inside itself is not walked twice: above holds the types it
// stands in, and GoBGP's API has no recursive type that could hold a password.
func planFor(d protoreflect.MessageDescriptor, above map[protoreflect.FullName]bool) *plan {
	p := &plan{}
	if above[d.FullName()] {
		return p
	}
	above[d.FullName()] = true
	defer delete(above, d.FullName())
	for i := range d.Fields().Len() {
		f := d.Fields().Get(i)
		switch {
		case f.Kind() == protoreflect.StringKind || f.Kind() == protoreflect.BytesKind:
			if strings.Contains(strings.ToLower(string(f.Name())), "password") {
				p.blank = append(p.blank, f)
			}
		case f.IsMap():
			v := f.MapValue()
			if v.Message() != nil {
				if sub := planFor(v.Message(), above); !sub.idle() {
					p.into = append(p.into, step{f, sub})
				}
			}
		case f.Message() != nil:
			if sub := planFor(f.Message(), above); !sub.idle() {
				p.into = append(p.into, step{f, sub})
			}
		}
	}
	return p
}

func (p *plan) apply(m protoreflect.Message) {
	for _, f := range p.blank {
		if m.Has(f) {
			m.Clear(f)
		}
	}
	for _, s := range p.into {
		if !m.Has(s.field) {
			continue
		}
		v := m.Get(s.field)
		switch {
		case s.field.IsList():
			for i := range v.List().Len() {
				s.plan.apply(v.List().Get(i).Message())
			}
		case s.field.IsMap():
			v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
				s.plan.apply(v.Message())
				return true
			})
		default:
			s.plan.apply(v.Message())
		}
	}
}
