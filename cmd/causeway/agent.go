package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/causeway-net/causeway/bgp/child"
	"github.com/causeway-net/causeway/felix/iptables"
	"github.com/causeway-net/causeway/internal/announce"
	"github.com/causeway-net/causeway/internal/heap"
	"github.com/causeway-net/causeway/internal/nodeaddr"
	"github.com/causeway-net/causeway/internal/task"
)

// options are the agent's settings; each is a flag and an environment variable.
type options struct {
	nodeName         string
	datastore        string
	runDir, stateDir string
	secretNamespace  string
	logLevel         string
	resync           time.Duration
	iptablesBackend  string
	allowWrites      bool
	gobgpTCP         string
	speakerUID       int
	procSys          string
	kubeconfig       string
	healthAddress    string
	metricsAddress   string
	announcePort     uint16
	cniConfDir       string
	ipv4, ipv6       string // autodetection methods

	cleanup      bool // remove everything instead
	cniBinDir    string
	cniSourceDir string
}

// The agent needs no privileged container. Of the capabilities (capabilities(7)) it needs,
// each found by running it without:
//
//   - NET_ADMIN: links, routes, rules, sysctls under net
//   - NET_RAW: legacy iptables, whose programs ask the kernel over a raw socket
//   - SYS_ADMIN: setns(2) into pods' network namespaces
//   - SETUID, SETGID, SETPCAP: start the BGP speaker as its own user with nothing but
//     NET_BIND_SERVICE, which the agent must have for it to be passed on
//   - CHOWN, FOWNER, DAC_OVERRIDE: the folder with the speaker's socket, which is the speaker's
//   - KILL: end a speaker that hangs
//
// Nothing else: no SYS_PTRACE, SYS_MODULE or SYS_RESOURCE. /proc/sys of the host is mounted
// and named with --proc-sys, since a container's own is read-only.

func agentCommand() *cobra.Command {
	_, cmd := newAgentCommand()
	return cmd
}

// newAgentCommand makes the command, and the options that its flags set.
func newAgentCommand() (*options, *cobra.Command) {
	o := new(options)
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Run the node's agent: addresses, CNI, routes, rules and BGP",
		Long: "Run the node's agent: addresses, CNI, routes, rules and BGP.\n\n" +
			"Every flag may be given as an environment variable: --node-name is CAUSEWAY_NODE_NAME.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := fromEnvironment(cmd.Flags(), os.Environ()); err != nil {
				return err
			}
			if err := o.check(); err != nil {
				return err
			}
			if o.cleanup {
				return runCleanup(cmd.Context(), *o, cmd.OutOrStdout())
			}
			return runAgent(cmd.Context(), *o)
		},
	}
	hostname, _ := os.Hostname() // without one --node-name is required, and asked for below
	f := cmd.Flags()
	f.StringVar(&o.nodeName, "node-name", hostname, "this node's name in the datastore")
	f.StringVar(&o.datastore, "datastore", "file:///etc/causeway/manifests",
		"where the objects are: kubernetes, or a folder of manifests; file:///DIR is private to this node, file:///DIR?shared=true is seen by several")
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "file that says how to reach the Kubernetes API; in a pod its service account does")
	f.StringVar(&o.runDir, "run-dir", "/run/causeway", "folder of the sockets; must not survive a reboot")
	f.StringVar(&o.stateDir, "state-dir", "/var/lib/causeway", "folder of the journal; must survive a reboot")
	f.StringVar(&o.secretNamespace, "secret-namespace", "kube-system", "namespace of the Secrets with BGP passwords")
	f.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
	f.DurationVar(&o.resync, "resync", 0, "how often the kernel is read in full to heal what others changed (default 90s, and 30s for legacy iptables, of which the kernel tells nothing)")
	f.StringVar(&o.iptablesBackend, "iptables-backend", "auto", "auto, legacy or nft")
	f.StringVar(&o.ipv4, "ip-autodetection-method", "kubernetes-internal-ip",
		"where this node's IPv4 address comes from: kubernetes-internal-ip (the Node object), first-found, can-reach=DEST, interface=REGEX[,...], skip-interface=REGEX[,...], cidr=CIDR[,...], or none; also IP_AUTODETECTION_METHOD")
	f.StringVar(&o.ipv6, "ip6-autodetection-method", "kubernetes-internal-ip", "the same for IPv6; also IP6_AUTODETECTION_METHOD")
	f.BoolVar(&o.allowWrites, "gobgp-allow-writes", false, "let the gobgp CLI change the speaker; the agent puts back what it owns")
	f.StringVar(&o.gobgpTCP, "gobgp-tcp", "", "serve the gobgp API on this loopback address too, as 127.0.0.1:50051")
	f.IntVar(&o.speakerUID, "speaker-uid", 65532, "user and group the BGP speaker runs as")
	f.StringVar(&o.procSys, "proc-sys", "/proc/sys", "folder of the host's sysctls, for a container whose own /proc/sys is read-only")
	f.StringVar(&o.healthAddress, "health-address", "", "serve /livez and /readyz on this loopback address, as 127.0.0.1:9099")
	f.StringVar(&o.metricsAddress, "metrics-address", "", "serve /metrics for Prometheus on this address, as :9091")
	f.Uint16Var(&o.announcePort, "announce-port", announce.DefaultPort, "UDP port on which agents tell each other the addresses of new pods; the same on all nodes")
	f.StringVar(&o.cniConfDir, "cni-conf-dir", "", "keep the container runtime's network configuration, 10-causeway.conflist, in this folder; it is written once the agent is ready and stays when it ends")
	f.BoolVar(&o.cleanup, "cleanup", false, "remove from this host all that Causeway made, pods' links too, and end; drain the node first")
	f.StringVar(&o.cniBinDir, "cni-bin-dir", "", "with --cleanup: remove the plugins' programs from this folder")
	f.StringVar(&o.cniSourceDir, "cni-source-dir", defaultSource, "with --cleanup: folder of the programs that `causeway install` copied")
	return o, cmd
}

