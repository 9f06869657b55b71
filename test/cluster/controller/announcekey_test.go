package controller_test

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-net/causeway/internal/announce"
)

// key waits for the key that agents share.
func (c *cluster) key() []byte {
	c.Helper()
	var s *corev1.Secret
	c.until(func() (err error) {
		s, err = c.Core.CoreV1().Secrets(c.namespace).Get(c.ctx, announce.SecretName, metav1.GetOptions{})
		return err
	})
	return s.Data[announce.SecretKey]
}

// TestAnnounceKey: the controller makes the key of announcements once, leaves one that is there,
// makes another when it is deleted, and says what is wrong with one that agents do not use.
func TestAnnounceKey(t *testing.T) {
	c := newCluster(t)
	secrets := c.Core.CoreV1().Secrets(c.namespace)
	r := c.replica()
	first := c.key()
	if len(first) != announce.MinKey || bytes.Equal(first, make([]byte, announce.MinKey)) {
		t.Errorf("the key has %d bytes, want %d at random", len(first), announce.MinKey)
	}
	r.stop()
	r = c.replica()
	c.ready(r)
	if !bytes.Equal(c.key(), first) {
		t.Error("the next leader changed the key")
	}
	r.stop()
	c.must(secrets.Delete(c.ctx, announce.SecretName, metav1.DeleteOptions{}))
	r = c.replica()
	if bytes.Equal(c.key(), first) {
		t.Error("the key that was deleted came back")
	}
	r.stop()

	c.must(secrets.Delete(c.ctx, announce.SecretName, metav1.DeleteOptions{}))
	_, err := secrets.Create(c.ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: announce.SecretName}, Data: map[string][]byte{announce.SecretKey: []byte("short")}}, metav1.CreateOptions{})
	c.must(err)
	c.replica()
	c.until(func() error {
		events, err := c.Core.EventsV1().Events(c.namespace).List(c.ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, e := range events.Items {
			if e.Reason == "ShortKey" && e.Note == ".data.key has 5 bytes, and agents do not use it; it must have 32 or more, or delete the Secret to have one made" {
				return nil
			}
		}
		return fmt.Errorf("no event says that the key is short: %d events", len(events.Items))
	})
	if string(c.key()) != "short" {
		t.Error("what somebody else made was changed")
	}
}

// TestAnnounceKeyForbidden: without the right to it the rest of the controller works.
func TestAnnounceKeyForbidden(t *testing.T) {
	c := newCluster(t)
	role, err := c.Core.RbacV1().Roles(c.namespace).Get(c.ctx, user, metav1.GetOptions{})
	c.must(err)
	for i := range role.Rules {
		if role.Rules[i].Resources[0] == "secrets" {
			role.Rules[i].Verbs = []string{"update"}
		}
	}
	_, err = c.Core.RbacV1().Roles(c.namespace).Update(c.ctx, role, metav1.UpdateOptions{})
	c.must(err)
	r := c.replica()
	c.ready(r)
	c.until(func() error {
		_, err := c.tiers.Get(c.ctx, "kube-admin", metav1.GetOptions{})
		return err
	})
	if _, err := c.Core.CoreV1().Secrets(c.namespace).Get(c.ctx, announce.SecretName, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Error(errors.Join(errors.New("the Secret is there"), err))
	}
}
