package watch

import (
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/internal/model"
)

// TestPoolBeingDeleted checks that a pool that a finalizer keeps gives no new addresses, and
// that nodes give back their tunnels', which would keep it for ever.
func TestPoolBeingDeleted(t *testing.T) {
	now := metav1.NewTime(time.Unix(1, 0))
	p := &v3.IPPool{ObjectMeta: metav1.ObjectMeta{Name: "p", DeletionTimestamp: &now}, Spec: v3.IPPoolSpec{CIDR: "10.0.0.0/16"}}
	o := Check(p, Options{})
	if !o.Valid() || !o.value.(model.Pool).Disabled {
		t.Errorf("%+v", o)
	}
	if p := o.value.(model.Pool); p.Allows(model.UseTunnel) || !p.Allows(model.UseWorkload) {
		t.Errorf("it is for %v", p.AllowedUses)
	}
}
