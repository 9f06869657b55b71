package controller

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-net/causeway/internal/announce"
	"github.com/causeway-net/causeway/internal/kubeapi"
	"github.com/causeway-net/causeway/internal/reconcile"
)

// keyInterval is how often the key is looked for, and so how long a deletion, which asks for
// another key, goes unnoticed.
const keyInterval = time.Minute

// keymaker makes the key that agents seal their announcements with, when there is none. One
// that is there is left as it is, whoever made it.
type keymaker struct {
	*reconcile.Loop
	cfg   Config
	log   *slog.Logger
	event eventFunc
	said  string // resourceVersion of a Secret that was complained of
}

func newKeymaker(t *term) *keymaker {
	k := &keymaker{cfg: t.cfg, log: t.log}
	k.Loop = (&reconcile.Loop{Name: "announcements' key", Log: t.log, Apply: k.apply, Resync: keyInterval, MinBackoff: time.Second, MaxBackoff: time.Minute}).Init()
	return k
}

func (k *keymaker) apply(ctx context.Context, _ bool) error {
	ctx, cancel := context.WithTimeout(ctx, kubeapi.RequestTimeout)
	defer cancel()
	secrets := k.cfg.Clients.Core.CoreV1().Secrets(k.cfg.Namespace)
	s, err := secrets.Get(ctx, announce.SecretName, metav1.GetOptions{})
	switch {
	case err == nil:
		k.check(s)
		return nil
	case !apierrors.IsNotFound(err):
		return fmt.Errorf("read Secret %s/%s: %w", k.cfg.Namespace, announce.SecretName, err)
	}
	key := make([]byte, announce.MinKey)
	rand.Read(key) // never fails
	_, err = secrets.Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: announce.SecretName, Namespace: k.cfg.Namespace, Labels: map[string]string{"app.kubernetes.io/name": "causeway"}},
		Type:       corev1.SecretTypeOpaque, Data: map[string][]byte{announce.SecretKey: key},
	}, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return nil
	} else if err != nil {
		return fmt.Errorf("create Secret %s/%s: %w", k.cfg.Namespace, announce.SecretName, err)
	}
	k.log.Info("key of announcements created", "secret", k.cfg.Namespace+"/"+announce.SecretName)
	return nil
}

// check says once of each version of the Secret what is wrong with it. An empty key is none: it
// switches announcements off.
func (k *keymaker) check(s *corev1.Secret) {
	n := len(s.Data[announce.SecretKey])
	if n == 0 || n >= announce.MinKey || k.said == s.ResourceVersion {
		return
	}
	k.said = s.ResourceVersion
	k.event(corev1.ObjectReference{APIVersion: "v1", Kind: "Secret", Namespace: s.Namespace, Name: s.Name, UID: s.UID}, corev1.EventTypeWarning, "ShortKey", "ReadKey",
		fmt.Sprintf(".data.%s has %d bytes, and agents do not use it; it must have %d or more, or delete the Secret to have one made", announce.SecretKey, n, announce.MinKey))
}
