// Command suite runs the list of test/vm/suite under a stock kernel, in the module's root.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/causeway-net/causeway/test/vm"
	"github.com/causeway-net/causeway/test/vm/suite"
)

func main() {
	vm.Reexec()
	c := suite.Config{Output: os.Stdout, VM: vm.Config{Log: slog.New(slog.NewTextHandler(os.Stderr, nil))}}
	flag.StringVar(&c.Only, "only", "", "run what has this `text` in its package")
	flag.IntVar(&c.VM.CPUs, "cpus", 0, "of the machines; 0 is as many as this computer has")
	flag.Parse()
	if err := run(c); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(c suite.Config) error {
	if flag.NArg() > 0 {
		return fmt.Errorf("argument %q: flags alone are taken", flag.Arg(0))
	}
	var err error
	if c.Root, err = os.Getwd(); err != nil {
		return err
	}
	if _, err := os.Stat("go.mod"); err != nil {
		return fmt.Errorf("run it in the module's root: %w", err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	return suite.Run(ctx, suite.List, c)
}
