package driver

import "fmt"

// WaitingPod is the manifest of a pod that is bound to a node and whose network no kubelet
// ever makes: it waits for a ConfigMap that does not exist. So the API, and the agent,
// know the pod for which a Driver executes plugins.
func WaitingPod(namespace, name, node string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: %s, labels: {app: waiting}}
spec:
  nodeName: %s
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 0
  tolerations: [{operator: Exists}]
  containers: [{name: none, image: none, imagePullPolicy: Never, volumeMounts: [{name: never, mountPath: /never}]}]
  volumes: [{name: never, configMap: {name: there-is-none}}]
`, name, namespace, node)
}
