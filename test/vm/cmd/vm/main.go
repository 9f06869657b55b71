// Command vm runs a command under a stock Debian kernel: see test/vm/README.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/causeway-net/causeway/test/vm"
)

func main() {
	vm.Reexec()
	c := vm.Config{Stdout: os.Stdout, Stderr: os.Stderr, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	flag.Usage = func() {
		fmt.Fprint(os.Stderr, "usage: vm [flags] [--] COMMAND [ARG...]\n\n"+
			"The command sees this computer's files. What it writes is forgotten, but for what is below --share.\n\n")
		flag.PrintDefaults()
	}
	flag.IntVar(&c.Memory, "memory", 2048, "of the machine, in `MiB`")
	flag.IntVar(&c.CPUs, "cpus", 0, "of the machine; 0 is as many as this computer has")
	flag.DurationVar(&c.Timeout, "timeout", 10*time.Minute, "after which the machine is switched off; exit code 124")
	share := flag.String("share", checkout(), "`folder` that is shared for writing; empty for none")
	console := flag.Bool("console", false, "show the kernel's messages on standard error")
	flag.Parse()
	if flag.NArg() == 0 {
		flag.Usage()
		os.Exit(2)
	}
	c.Args = flag.Args()
	if *share != "" {
		c.Share = []string{*share}
	}
	if *console {
		c.Console = os.Stderr
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	code, err := vm.Run(ctx, c)
	switch {
	case errors.Is(err, vm.ErrTimeout):
		code = 124 // as timeout(1)
	case err != nil && code == 0:
		code = 125
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(code)
}

// checkout is the module's folder that we are in, or else the working directory.
func checkout() string {
	wd, err := os.Getwd()
	if err != nil {
		return ""
	}
	for dir := wd; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		} else if dir == filepath.Dir(dir) {
			return wd
		}
	}
}
