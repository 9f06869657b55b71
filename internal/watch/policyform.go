package watch

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"net/netip"
	"slices"

	"github.com/causeway-net/causeway/internal/model"
)

// PolicyMemory is what policy was told last, each thing in the form in which it is written to
// disk, so that neither keeping nor writing it costs much. It is for one goroutine.
type PolicyMemory struct{ things map[any][]byte }

// NewPolicyMemory makes an empty one.
func NewPolicyMemory() *PolicyMemory { return &PolicyMemory{map[any][]byte{}} }

// Keep takes an update in. What cannot be written is left out, and the error says so.
func (m *PolicyMemory) Keep(u *PolicyUpdate) error {
	var first error
	for _, c := range u.changes {
		if c.value == nil {
			delete(m.things, c.key)
			continue
		}
		data, err := encodeThing(c.value)
		if err != nil {
			if first == nil {
				first = err
			}
			delete(m.things, c.key)
			continue
		}
		m.things[c.key] = data
	}
	return first
}

// Lines are one line of JSON for each thing, to be read by ReadPolicyMemory. They must not be
// changed.
func (m *PolicyMemory) Lines() [][]byte { return slices.Collect(maps.Values(m.things)) }

// Len is the number of things.
func (m *PolicyMemory) Len() int { return len(m.things) }

// Update is all that is known as an update onto nothing.
func (m *PolicyMemory) Update() (*PolicyUpdate, error) {
	changes := changeSet{}
	for key, data := range m.things {
		value, err := decodeThing(data)
		if err != nil {
			return nil, err
		}
		changes.set(key, value)
	}
	return &PolicyUpdate{changes: changes.take()}, nil
}

// Without is the update that takes away what is known and not in now.
func (m *PolicyMemory) Without(now *PolicyMemory) *PolicyUpdate {
	changes := changeSet{}
	for key := range m.things {
		if _, there := now.things[key]; !there {
			changes.remove(key)
		}
	}
	return &PolicyUpdate{changes: changes.take()}
}

// Recall puts what is known of a pod of this node in the place of the same pod of which nothing is:
// one that is attached and whose object was not seen yet. While the source has not told everything, what holds for
// hosts stays as it is known, too: what the source says are defaults until it has read.
func (m *PolicyMemory) Recall(u *PolicyUpdate, everything bool) *PolicyUpdate {
	out := &PolicyUpdate{Pending: u.Pending, Recalled: u.Recalled, Seq: u.Seq, changes: slices.Clone(u.changes)}
	if _, known := m.things[hostKey{}]; known && !everything {
		out.changes = slices.DeleteFunc(out.changes, func(c policyChange) bool { return c.key == hostKey{} })
	}
	for i, c := range out.changes {
		ep, ok := c.value.(model.PolicyEndpoint)
		if !ok || !ep.Unknown {
			continue
		}
		data, there := m.things[c.key]
		if !there {
			continue
		}
		value, err := decodeThing(data)
		if was, ok := value.(model.PolicyEndpoint); err == nil && ok && !was.Unknown && samePod(&was, &ep) {
			was.Addresses = ep.Addresses
			out.changes[i].value = was
		}
	}
	return out
}

// samePod reports whether a pod of one name and interface is the same as before. It may have another
// sandbox, with other addresses; where a runtime tells no UID, they tell.
func samePod(was, now *model.PolicyEndpoint) bool {
	if was.Interface != now.Interface {
		return false
	}
	if was.UID != "" && now.UID != "" {
		return was.UID == now.UID
	}
	return slices.Equal(was.Addresses, now.Addresses)
}

// thing is the written form: one field is set.
type thing struct {
	Tier      *tierForm               `json:"tier,omitempty"`
	Policy    *policyForm             `json:"policy,omitempty"`
	Namespace *model.Namespace        `json:"namespace,omitempty"`
	Account   *model.ServiceAccount   `json:"account,omitempty"`
	Endpoint  *endpointForm           `json:"endpoint,omitempty"`
	Set       *model.NetworkSet       `json:"set,omitempty"`
	Node      *model.PolicyNode       `json:"node,omitempty"`
	Service   *model.ServiceEndpoints `json:"service,omitempty"`
	Host      *model.HostPolicy       `json:"host,omitempty"`
}

