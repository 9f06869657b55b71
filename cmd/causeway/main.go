// Command causeway is the node's agent and, as a child of its own, the BGP speaker.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
)

var version = "dev" // set by the linker

func main() {
	root := &cobra.Command{
		Use:           "causeway",
		Short:         "Causeway gives pods routed addresses that BGP carries",
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(agentCommand(), controllerCommand(), installCommand(), speakerCommand())
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "causeway:", err)
		os.Exit(1)
	}
}

// calicoNames are variables of Calico's node container that mean what a flag of ours does.
var calicoNames = map[string]string{
	"IP_AUTODETECTION_METHOD":  "ip-autodetection-method",
	"IP6_AUTODETECTION_METHOD": "ip6-autodetection-method",
}

// fromEnvironment sets every flag that the command line does not from CAUSEWAY_<FLAG>:
// --node-name is CAUSEWAY_NODE_NAME. A variable that names no flag is an error, so that
// no misspelt one is ignored in silence. Calico's names of some are understood, too, and
// ours go first.
func fromEnvironment(flags *pflag.FlagSet, environ []string) error {
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		if f := flags.Lookup(calicoNames[name]); f != nil && !f.Changed {
			if err := f.Value.Set(value); err != nil {
				return fmt.Errorf("environment: %s: %w", name, err)
			}
			continue
		}
		name, ok := strings.CutPrefix(name, "CAUSEWAY_")
		if !ok {
			continue
		}
		flag := flags.Lookup(strings.ReplaceAll(strings.ToLower(name), "_", "-"))
		if flag == nil {
			return fmt.Errorf("environment: CAUSEWAY_%s names no setting; `causeway agent --help` lists them", name)
		}
		if flag.Changed {
			continue
		}
		if err := flags.Set(flag.Name, value); err != nil {
			return fmt.Errorf("environment: CAUSEWAY_%s: %w", name, err)
		}
	}
	return nil
}

func logger(level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("--log-level %q: use debug, info, warn or error", level)
	}
	return slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: l})), nil
}
