package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/causeway-net/causeway/test/lab"
	"github.com/causeway-net/causeway/test/lab/traffic"
)

func podCommand(f *flags) *cobra.Command {
	c := &cobra.Command{Use: "pod", Short: "Add and delete pods through the CNI plugin"}
	c.AddCommand(podAddCommand(f), podDelCommand(f))
	return c
}

func podAddCommand(f *flags) *cobra.Command {
	o := lab.PodOptions{}
	var ips []string
	conf := ""
	wait := time.Duration(0)
	c := &cobra.Command{
		Use:   "add NODE POD...",
		Short: "Make pods on a node and print their addresses",
		Args:  cobra.MinimumNArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			n, err := f.node(args[0])
			if err != nil {
				return err
			}
			for _, s := range ips {
				ip, err := netip.ParseAddr(s)
				if err != nil {
					return fmt.Errorf("--ip: %w", err)
				}
				o.IPs = append(o.IPs, ip)
			}
			if len(o.IPs) > 0 && len(args) > 2 {
				return errors.New("--ip is for one pod")
			}
			if conf != "" {
				if o.Netconf, err = os.ReadFile(conf); err != nil {
					return err
				}
			}
			ready, cancel := context.WithTimeout(c.Context(), wait)
			defer cancel()
			if err := n.AwaitCNI(ready); err != nil {
				return err
			}
			for _, name := range args[1:] {
				p, err := n.AddPod(c.Context(), name, o)
				if err != nil {
					return err
				}
				fmt.Println(p, strings.Trim(fmt.Sprint(p.Addresses), "[]"))
			}
			return nil
		},
	}
	c.Flags().StringVar(&o.Namespace, "namespace", "", "Kubernetes namespace told to the plugin (default \"default\")")
	c.Flags().StringSliceVar(&ips, "ip", nil, "ask for this address (at most one of each family)")
	c.Flags().DurationVar(&wait, "wait", 30*time.Second, "how long to wait until the node is ready for pods")
	c.Flags().StringVar(&conf, "conflist", "", "CNI configuration list (default: the node's, or causeway-cni alone)")
	return c
}

func podDelCommand(f *flags) *cobra.Command {
	return &cobra.Command{
		Use:   "del NODE POD...",
		Short: "Delete pods of a node",
		Args:  cobra.MinimumNArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			n, err := f.node(args[0])
			if err != nil {
				return err
			}
			for _, name := range args[1:] {
				if err := n.DeletePod(c.Context(), name); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

func pingCommand(f *flags) *cobra.Command {
	var from []string
	asJSON := false
	cfg := traffic.PingConfig{}
	c := &cobra.Command{
		Use:   "ping",
		Short: "Ping every pod from every pod, IPv4 and IPv6; fails when one does not answer",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			l, err := f.open()
			if err != nil {
				return err
			}
			var pods, sources []traffic.Endpoint
			for _, n := range l.Nodes() {
				for _, p := range n.Pods() {
					e := traffic.Endpoint{Space: p}
					for _, a := range p.Addresses {
						e.Addrs = append(e.Addrs, a.Addr())
					}
					pods = append(pods, e)
				}
			}
			if sources = pods; len(from) > 0 {
				sources = nil
				for _, name := range from {
					n, err := f.node(name)
					if err != nil {
						return err
					}
					sources = append(sources, traffic.Endpoint{Space: n})
				}
			}
			m := traffic.PingAll(c.Context(), sources, pods, cfg)
			if asJSON {
				err = printJSON(m)
			} else {
				fmt.Print(m)
			}
			switch {
			case err != nil:
				return err
			case len(m) == 0:
				return errors.New("nothing was pinged: there are no pods")
			case len(m.Failed()) > 0:
				return fmt.Errorf("%d of %d pings got no answer", len(m.Failed()), len(m))
			}
			if !asJSON {
				fmt.Printf("all %d pings answered\n", len(m))
			}
			return nil
		},
	}
	c.Flags().StringSliceVar(&from, "from", nil, "ping from these nodes instead of from the pods")
	c.Flags().BoolVar(&asJSON, "json", false, "JSON")
	c.Flags().DurationVar(&cfg.Timeout, "timeout", 3*time.Second, "how long to wait for answers")
	return c
}

func streamCommand(f *flags) *cobra.Command {
	cfg := traffic.Config{}
	took := time.Duration(0)
	v6, asJSON := false, false
	maxOutage := time.Duration(-1)
	c := &cobra.Command{
		Use:   "stream NODE/POD NODE/POD",
		Short: "Send a UDP stream of many flows from a pod to a pod and report what was lost",
		Args:  cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			var pods [2]*lab.Pod
			for i, arg := range args {
				node, pod, ok := strings.Cut(arg, "/")
				if !ok {
					return fmt.Errorf("%q: say NODE/POD", arg)
				}
				n, err := f.node(node)
				if err != nil {
					return err
				}
				if pods[i], err = podOf(n, pod); err != nil {
					return err
				}
			}
			cfg.From, cfg.To, cfg.Target = pods[0], pods[1], pods[1].Address(v6)
			if !cfg.Target.IsValid() {
				return fmt.Errorf("%s has no address of that family", pods[1])
			}
			s, err := traffic.Start(c.Context(), cfg)
			if err != nil {
				return err
			}
			select {
			case <-time.After(took):
			case <-c.Context().Done(): // ^C: report what there is
			}
			r := s.Stop()
			if asJSON {
				err = printJSON(r)
			} else {
				fmt.Println(r)
			}
			if err != nil {
				return err
			}
			if maxOutage >= 0 && time.Duration(r.LongestOutage) > maxOutage {
				return fmt.Errorf("the longest outage, %s, is over %s", r.LongestOutage, maxOutage)
			}
			return nil
		},
	}
	c.Flags().IntVar(&cfg.Flows, "flows", 1, "number of flows, each with its own source port")
	c.Flags().IntVar(&cfg.PPS, "pps", 1000, "packets a second, of all flows together")
	c.Flags().IntVar(&cfg.Size, "size", 24, "UDP payload, bytes")
	c.Flags().DurationVar(&took, "time", 5*time.Second, "how long to send")
	c.Flags().DurationVar(&maxOutage, "max-outage", -1, "fail when any flow was broken for longer")
	c.Flags().BoolVarP(&v6, "ipv6", "6", false, "IPv6")
	c.Flags().BoolVar(&asJSON, "json", false, "JSON")
	return c
}
