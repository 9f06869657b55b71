package veth

import (
	"crypto/sha1"
	"encoding/hex"
	"strings"
	"sync"

	"github.com/causeway-net/causeway/internal/model"
)

// hostPrefix begins the name of every host end.
const hostPrefix = "cali"

// HostName is the name of the host end: "cali" and 11 hex digits of a SHA-1. For the eth0
// of a Kubernetes pod it is Calico's, of "namespace.pod"; a further interface of the pod
// adds its name, and without Kubernetes it is of "containerID.ifName".
func HostName(key model.AttachmentKey, namespace, pod string) string {
	of := key.ContainerID + "." + key.IfName
	if namespace != "" && pod != "" {
		of = namespace + "." + pod
		if key.IfName != "eth0" {
			of += "." + key.IfName
		}
	}
	sum := sha1.Sum([]byte(of))
	return hostPrefix + hex.EncodeToString(sum[:])[:11]
}

// Owner says what a link was made for. It stands in the kernel as the alias of the host end
// (ip link ... alias), so that a link is recognised without any record, and so that the late
// DEL of a pod's old sandbox leaves alone the link of its new one, which has the same name.
type Owner struct {
	Network string
	Key     model.AttachmentKey
}

const (
	ownerMark = "causeway"
	maxAlias  = 255 // IFALIASZ - 1, include/uapi/linux/if.h
)

func (o Owner) String() string {
	return strings.Join([]string{ownerMark, o.Network, o.Key.ContainerID, o.Key.IfName}, " ")
}

func parseOwner(alias string) (Owner, bool) {
	f := strings.Split(alias, " ")
	if len(f) != 4 || f[0] != ownerMark {
		return Owner{}, false
	}
	return Owner{Network: f[1], Key: model.AttachmentKey{ContainerID: f[2], IfName: f[3]}}, true
}

// keyed is a set of locks by name.
type keyed struct {
	mu    sync.Mutex
	locks map[string]*entry
}

type entry struct {
	sync.Mutex
	users int // who holds or waits for it; guarded by keyed.mu
}

// lock waits for the name's lock and returns what frees it.
func (k *keyed) lock(name string) (unlock func()) {
	k.mu.Lock()
	if k.locks == nil {
		k.locks = make(map[string]*entry)
	}
	e := k.locks[name]
	if e == nil {
		e = new(entry)
		k.locks[name] = e
	}
	e.users++
	k.mu.Unlock()
	e.Lock()
	return func() {
		e.Unlock()
		k.mu.Lock()
		defer k.mu.Unlock()
		if e.users--; e.users == 0 {
			delete(k.locks, name)
		}
	}
}
