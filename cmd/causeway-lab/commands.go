package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/causeway-net/causeway/test/lab"
)

func upCommand(f *flags) *cobra.Command {
	o := lab.Options{}
	c := &cobra.Command{
		Use:   "up FILE.clab.yml",
		Short: "Build the topology and leave it running",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			t, err := lab.Load(args[0])
			if err != nil {
				return err
			}
			o.Name, o.StateRoot, o.Log = f.name, f.stateRoot, f.log()
			l, err := lab.Up(c.Context(), t, o)
			if err != nil {
				return err
			}
			views, err := l.Inspect(c.Context())
			fmt.Print(lab.Table(views))
			return err
		},
	}
	c.Flags().StringVar(&o.BinDir, "bin", "bin", "folder with causeway and the CNI plugins")
	c.Flags().StringSliceVar(&o.CNIPath, "cni-path", nil, "further folders with CNI plugins")
	c.Flags().BoolVar(&o.NoAgents, "no-agents", false, "leave Causeway nodes without their agent")
	return c
}

func downCommand(f *flags) *cobra.Command {
	return &cobra.Command{
		Use:   "down [NAME | FILE.clab.yml]",
		Short: "Remove a lab, whole or half built",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			name := f.name
			if name == "" && len(args) == 1 {
				name = args[0]
				if strings.HasSuffix(name, ".yml") || strings.HasSuffix(name, ".yaml") {
					t, err := lab.Load(name)
					if err != nil {
						return err
					}
					name = t.Name
				}
			}
			if name == "" {
				names := lab.List(f.stateRoot)
				if len(names) > 1 {
					return fmt.Errorf("several labs are up: say which: %v", names)
				}
				if len(names) == 0 {
					return nil
				}
				name = names[0]
			}
			return lab.Down(c.Context(), f.stateRoot, name)
		},
	}
}

func listCommand(f *flags) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "Name the labs that are up",
		Args:  cobra.NoArgs,
		Run: func(*cobra.Command, []string) {
			for _, name := range lab.List(f.stateRoot) {
				fmt.Println(name)
			}
		},
	}
}

func execCommand(f *flags) *cobra.Command {
	pod := ""
	c := &cobra.Command{
		Use:   "exec NODE -- COMMAND...",
		Short: "Run a command in a node (or with --pod in a pod of it)",
		Args:  cobra.MinimumNArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			n, err := f.node(args[0])
			if err != nil {
				return err
			}
			cmd := n.Command(c.Context(), args[1:]...)
			if pod != "" {
				p, err := podOf(n, pod)
				if err != nil {
					return err
				}
				cmd = p.Command(c.Context(), args[1:]...)
			}
			cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
			if term := os.Getenv("TERM"); term != "" {
				cmd.Env = append(cmd.Env, "TERM="+term)
			}
			return cmd.Run()
		},
	}
	c.Flags().StringVar(&pod, "pod", "", "run in this pod of the node")
	return c
}

func podOf(n *lab.Node, name string) (*lab.Pod, error) {
	if p := n.Pod(name); p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("node %s has no pod %q", n, name)
}

