package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/causeway-net/causeway/internal/controller"
	"github.com/causeway-net/causeway/internal/kubeapi"
	"github.com/causeway-net/causeway/internal/task"
)

// controllerOptions are the controller's settings; each is a flag and an environment
// variable.
type controllerOptions struct {
	kubeconfig     string
	namespace      string
	healthAddress  string
	metricsAddress string
	logLevel       string
	nodeGrace      time.Duration
	defaults       controller.Defaults
}

func controllerCommand() *cobra.Command {
	_, cmd := newControllerCommand()
	return cmd
}

// newControllerCommand makes the command, and the options that its flags set.
func newControllerCommand() (*controllerOptions, *cobra.Command) {
	o := new(controllerOptions)
	cmd := &cobra.Command{
		Use:   "controller",
		Short: "Run what is cluster-wide: addresses of nodes that are gone, default pools, pools' conditions, load balancer addresses",
		Long: "Run what is cluster-wide: addresses of nodes that are gone, default pools, pools' conditions, load balancer addresses.\n\n" +
			"Several may run; one of them leads. Every flag may be given as an environment variable: --node-grace is CAUSEWAY_NODE_GRACE.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := fromEnvironment(cmd.Flags(), os.Environ()); err != nil {
				return err
			}
			return runController(cmd.Context(), *o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "how to reach the Kubernetes API; empty: as the pod's service account")
	f.StringVar(&o.namespace, "namespace", "kube-system", "namespace of the Lease that says which replica leads")
	f.StringVar(&o.healthAddress, "health-address", "127.0.0.1:9098", "serve /livez and /readyz on this address")
	f.StringVar(&o.metricsAddress, "metrics-address", "", "serve /metrics (Prometheus) on this address; empty: nowhere")
	f.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
	f.DurationVar(&o.nodeGrace, "node-grace", 5*time.Minute, "how long a Node has to be gone before its addresses and blocks are freed")
	f.BoolVar(&o.defaults.None, "no-default-pools", false, "create no IPPool in a new cluster")
	poolFlags(f, "ipv4", &o.defaults.V4)
	f.StringVar(&o.defaults.V4.IPIP, "ipv4-pool-ipip", "Never", "ipipMode of the default IPv4 pool: Never, CrossSubnet or Always")
	f.BoolVar(&o.defaults.V4.NATOutgoing, "ipv4-pool-nat-outgoing", true, "natOutgoing of the default IPv4 pool")
	poolFlags(f, "ipv6", &o.defaults.V6)
	f.BoolVar(&o.defaults.V6.NATOutgoing, "ipv6-pool-nat-outgoing", false, "natOutgoing of the default IPv6 pool")
	return o, cmd
}

// poolFlags are those that the default pools of both families have.
func poolFlags(f *pflag.FlagSet, family string, o *controller.PoolOptions) {
	name := strings.Replace(family, "ip", "IP", 1)
	size := 26
	if family == "ipv6" {
		size = 122
	}
	f.StringVar(&o.CIDR, family+"-pool", "", "CIDR of the default "+name+" pool that a new cluster gets; empty: what kubeadm or kube-proxy say; none: no such pool")
	f.StringVar(&o.VXLAN, family+"-pool-vxlan", "Never", "vxlanMode of the default "+name+" pool: Never, CrossSubnet or Always")
	f.IntVar(&o.BlockSize, family+"-pool-block-size", size, "blockSize of the default "+name+" pool")
	f.StringVar(&o.NodeSelector, family+"-pool-node-selector", "all()", "nodeSelector of the default "+name+" pool")
	f.BoolVar(&o.DisableBGPExport, family+"-pool-disable-bgp-export", false, "disableBGPExport of the default "+name+" pool")
}

// check refuses what would only fail later.
func (o controllerOptions) check() error {
	switch {
	case o.namespace == "":
		return errors.New("--namespace: name a namespace")
	case o.nodeGrace < time.Second:
		return fmt.Errorf("--node-grace %s: want 1s or more", o.nodeGrace)
	}
	for flag, address := range map[string]string{"--health-address": o.healthAddress, "--metrics-address": o.metricsAddress} {
		if address == "" && flag == "--metrics-address" {
			continue
		}
		if _, _, err := net.SplitHostPort(address); err != nil {
			return fmt.Errorf("%s %q: want an address and a port, as 127.0.0.1:9098", flag, address)
		}
	}
	return nil
}

func runController(ctx context.Context, o controllerOptions) error {
	log, err := logger(o.logLevel)
	if err != nil {
		return err
	}
	if err := o.check(); err != nil {
		return err
	}
	cfg, err := kubeapi.Load(o.kubeconfig, "causeway-controller/"+version)
	if err != nil {
		return err
	}
	clients, err := kubeapi.New(cfg)
	if err != nil {
		return err
	}
	hostname, err := os.Hostname()
	if err != nil {
		return err
	}
	c, err := controller.New(controller.Config{
		Clients: clients, Namespace: o.namespace, Log: log, Defaults: o.defaults, NodeGrace: o.nodeGrace,
		// Two replicas on one host, or a container that starts again, are not the same.
		Identity: fmt.Sprintf("%s_%d_%d", hostname, os.Getpid(), time.Now().UnixNano()),
	})
	if err != nil {
		return err
	}
	tasks := []task.Task{c, c.Health(o.healthAddress)}
	if o.metricsAddress != "" {
		tasks = append(tasks, c.Metrics(o.metricsAddress))
	}
	log.Info("controller starts", "version", version)
	err = task.Run(ctx, log, tasks...)
	log.Info("controller ends", "error", err)
	return err
}
