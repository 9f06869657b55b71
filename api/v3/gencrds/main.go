// Command gencrds generates the deep copies of package v3 and the CRD manifests in
// deploy/crds out of its types, and adds what controller-gen has no marker for.
// `go generate ./api/v3` runs it.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"gopkg.in/yaml.v3"
)

const controllerGen = "sigs.k8s.io/controller-tools/cmd/controller-gen@v0.23.0"

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "gencrds:", err)
		os.Exit(1)
	}
}

// run works in the folder of package v3, where go generate starts it.
func run() error {
	const dir = "../../deploy/crds"
	old, err := filepath.Glob(filepath.Join(dir, "projectcalico.org_*.yaml"))
	if err != nil {
		return err
	}
	for _, path := range old {
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	cmd := exec.Command("go", "run", controllerGen, "object", "crd:allowDangerousTypes=true", "paths=.", "output:crd:artifacts:config="+dir)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("controller-gen: %w", err)
	}
	made, err := filepath.Glob(filepath.Join(dir, "projectcalico.org_*.yaml"))
	if err != nil {
		return err
	}
	if len(made) == 0 {
		return errors.New("controller-gen made no CRD")
	}
	for _, path := range made {
		if err := finish(path); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return nil
}

// finish edits one CRD. The free addresses of a block are nulls in a list, and
// controller-gen marks a list's items as nullable in no way.
func finish(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return err
	}
	root := doc.Content[0]
	if strings.HasSuffix(path, "_ipamblocks.yaml") {
		items := at(root, "spec", "versions", "0", "schema", "openAPIV3Schema", "properties", "spec", "properties", "allocations", "items")
		if items == nil {
			return errors.New("no items of .spec.allocations")
		}
		set(items, "nullable", "true")
	}
	var out bytes.Buffer
	out.WriteString("---\n")
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	if err := enc.Encode(&doc); err != nil {
		return err
	}
	return os.WriteFile(path, out.Bytes(), 0o644)
}

// at is the node below n that the keys (of a list "0", its first item) lead to, or nil.
func at(n *yaml.Node, keys ...string) *yaml.Node {
	for _, key := range keys {
		if n = child(n, key); n == nil {
			return nil
		}
	}
	return n
}

func child(n *yaml.Node, key string) *yaml.Node {
	if n.Kind == yaml.SequenceNode && key == "0" && len(n.Content) > 0 {
		return n.Content[0]
	}
	if n.Kind == yaml.MappingNode {
		for i := 0; i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == key {
				return n.Content[i+1]
			}
		}
	}
	return nil
}

// set adds a key with a plain value to a mapping.
func set(n *yaml.Node, key, value string) {
	n.Content = append(n.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: key}, &yaml.Node{Kind: yaml.ScalarNode, Value: value})
}