func printJSON(v any) error {
	e := json.NewEncoder(os.Stdout)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func inspectCommand(f *flags) *cobra.Command {
	asJSON := false
	c := &cobra.Command{
		Use:   "inspect",
		Short: "Show nodes, daemons, addresses and pods",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			l, err := f.open()
			if err != nil {
				return err
			}
			views, err := l.Inspect(c.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(views)
			}
			fmt.Print(lab.Table(views))
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "JSON")
	return c
}

func graphCommand(f *flags) *cobra.Command {
	dot, out := false, ""
	c := &cobra.Command{
		Use:   "graph [FILE.clab.yml]",
		Short: "Draw the topology: as text, as Graphviz DOT, or as a picture",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			var t *lab.Topology
			if len(args) == 1 {
				var err error
				if t, err = lab.Load(args[0]); err != nil {
					return err
				}
			} else {
				l, err := f.open()
				if err != nil {
					return err
				}
				t = l.Topology
			}
			switch {
			case out != "":
				format := strings.TrimPrefix(filepath.Ext(out), ".")
				if format == "dot" {
					return os.WriteFile(out, []byte(t.DOT()), 0o644)
				}
				if format != "svg" && format != "png" && format != "pdf" {
					return fmt.Errorf("--output %s: the name must end in .svg, .png, .pdf or .dot", out)
				}
				if _, err := exec.LookPath("dot"); err != nil {
					return errors.New("Graphviz draws the picture: apt-get install graphviz")
				}
				cmd := exec.CommandContext(c.Context(), "dot", "-T"+format, "-o", out)
				cmd.Stdin, cmd.Stderr = strings.NewReader(t.DOT()), os.Stderr
				return cmd.Run()
			case dot:
				fmt.Print(t.DOT())
			default:
				fmt.Print(t.ASCII())
			}
			return nil
		},
	}
	c.Flags().BoolVar(&dot, "dot", false, "print Graphviz DOT")
	c.Flags().StringVarP(&out, "output", "o", "", "write a picture (.svg, .png, .pdf) or .dot to this file")
	return c
}

func linkCommand(f *flags) *cobra.Command {
	return &cobra.Command{
		Use:       "link NODE INTERFACE up|down",
		Short:     "Take an interface down or bring it up",
		Args:      cobra.ExactArgs(3),
		ValidArgs: []string{"up", "down"},
		RunE: func(_ *cobra.Command, args []string) error {
			n, err := f.node(args[0])
			if err != nil {
				return err
			}
			switch args[2] {
			case "up":
				return n.LinkUp(args[1])
			case "down":
				return n.LinkDown(args[1])
			}
			return fmt.Errorf("%q: say up or down", args[2])
		},
	}
}

func daemonCommand(f *flags) *cobra.Command {
	daemon := ""
	c := &cobra.Command{
		Use:   "daemon NODE start|stop|restart|kill",
		Short: "Start, stop, restart or kill (SIGKILL) a node's daemons",
		Args:  cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			n, err := f.node(args[0])
			if err != nil {
				return err
			}
			ds := n.Daemons()
			if daemon != "" {
				d := n.Daemon(daemon)
				if d == nil {
					return fmt.Errorf("node %s has no daemon %q", n, daemon)
				}
				ds = []*lab.Daemon{d}
			}
			stop, start := false, false
			switch args[1] {
			case "start":
				start = true
			case "stop":
				stop = true
			case "restart":
				stop, start = true, true
			case "kill":
				for _, d := range ds {
					if err := d.Signal(c.Context(), unix.SIGKILL); err != nil {
						return err
					}
				}
				return nil
			default:
				return fmt.Errorf("%q: say start, stop, restart or kill", args[1])
			}
			for i := range ds {
				if d := ds[len(ds)-1-i]; stop {
					if err := d.Stop(c.Context()); err != nil {
						return err
					}
				}
			}
			for _, d := range ds {
				if start {
					if err := d.Start(c.Context()); err != nil {
						return err
					}
				}
			}
			return nil
		},
	}
	c.Flags().StringVar(&daemon, "daemon", "", "this one only")
	return c
}

func logsCommand(f *flags) *cobra.Command {
	follow, daemon := false, ""
	c := &cobra.Command{
		Use:   "logs NODE",
		Short: "Show what a node's daemons said",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			n, err := f.node(args[0])
			if err != nil {
				return err
			}
			tail := []string{"-n", "+1"}
			if follow {
				tail = append(tail, "-F")
			}
			files := 0
			for _, d := range n.Daemons() {
				if daemon == "" || d.Name == daemon {
					if _, err := os.Stat(d.LogPath()); err == nil {
						tail = append(tail, d.LogPath())
						files++
					}
				}
			}
			if files == 0 {
				return fmt.Errorf("node %s: no daemon has said anything", n)
			}
			cmd := exec.CommandContext(c.Context(), "tail", tail...)
			cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
			return cmd.Run()
		},
	}
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on as more is said")
	c.Flags().StringVar(&daemon, "daemon", "", "this one only")
	return c
}
