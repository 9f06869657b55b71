// Command genfacts writes api/v3/testdata/schema.txt, what is known of the schemas of
// projectcalico.org/v3: one line for each field. Its argument is a folder with a YAML file for
// each kind, which has kind, plural, shortNames, scope, group, version, columns, subresources
// and schema (the OpenAPI schemas of spec and status).
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/causeway-net/causeway/api/v3/internal/facts"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "genfacts:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 2 {
		return errors.New("want two arguments: the folder of the kinds and the file to write")
	}
	files, err := filepath.Glob(filepath.Join(args[0], "*.yaml"))
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return fmt.Errorf("%s holds no *.yaml", args[0])
	}
	var out strings.Builder
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		var k facts.Kind
		if err := yaml.Unmarshal(text, &k); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		for _, l := range k.Lines() {
			out.WriteString(l + "\n")
		}
	}
	return os.WriteFile(args[1], []byte(out.String()), 0o644)
}
