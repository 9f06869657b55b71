// Command cluster brings the test cluster up for people, runs things in it, and takes it
// down.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"

	"golang.org/x/sys/unix"

	cluster "github.com/causeway-net/causeway/test/cluster"
)

const usage = `usage: cluster [flags] COMMAND

  up                      bring the cluster up, without a pod network
  install [MANIFEST...]   install Causeway: bin/causeway-image.tar, deploy/causeway.yaml, the peering with the ToRs
  install-helm [KEY=VALUE...]
                          the same with the Helm chart
  down                    take it down and remove all it left
  kubectl ARGS...         kubectl, as administrator
  node NODE COMMAND...    run a command on a node (or on tor1, tor2, spine, outside)
  load TAR...             import docker archives on all nodes
  logs DIR                collect everything that explains a failure
  audit-log               print the path of the API server's audit log
  off NODE, on NODE       pull a node's plug; boot it again

`

func main() {
	cluster.Reexec()
	flag.Usage = func() { fmt.Fprint(os.Stderr, usage); flag.PrintDefaults() }
	cfg := cluster.Config{Log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	flag.StringVar(&cfg.Name, "name", cluster.DefaultName, "of the cluster; several can be up at once")
	flag.StringVar(&cfg.Dir, "dir", cluster.DefaultDir, "`folder` for the clusters' files")
	flag.StringVar(&cfg.ProxyMode, "proxy-mode", "nftables", "of kube-proxy: nftables or iptables")
	flag.Parse()
	if flag.NArg() == 0 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	err := run(ctx, cfg, flag.Arg(0), flag.Args()[1:])
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		os.Exit(exit.ExitCode())
	case err != nil:
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, cfg cluster.Config, command string, args []string) error {
	switch command {
	case "up":
		c, err := cluster.Up(ctx, cfg)
		if err != nil {
			return err
		}
		fmt.Print(c.Describe(), `
  go run ./test/cluster/cmd/cluster kubectl get nodes -o wide
  go run ./test/cluster/cmd/cluster node node1 ip route
  go run ./test/cluster/cmd/cluster node tor1 vtysh -c 'show bgp summary'
  go run ./test/cluster/cmd/cluster install      (after make image)
  make cluster-down
`)
		return nil
	case "down":
		return cluster.Down(ctx, cfg)
	}
	c, err := cluster.Attach(cfg)
	if err != nil {
		return err
	}
	switch command {
	case "kubectl":
		cmd := c.KubectlCommand(ctx, args...)
		return interactive(cmd, c.StartKubectl)
	case "node":
		return onNode(ctx, c, args)
	case "install":
		return c.InstallManifest(ctx, args...)
	case "install-helm":
		return c.InstallHelm(ctx, args...)
	case "load":
		return c.LoadImage(ctx, args...)
	case "logs":
		if len(args) != 1 {
			return errors.New("logs: name one folder")
		}
		dir, err := filepath.Abs(args[0])
		if err != nil {
			return err
		}
		return c.CollectLogs(ctx, dir)
	case "audit-log":
		fmt.Println(c.AuditLog())
		return nil
	case "off", "on":
		if len(args) != 1 || c.Node(args[0]) == nil {
			return fmt.Errorf("%s: name one of node1, node2, node3, node4", command)
		}
		if command == "off" {
			return c.Node(args[0]).PowerOff(ctx)
		}
		return c.Node(args[0]).PowerOn(ctx)
	}
	flag.Usage()
	return fmt.Errorf("no command %q", command)
}

func onNode(ctx context.Context, c *cluster.Cluster, args []string) error {
	if len(args) < 2 {
		return errors.New("node: name a node and a command")
	}
	if n := c.Node(args[0]); n != nil {
		return interactive(exec.CommandContext(ctx, args[1], args[2:]...), n.Start)
	}
	for name, r := range map[string]interface {
		Command(context.Context, ...string) *exec.Cmd
	}{"tor1": c.ToR(1), "tor2": c.ToR(2), "spine": c.Spine(), "outside": c.Outside()} {
		if name == args[0] {
			return interactive(r.Command(ctx, args[1:]...), (*exec.Cmd).Start)
		}
	}
	return fmt.Errorf("no node %q: use node1 to node4, tor1, tor2, spine or outside", args[0])
}

func interactive(cmd *exec.Cmd, start func(*exec.Cmd) error) error {
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := start(cmd); err != nil {
		return err
	}
	return cmd.Wait()
}
