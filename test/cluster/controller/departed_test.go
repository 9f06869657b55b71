package controller_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/ipam"
	"github.com/causeway-net/causeway/ipam/manifest"
)

const timestampForm = "2006-01-02 15:04:05.999999999 -0700 MST"

// slot is an address of a block and who has it: the stash of a node, or its pod.
type slot struct {
	node, pod string
	at        time.Time
}

func borrower(node string) string {
	sum := sha256.Sum256([]byte(node))
	return "causeway-net.github.io/borrower-" + hex.EncodeToString(sum[:8])
}

// block creates a block as agents would have left it.
func (c *cluster) block(cidr, owner string, slots ...slot) {
	c.Helper()
	b := ipam.NewBlock(netip.MustParsePrefix(cidr), owner, time.Now())
	labels := map[string]string{"kept": "yes"}
	b.Unallocated = nil
	for i := range b.Slots {
		if i >= len(slots) {
			b.Unallocated = append(b.Unallocated, i)
			continue
		}
		s := slots[i]
		if s.node != owner {
			labels[borrower(s.node)] = ""
		}
		if s.pod == "" {
			b.Slots[i] = ipam.Slot{Handle: ipam.StashPrefix + s.node, Attrs: map[string]string{ipam.AttrNode: s.node, ipam.AttrType: "stash"}}
			continue
		}
		if s.at.IsZero() {
			s.at = time.Now()
		}
		b.Slots[i] = ipam.Slot{Handle: "k8s-pod-network." + s.pod, Attrs: map[string]string{
			ipam.AttrNode: s.node, ipam.AttrPod: s.pod, ipam.AttrNamespace: c.namespace, ipam.AttrInterface: "eth0", ipam.AttrTimestamp: s.at.UTC().Format(timestampForm),
		}}
	}
	o := manifest.ToV3(b, 7)
	o.Labels = labels
	_, err := c.blocks.Create(c.ctx, o, metav1.CreateOptions{})
	c.must(err)
}

func name(cidr string) string { return v3.BlockName(netip.MustParsePrefix(cidr)) }

// says compares a block with what it is to be: its owner and the pods or nodes that have
// addresses. Empty want: the block is gone.
func (c *cluster) says(cidr, want string) error {
	o, err := c.blocks.Get(c.ctx, name(cidr), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		if want == "" {
			return nil
		}
		return fmt.Errorf("block %s is gone, want %q", cidr, want)
	} else if err != nil {
		return err
	}
	b, err := manifest.FromV3(o)
	if err != nil {
		return err
	}
	got := b.Node() + ":"
	for i, s := range b.Slots {
		switch {
		case s.Attrs[ipam.AttrPod] != "":
			got += fmt.Sprintf(" %d=%s", i, s.Attrs[ipam.AttrPod])
		case s.Handle != "":
			got += fmt.Sprintf(" %d=%s", i, s.Handle)
		}
	}
	if got != want {
		return fmt.Errorf("block %s: %q, want %q", cidr, got, want)
	}
	return nil
}

func (c *cluster) become(states map[string]string) {
	c.Helper()
	c.until(func() error {
		for cidr, want := range states {
			if err := c.says(cidr, want); err != nil {
				return err
			}
		}
		return nil
	})
}

func (c *cluster) remain(d time.Duration, states map[string]string) {
	c.Helper()
	c.stays(d, func() error {
		for cidr, want := range states {
			if err := c.says(cidr, want); err != nil {
				return err
			}
		}
		return nil
	})
}

func (c *cluster) deleteNode(name string) {
	c.Helper()
	c.must(c.Core.CoreV1().Nodes().Delete(c.ctx, name, metav1.DeleteOptions{}))
}

func (c *cluster) deletePod(name string) {
	c.Helper()
	now := int64(0)
	c.must(c.Core.CoreV1().Pods(c.namespace).Delete(c.ctx, name, metav1.DeleteOptions{GracePeriodSeconds: &now}))
}

