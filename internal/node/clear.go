package node

import (
	"context"
	"encoding/json"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	corev1 "k8s.io/api/core/v1"

	"github.com/causeway-net/causeway/internal/kubeapi"
)

// Clear takes back what a Reporter wrote to the Node, and returns what it did. A condition
// that somebody else set stays; a Node that is gone is no error.
func Clear(ctx context.Context, clients *kubeapi.Clients, name string) (done []string, err error) {
	nodes := clients.Core.CoreV1().Nodes()
	n, err := nodes.Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("Node %s: its annotations and condition stay: %w", name, err)
	}
	var gone []change
	for _, a := range owned {
		if was, ok := n.Annotations[a]; ok {
			gone = append(gone, change{a, was, ""})
			done = append(done, fmt.Sprintf("annotation %s of Node %s removed", a, name))
		}
	}
	if len(gone) > 0 {
		body, err := mergePatch(gone)
		if err != nil {
			return nil, err
		}
		if _, err := nodes.Patch(ctx, name, types.MergePatchType, body, metav1.PatchOptions{FieldManager: FieldManager}); err != nil {
			return nil, fmt.Errorf("Node %s: annotations: %w", name, err)
		}
	}
	if c := condition(n); c != nil && (c.Reason == ReasonUp || c.Reason == ReasonDown) {
		patch, err := json.Marshal(map[string]any{"status": map[string]any{"conditions": []any{
			map[string]any{"type": corev1.NodeNetworkUnavailable, "$patch": "delete"},
		}}})
		if err != nil {
			return done, err
		}
		if _, err := nodes.Patch(ctx, name, types.StrategicMergePatchType, patch, metav1.PatchOptions{FieldManager: FieldManager}, "status"); err != nil {
			return done, fmt.Errorf("Node %s: condition %s: %w", name, c.Type, err)
		}
		done = append(done, fmt.Sprintf("condition %s of Node %s removed", c.Type, name))
	}
	return done, nil
}
