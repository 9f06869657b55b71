package announce

import (
	"bytes"
	"time"
)

// The key stands in the Secret SecretName, in the namespace of the agents, under SecretKey.
const (
	SecretName = "causeway-announce"
	SecretKey  = "key"
)

const (
	// MinKey is the least length of a key, in bytes.
	MinKey = 32
	// keySpread is how long the other nodes have to hear of a new key before this one uses it.
	keySpread = 30 * time.Second
	// keyLinger is how long a key is accepted after this node ceased to use it.
	keyLinger = 5 * time.Minute
)

// keyring holds the key that is used and the ones before and after it, so that a change of
// key that reaches the nodes one after the other loses nothing.
//
// Invariant: next and previous are nil while current is.
type keyring struct {
	current, next, previous []byte
	from                    time.Time // when next becomes current
	until                   time.Time // when previous is forgotten
}

// set takes the key that all nodes are to have. The first one is used at once.
func (k *keyring) set(key []byte, now time.Time) {
	k.advance(now)
	switch {
	case len(key) == 0:
		*k = keyring{}
	case k.current == nil:
		k.current = bytes.Clone(key)
	case bytes.Equal(key, k.current):
		k.next = nil
	case !bytes.Equal(key, k.next):
		k.next, k.from = bytes.Clone(key), now.Add(keySpread)
	}
}

func (k *keyring) advance(now time.Time) {
	if k.next != nil && !now.Before(k.from) {
		k.previous, k.until = k.current, k.from.Add(keyLinger)
		k.current, k.next = k.next, nil
	}
	if k.previous != nil && !now.Before(k.until) {
		k.previous = nil
	}
}

// sealing is the key to seal with; nil: there is none.
func (k *keyring) sealing(now time.Time) []byte {
	k.advance(now)
	return k.current
}

// accepted are the keys that others may have sealed with, the likeliest first.
func (k *keyring) accepted(now time.Time) [][]byte {
	k.advance(now)
	var out [][]byte
	for _, key := range [][]byte{k.current, k.next, k.previous} {
		if key != nil {
			out = append(out, key)
		}
	}
	return out
}

// state is what to tell of it.
func (k *keyring) state(now time.Time) string {
	switch k.advance(now); {
	case k.current == nil:
		return "none"
	case k.next != nil || k.previous != nil:
		return "changing"
	}
	return "known"
}