// TestNodeDeleted takes a node away that owns blocks, lends and borrows, and one of whose
// pods lives on.
func TestNodeDeleted(t *testing.T) {
	c := newCluster(t)
	c.node("gone", "192.0.2.1")
	c.node("stays", "192.0.2.2")
	c.pod("survivor", "gone", "10.244.3.0")
	blocks := map[string]string{
		"10.244.0.0/29": "gone: 0=a 1=causeway-stash-gone",
		"10.244.1.0/29": "gone: 0=a2 1=lent",
		"10.244.2.0/29": "stays: 0=borrowed 1=mine",
		"10.244.3.0/29": "gone: 0=survivor 1=dead",
		"10.244.4.0/29": "stays:",
		"10.244.5.0/29": "gone:",
	}
	c.block("10.244.0.0/29", "gone", slot{node: "gone", pod: "a"}, slot{node: "gone"})
	c.block("10.244.1.0/29", "gone", slot{node: "gone", pod: "a2"}, slot{node: "stays", pod: "lent"})
	c.block("10.244.2.0/29", "stays", slot{node: "gone", pod: "borrowed"}, slot{node: "stays", pod: "mine"})
	c.block("10.244.3.0/29", "gone", slot{node: "gone", pod: "survivor"}, slot{node: "gone", pod: "dead"})
	c.block("10.244.4.0/29", "stays")
	c.block("10.244.5.0/29", "gone")
	c.ready(c.replica())
	c.remain(2*grace, blocks)

	c.deleteNode("gone")
	c.remain(grace/2, blocks)
	c.become(map[string]string{
		"10.244.0.0/29": "",
		"10.244.1.0/29": ": 1=lent",
		"10.244.2.0/29": "stays: 1=mine",
		"10.244.3.0/29": "gone: 0=survivor",
		"10.244.4.0/29": "stays:",
		"10.244.5.0/29": "",
	})
	o, err := c.blocks.Get(c.ctx, name("10.244.2.0/29"), metav1.GetOptions{})
	c.must(err)
	if _, ok := o.Labels[borrower("gone")]; ok || o.Labels["kept"] != "yes" || o.Spec.SequenceNumber != 8 {
		t.Errorf("block 10.244.2.0/29: labels %v, sequenceNumber %d; want the borrower's label gone, others kept, and 8", o.Labels, o.Spec.SequenceNumber)
	}
	if o, err = c.blocks.Get(c.ctx, name("10.244.1.0/29"), metav1.GetOptions{}); err != nil || o.Spec.Affinity != nil || o.Spec.AffinityClaimTime != nil {
		t.Errorf("block 10.244.1.0/29: affinity %v since %v (%v), want none", o.Spec.Affinity, o.Spec.AffinityClaimTime, err)
	}
	if _, ok := o.Labels[borrower("stays")]; !ok {
		t.Errorf("block 10.244.1.0/29: labels %v, want that of the living borrower", o.Labels)
	}

	c.deletePod("survivor")
	c.become(map[string]string{"10.244.3.0/29": ""})

	// The last borrower leaves, and with it the block that nobody owns.
	b, err := manifest.FromV3(o)
	c.must(err)
	b.Slots[1], b.Unallocated = ipam.Slot{}, append(b.Unallocated, 1)
	o.Spec = manifest.ToV3(b, o.Spec.SequenceNumber+1).Spec
	_, err = c.blocks.Update(c.ctx, o, metav1.UpdateOptions{})
	c.must(err)
	c.become(map[string]string{"10.244.1.0/29": "", "10.244.2.0/29": "stays: 1=mine", "10.244.4.0/29": "stays:"})
}

// TestNodeDeletedUnseen deletes a node while no controller runs.
func TestNodeDeletedUnseen(t *testing.T) {
	c := newCluster(t)
	c.block("10.244.0.0/29", "never-was", slot{node: "never-was", pod: "a"})
	c.ready(c.replica())
	c.remain(grace/2, map[string]string{"10.244.0.0/29": "never-was: 0=a"})
	c.become(map[string]string{"10.244.0.0/29": ""})
}

// TestCooldown checks that a block whose addresses rest is not deleted, lest they be given
// at once by the next who claims it.
func TestCooldown(t *testing.T) {
	c := newCluster(t)
	seconds := int32(3)
	_, err := c.ipam.Create(c.ctx, &v3.IPAMConfiguration{
		TypeMeta: metav1.TypeMeta{APIVersion: "projectcalico.org/v3", Kind: "IPAMConfiguration"}, ObjectMeta: metav1.ObjectMeta{Name: "default"},
		Spec: v3.IPAMConfigurationSpec{IPCooldownSeconds: &seconds},
	}, metav1.CreateOptions{})
	c.must(err)
	c.block("10.244.0.0/29", "gone", slot{node: "gone", pod: "a"})
	c.ready(c.replica())
	c.become(map[string]string{"10.244.0.0/29": ":"})
	freed := time.Now()
	c.become(map[string]string{"10.244.0.0/29": ""})
	if d := time.Since(freed); d < 2*time.Second {
		t.Errorf("the block was deleted %s after its address was freed, want 3s", d)
	}
}

// TestNodeRecreated gives a node's name to another machine: blocks and stash go with the
// name, and only addresses of pods that were there before are freed.
func TestNodeRecreated(t *testing.T) {
	c := newCluster(t)
	before := time.Now().Add(-time.Hour)
	c.block("10.244.0.0/29", "a",
		slot{node: "a"}, slot{node: "a", pod: "old", at: before}, slot{node: "a", pod: "static", at: before}, slot{node: "a", pod: "new"}, slot{node: "b", pod: "lent", at: before})
	c.block("10.244.1.0/29", "b", slot{node: "a", pod: "old-borrowed", at: before}, slot{node: "b", pod: "bs", at: before})
	nb := c.node("b")
	nb.Status.Conditions[0].Status = "False"
	_, err := c.Core.CoreV1().Nodes().UpdateStatus(c.ctx, nb, metav1.UpdateOptions{})
	c.must(err)
	c.node("a")
	c.pod("static", "a", "10.244.0.2")
	c.ready(c.replica())
	c.become(map[string]string{
		"10.244.0.0/29": "a: 0=causeway-stash-a 2=static 3=new 4=lent", // b is not Ready: its agent may yet speak
		"10.244.1.0/29": "b: 1=bs",
	})
	c.remain(grace, map[string]string{
		"10.244.0.0/29": "a: 0=causeway-stash-a 2=static 3=new 4=lent",
		"10.244.1.0/29": "b: 1=bs",
	})
	// The name goes and comes back within the grace time: nothing is lost.
	c.deleteNode("a")
	c.node("a")
	c.remain(2*grace, map[string]string{"10.244.0.0/29": "a: 0=causeway-stash-a 2=static 3=new 4=lent"})
}
