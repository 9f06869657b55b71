// Command causeway-lab builds a containerlab topology file out of network namespaces on
// this machine and runs routers, Causeway agents and pods in it.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/causeway-net/causeway/test/lab"
)

func main() {
	lab.Reexec()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := root().ExecuteContext(ctx)
	stop()
	var exit *exec.ExitError
	switch {
	case err == nil:
	case errors.As(err, &exit) && exit.ExitCode() > 0:
		os.Exit(exit.ExitCode()) // of the command that exec ran
	default:
		fmt.Fprintln(os.Stderr, "causeway-lab:", err)
		os.Exit(1)
	}
}

// flags shared by all commands.
type flags struct {
	stateRoot string
	name      string
	verbose   bool
}

func (f *flags) log() *slog.Logger {
	level := slog.LevelInfo
	if f.verbose {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
}

// open finds the lab that a command means: --name, or the only one that is up.
func (f *flags) open() (*lab.Lab, error) {
	name := f.name
	if name == "" {
		switch names := lab.List(f.stateRoot); len(names) {
		case 0:
			return nil, errors.New("no lab is up; `causeway-lab up FILE.clab.yml` makes one")
		case 1:
			name = names[0]
		default:
			return nil, fmt.Errorf("several labs are up: say which with --name: %v", names)
		}
	}
	return lab.Open(f.stateRoot, name)
}

func (f *flags) node(name string) (*lab.Node, error) {
	l, err := f.open()
	if err != nil {
		return nil, err
	}
	n := l.Node(name)
	if n == nil {
		return nil, fmt.Errorf("lab %s has no node %q; it has %v", l.Name, name, l.Nodes())
	}
	return n, nil
}

func root() *cobra.Command {
	f := &flags{}
	c := &cobra.Command{
		Use:           "causeway-lab",
		Short:         "Networks of real routers, Causeway agents and pods in namespaces of this machine",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	c.PersistentFlags().StringVar(&f.stateRoot, "state", lab.DefaultStateRoot, "folder for the state of labs")
	c.PersistentFlags().StringVarP(&f.name, "name", "n", "", "name of the lab (default: the topology's, or the only lab that is up)")
	c.PersistentFlags().BoolVarP(&f.verbose, "verbose", "v", false, "log every step")
	c.AddCommand(upCommand(f), downCommand(f), listCommand(f), execCommand(f), inspectCommand(f), graphCommand(f), linkCommand(f),
		daemonCommand(f), logsCommand(f), podCommand(f), pingCommand(f), streamCommand(f), demoCommand(f))
	return c
}
