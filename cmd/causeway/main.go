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

// fromEnvironment sets every flag that the command line does not from CAUSEWAY_<FLAG>:
// --node-name is CAUSEWAY_NODE_NAME. A variable that names no flag is an error, so that
// no misspelt one is ignored in silence.
func fromEnvironment(flags *pflag.FlagSet, environ []string) error {
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
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