// check refuses what would only fail later, and again and again.
func (o options) check() error {
	switch {
	case o.nodeName == "":
		return errors.New("--node-name: name this node as the datastore does")
	case !filepath.IsAbs(o.runDir):
		return fmt.Errorf("--run-dir %q: want an absolute path", o.runDir)
	case !filepath.IsAbs(o.stateDir):
		return fmt.Errorf("--state-dir %q: want an absolute path", o.stateDir)
	case o.secretNamespace == "":
		return errors.New("--secret-namespace: name a namespace")
	case o.resync < 0 || o.resync > 0 && o.resync < time.Second:
		return fmt.Errorf("--resync %s: want 1s or more, or 0 for the default", o.resync)
	case !slices.Contains([]string{"auto", string(iptables.Legacy), string(iptables.NFT)}, o.iptablesBackend):
		return fmt.Errorf("--iptables-backend %q: use auto, legacy or nft", o.iptablesBackend)
	case !filepath.IsAbs(o.procSys):
		return fmt.Errorf("--proc-sys %q: want an absolute path", o.procSys)
	case o.kubeconfig != "" && o.datastore != kubernetes:
		return fmt.Errorf("--kubeconfig %s: goes with --datastore kubernetes alone, which is %s", o.kubeconfig, o.datastore)
	case o.cniConfDir != "" && !filepath.IsAbs(o.cniConfDir):
		return fmt.Errorf("--cni-conf-dir %q: want an absolute path", o.cniConfDir)
	case o.cniBinDir != "" && !filepath.IsAbs(o.cniBinDir):
		return fmt.Errorf("--cni-bin-dir %q: want an absolute path", o.cniBinDir)
	case o.cniBinDir != "" && !o.cleanup:
		return errors.New("--cni-bin-dir: goes with --cleanup alone; `causeway install` puts programs there")
	case o.speakerUID < 1:
		return fmt.Errorf("--speaker-uid %d: want 1 or more; the speaker never runs as root", o.speakerUID)
	}
	if _, _, err := o.addressMethods(); err != nil {
		return err
	}
	if o.healthAddress != "" {
		if err := child.CheckTCPAddr(o.healthAddress); err != nil {
			return fmt.Errorf("--health-address: %w", err)
		}
	}
	if o.metricsAddress != "" {
		if _, port, err := net.SplitHostPort(o.metricsAddress); err != nil || port == "" {
			return fmt.Errorf("--metrics-address %q: want HOST:PORT, or :PORT for all of the node's addresses", o.metricsAddress)
		}
	}
	if o.gobgpTCP != "" {
		if err := child.CheckTCPAddr(o.gobgpTCP); err != nil {
			return fmt.Errorf("--gobgp-tcp: %w", err)
		}
	}
	return nil
}

// addressMethods say where this node's address of each family comes from.
func (o options) addressMethods() (v4, v6 nodeaddr.Method, err error) {
	if v4, err = nodeaddr.Parse(o.ipv4, false); err != nil {
		return v4, v6, fmt.Errorf("--ip-autodetection-method: %w", err)
	}
	if v6, err = nodeaddr.Parse(o.ipv6, true); err != nil {
		return v4, v6, fmt.Errorf("--ip6-autodetection-method: %w", err)
	}
	return v4, v6, nil
}

func runAgent(ctx context.Context, o options) error {
	log, err := logger(o.logLevel)
	if err != nil {
		return err
	}
	log = log.With("node", o.nodeName)
	if err := errors.Join(ownFolder("--run-dir", o.runDir), ownFolder("--state-dir", o.stateDir)); err != nil {
		return err
	}
	if os.Getenv("GOGC") == "" {
		heap.Pace()
	}
	run, err := lockRunFolder(o.runDir)
	if err != nil {
		return err
	}
	defer run.close()
	a, err := newAgent(o, log, run)
	if err != nil {
		return err
	}
	log.Info("agent starts", "version", version, "datastore", o.datastore)
	err = task.RunStages(ctx, log, a.stages()...)
	log.Info("agent ends", "error", err)
	return err
}