// JSON knows no infinite Order: there it is null.
type (
	tierForm struct {
		model.Tier
		Order *float64
	}
	policyForm struct {
		model.Policy
		Order *float64
	}
)

// endpointForm is a model.PolicyEndpoint whose empty fields take no room: there are many.
type endpointForm struct {
	ID             model.PolicyEndpointID `json:"id"`
	Labels         map[string]string      `json:"labels,omitempty"`
	ServiceAccount string                 `json:"account,omitempty"`
	Addresses      []netip.Addr           `json:"addresses,omitempty"`
	Ports          []model.EndpointPort   `json:"ports,omitempty"`
	Interface      string                 `json:"interface,omitempty"`
	UID            string                 `json:"uid,omitempty"`
	Unknown        bool                   `json:"unknown,omitempty"`
	AllowedSources []netip.Prefix         `json:"sources,omitempty"`
	Profiles       []string               `json:"profiles,omitempty"`
}

func finite(order float64) *float64 {
	if math.IsInf(order, 1) {
		return nil
	}
	return &order
}

func encodeThing(value any) ([]byte, error) {
	var t thing
	switch v := value.(type) {
	case model.Tier:
		t.Tier = &tierForm{Order: finite(v.Order), Tier: v}
	case model.Policy:
		t.Policy = &policyForm{Order: finite(v.Order), Policy: v}
	case model.Namespace:
		t.Namespace = &v
	case model.ServiceAccount:
		t.Account = &v
	case model.PolicyEndpoint:
		form := endpointForm(v)
		t.Endpoint = &form
	case model.NetworkSet:
		t.Set = &v
	case model.PolicyNode:
		t.Node = &v
	case model.ServiceEndpoints:
		t.Service = &v
	case model.HostPolicy:
		t.Host = &v
	}
	return json.Marshal(t)
}

func decodeThing(data []byte) (any, error) {
	var t thing
	if err := json.Unmarshal(data, &t); err != nil {
		return nil, err
	}
	switch {
	case t.Tier != nil:
		t.Tier.Tier.Order = orderOf(t.Tier.Order)
		return t.Tier.Tier, nil
	case t.Policy != nil:
		t.Policy.Policy.Order = orderOf(t.Policy.Order)
		return t.Policy.Policy, nil
	case t.Namespace != nil:
		return *t.Namespace, nil
	case t.Account != nil:
		return *t.Account, nil
	case t.Endpoint != nil:
		return model.PolicyEndpoint(*t.Endpoint), nil
	case t.Set != nil:
		return *t.Set, nil
	case t.Node != nil:
		return *t.Node, nil
	case t.Service != nil:
		return *t.Service, nil
	case t.Host != nil:
		return *t.Host, nil
	}
	return nil, fmt.Errorf("a thing of policy of no known form: %.80s", data)
}

func keyOf(value any) any {
	switch v := value.(type) {
	case model.Tier:
		return tierKey(v.Name)
	case model.Policy:
		return v.ID
	case model.Namespace:
		return namespaceKey(v.Name)
	case model.ServiceAccount:
		return accountKey{v.Namespace, v.Name}
	case model.PolicyEndpoint:
		return v.ID
	case model.NetworkSet:
		return v.ID
	case model.PolicyNode:
		return nodeKey(v.Name)
	case model.ServiceEndpoints:
		return v.ID
	}
	return hostKey{}
}

// maxLine bounds one thing, in bytes: a network set can have 100,000 networks.
const maxLine = 16 << 20

// ReadPolicyMemory reads what Lines returned, each with a line's end.
func ReadPolicyMemory(r io.Reader) (*PolicyMemory, error) {
	m := NewPolicyMemory()
	s := bufio.NewScanner(r)
	s.Buffer(nil, maxLine)
	for s.Scan() {
		value, err := decodeThing(s.Bytes())
		if err != nil {
			return nil, err
		}
		m.things[keyOf(value)] = bytes.Clone(s.Bytes())
	}
	return m, s.Err()
}
