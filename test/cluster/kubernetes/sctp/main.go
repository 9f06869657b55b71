// Command sctp is what the image of agnhost starts: agnhost with SCTP of its own, so that
// specs about SCTP run on a kernel that has no such sockets. `agnhost connect
// --protocol=sctp` and the SERVE_SCTP_PORT_ variables of `agnhost porter` are done here, on
// raw sockets; everything else is upstream's program. Firewalls, connection tracking and
// address translation see the packets that a kernel's SCTP would send.
package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	upstream   = "/agnhost-upstream"
	portPrefix = "SERVE_SCTP_PORT_"
)

func main() {
	args := os.Args[1:]
	switch ports := sctpPorts(os.Environ()); {
	case len(args) > 0 && args[0] == "connect" && slices.Contains(args, "--protocol=sctp"):
		os.Exit(runConnect(args[1:]))
	case len(args) > 0 && args[0] == "porter" && len(ports) > 0:
		fail(porter(args, ports))
	default:
		fail(syscall.Exec(upstream, append([]string{os.Args[0]}, args...), os.Environ()))
	}
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "agnhost:", err)
		os.Exit(1)
	}
}

// sctpPorts are the ports that the environment wants served.
func sctpPorts(environment []string) []string {
	var out []string
	for _, v := range environment {
		if rest, ok := strings.CutPrefix(v, portPrefix); ok {
			port, _, _ := strings.Cut(rest, "=")
			out = append(out, port)
		}
	}
	return out
}

// runConnect is `agnhost connect`, with its words for what went wrong.
func runConnect(args []string) (code int) {
	timeout := 30 * time.Second
	var to netip.AddrPort
	for _, a := range args {
		var err error
		if text, ok := strings.CutPrefix(a, "--timeout="); ok {
			timeout, err = time.ParseDuration(text)
		} else if !strings.HasPrefix(a, "-") {
			to, err = netip.ParseAddrPort(a)
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "UNKNOWN: %s: %v\n", a, err)
			return 1
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	switch err := associate(ctx, to); {
	case errors.Is(err, context.DeadlineExceeded):
		fmt.Fprintln(os.Stderr, "TIMEOUT")
	case errors.Is(err, errAborted):
		fmt.Fprintln(os.Stderr, "REFUSED")
	case err != nil:
		fmt.Fprintf(os.Stderr, "OTHER: %v\n", err)
	default:
		return 0
	}
	return 1
}

// porter serves the SCTP ports and leaves the others to upstream's porter, if there are
// any. It ends with the first that ends.
func porter(args, ports []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	done := make(chan error, len(ports)+1)
	for _, port := range ports {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			return fmt.Errorf("%s%s: use a port", portPrefix, port)
		}
		go func() { done <- serve(ctx, uint16(n)) }()
	}
	others := slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, portPrefix) })
	if slices.ContainsFunc(others, func(v string) bool { return strings.HasPrefix(v, "SERVE_") }) {
		cmd := exec.CommandContext(ctx, upstream, args...)
		cmd.Env, cmd.Stdout, cmd.Stderr = others, os.Stdout, os.Stderr
		if err := cmd.Start(); err != nil {
			return err
		}
		go func() { done <- cmd.Wait() }()
	}
	err := <-done
	if ctx.Err() != nil {
		return nil
	}
	return err
}
