package cluster

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/causeway-net/causeway/test/cluster/internal/machine"
)

// Peering is the manifest of the pools and the sessions with the ToRs.
//
//go:embed peering.yaml
var Peering string

// Repository is the folder of this repository that the working folder is in.
func Repository() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for at := dir; at != "/"; at = filepath.Dir(at) {
		if exists(filepath.Join(at, "deploy", "causeway.yaml")) {
			return at, nil
		}
	}
	return "", fmt.Errorf("%s is not in the repository of Causeway (no deploy/causeway.yaml above it)", dir)
}

// LoadCauseway imports the image that `make image` makes, bin/causeway-image.tar.
func (c *Cluster) LoadCauseway(ctx context.Context) error {
	root, err := Repository()
	if err != nil {
		return err
	}
	tar := filepath.Join(root, "bin", "causeway-image.tar")
	if !exists(tar) {
		return fmt.Errorf("%s is missing: run `make image`", tar)
	}
	return c.LoadImage(ctx, tar)
}

// InstallManifest installs Causeway as a user does: the image, `kubectl apply` of the
// manifests (deploy/causeway.yaml if none is named), then Peering. It returns when all
// nodes are Ready and the controllers run. Where Causeway is installed already, agents
// and controllers are restarted, one after the other, with the image just loaded.
func (c *Cluster) InstallManifest(ctx context.Context, manifests ...string) error {
	root, err := Repository()
	if err != nil {
		return err
	}
	if len(manifests) == 0 {
		manifests = []string{filepath.Join(root, "deploy", "causeway.yaml")}
	}
	if err := c.LoadCauseway(ctx); err != nil {
		return err
	}
	before, err := c.Kubectl(ctx, "-n", "kube-system", "get", "daemonset/causeway-agent", "--ignore-not-found", "-o", "name")
	if err != nil {
		return err
	}
	for _, m := range manifests {
		if _, err := c.Kubectl(ctx, "apply", "-f", m); err != nil {
			return err
		}
	}
	if before != "" { // the image's name is the same, so the manifest is, too
		if _, err := c.Kubectl(ctx, "-n", "kube-system", "rollout", "restart", "daemonset/causeway-agent", "deployment/causeway-controller"); err != nil {
			return err
		}
	}
	return c.finishInstall(ctx)
}

// InstallHelm installs Causeway with the chart in deploy/helm/causeway and then Peering;
// values are "key=value". It returns when all nodes are Ready and the controllers run.
func (c *Cluster) InstallHelm(ctx context.Context, values ...string) error {
	root, err := Repository()
	if err != nil {
		return err
	}
	if err := c.LoadCauseway(ctx); err != nil {
		return err
	}
	args := []string{"install", "causeway", filepath.Join(root, "deploy", "helm", "causeway"), "--namespace", "kube-system"}
	for _, v := range values {
		args = append(args, "--set", v)
	}
	if _, err := c.Helm(ctx, args...); err != nil {
		return err
	}
	return c.finishInstall(ctx)
}

// Helm runs Helm as the administrator; deploy/scripts/helm builds it the first time.
func (c *Cluster) Helm(ctx context.Context, args ...string) (string, error) {
	root, err := Repository()
	if err != nil {
		return "", err
	}
	path, err := exec.CommandContext(ctx, filepath.Join(root, "deploy", "scripts", "helm"), "--path").Output()
	if err != nil {
		return "", fmt.Errorf("deploy/scripts/helm: %w", err)
	}
	cmd := exec.CommandContext(ctx, strings.TrimSpace(string(path)), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.Kubeconfig(), "HELM_CACHE_HOME="+filepath.Join(c.dir, "helm-cache"))
	cmd.Dir = root
	return machine.Output(ctx, cmd, c.cp.StartNet)
}

func (c *Cluster) finishInstall(ctx context.Context) error {
	if _, err := c.Kubectl(ctx, "wait", "--for=condition=Established", "--timeout=60s", "crd/ippools.projectcalico.org",
		"crd/bgpconfigurations.projectcalico.org", "crd/bgppeers.projectcalico.org"); err != nil {
		return err
	}
	if err := c.Apply(ctx, Peering); err != nil {
		return err
	}
	return c.AwaitReady(ctx)
}

// CausewayVersion is what the agents say that they are. It is an error if they differ.
func (c *Cluster) CausewayVersion(ctx context.Context) (string, error) {
	var version string
	for _, n := range c.nodes {
		out, err := n.Exec(ctx, "curl", "-sS", "--max-time", "5", "--unix-socket", "/run/causeway/agent.sock", "http://agent/status")
		if err != nil {
			return "", err
		}
		var status struct {
			Version string `json:"version"`
		}
		if err := json.Unmarshal([]byte(out), &status); err != nil {
			return "", fmt.Errorf("%s: agent's status: %w", n, err)
		}
		switch {
		case status.Version == "":
			return "", fmt.Errorf("%s: the agent's status names no version", n)
		case version != "" && version != status.Version:
			return "", fmt.Errorf("%s runs Causeway %s, nodes before it %s", n, status.Version, version)
		}
		version = status.Version
	}
	return version, nil
}

// AwaitReady waits until all nodes are Ready, the agents and the controllers are rolled
// out, and every ToR has a session with every node of its rack, for each family.
func (c *Cluster) AwaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	if err := all(
		func() error { return c.rollout(ctx, "daemonset/causeway-agent") },
		func() error { return c.rollout(ctx, "deployment/causeway-controller") },
		func() error {
			_, err := c.Kubectl(ctx, "wait", "--for=condition=Ready", "--timeout=170s", "nodes", "--all")
			return err
		},
	); err != nil {
		return err
	}
	return c.AwaitSessions(ctx)
}

func (c *Cluster) rollout(ctx context.Context, what string) error {
	_, err := c.Kubectl(ctx, "-n", "kube-system", "rollout", "status", "--timeout=170s", what)
	return err
}

// AwaitSessions waits until the ToRs' sessions with all nodes are established, three minutes
// at most.
func (c *Cluster) AwaitSessions(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	return poll(ctx, 100*time.Millisecond, func() error {
		var errs []error
		for _, n := range c.nodes {
			for _, a := range n.Addrs() {
				state, err := c.ToR(n.Rack()).Session(ctx, a)
				if err != nil {
					return err
				}
				if state != "Established" {
					errs = append(errs, fmt.Errorf("tor%d: session with %s (%s): %s", n.Rack(), n.Name(), a, state))
				}
			}
		}
		return errors.Join(errs...)
	})
}
