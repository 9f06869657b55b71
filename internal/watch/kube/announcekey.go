package kube

import (
	"bytes"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-net/causeway/internal/announce"
)

// addAnnounceKey makes the feed of the Secret that agents seal announcements with. Nothing waits
// for it. What was read stays while the Secret is gone: that is how it is changed.
func (s *Source) addAnnounceKey(tell func([]byte)) {
	contents := newTable(func(old []byte, obj metav1.Object) ([]byte, bool) {
		key := obj.(*corev1.Secret).Data[announce.SecretKey]
		return key, !bytes.Equal(old, key)
	})
	contents.moved = func(_ string, _, now *[]byte) {
		if now != nil {
			tell(*now)
		}
	}
	f := s.secretFeed(announce.SecretName)
	f.needed, f.contents, f.strip = false, contents, func(obj any) (any, error) {
		x, ok := obj.(*corev1.Secret)
		if !ok {
			return obj, nil
		}
		return &corev1.Secret{ObjectMeta: bare(&x.ObjectMeta), Data: map[string][]byte{announce.SecretKey: x.Data[announce.SecretKey]}}, nil
	}
	s.feeds = append(s.feeds, f)
}
