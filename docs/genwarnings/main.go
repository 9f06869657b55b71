// Command genwarnings writes deploy/policies/warnings.yaml out of docs/compatibility.md.
// `go generate ./docs/...` runs it.
package main

import (
	"fmt"
	"os"

	"github.com/causeway-net/causeway/docs/compat"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "genwarnings:", err)
		os.Exit(1)
	}
}

// run works in docs/compat, where go generate starts it.
func run() error {
	page, err := os.ReadFile("../compatibility.md")
	if err != nil {
		return err
	}
	tables, err := compat.Tables(page)
	if err != nil {
		return fmt.Errorf("docs/compatibility.md: %w", err)
	}
	text, err := compat.Warnings(tables)
	if err != nil {
		return err
	}
	return os.WriteFile("../../deploy/policies/warnings.yaml", text, 0o644)
}
