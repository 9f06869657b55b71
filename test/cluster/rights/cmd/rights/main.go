// Command rights compares the rights that deploy/causeway.yaml grants with those that an
// audit log shows in use, and fails when some are unused or were denied:
//
//	rights --audit audit.log [--manifest deploy/causeway.yaml] [--rare FILE]
package main

import (
	"flag"
	"fmt"
	"os"

	"github.com/causeway-net/causeway/test/cluster/rights"
)

func main() {
	audit := flag.String("audit", "", "audit log of the API server, one JSON event a line (required)")
	manifest := flag.String("manifest", "deploy/causeway.yaml", "manifest with the roles and bindings")
	rare := flag.String("rare", "", "file of rights that may stay unused, one a line")
	flag.Parse()
	if err := run(*audit, *manifest, *rare); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(audit, manifest, rare string) error {
	m, err := os.ReadFile(manifest)
	if err != nil {
		return err
	}
	f, err := os.Open(audit)
	if err != nil {
		return err
	}
	defer f.Close()
	r, err := rights.Compare(m, f)
	if err != nil {
		return err
	}
	exceptions := map[string]bool{}
	if rare != "" {
		f, err := os.Open(rare)
		if err != nil {
			return err
		}
		defer f.Close()
		if exceptions, err = rights.Exceptions(f); err != nil {
			return fmt.Errorf("%s: %w", rare, err)
		}
	}
	return r.Print(os.Stdout, exceptions)
}
