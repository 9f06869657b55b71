// Command causeway-cni is Causeway's CNI plugin (CNI specification 0.3.0 to 1.1.0). The
// container runtime executes it; the agent does the work.
package main

import (
	"os"

	"github.com/causeway-net/causeway/cni-plugin/client"
)

// version is set by the linker.
var version = "development"

func main() {
	os.Exit(client.Run(client.Config{
		Getenv: os.Getenv, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		About: "causeway-cni " + version + ", the CNI plugin of Causeway",
	}))
}
