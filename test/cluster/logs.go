package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// keepLogs copies the daemons' logs to a folder beside the cluster's, for who wants to
// know why it did not come up.
func (c *Cluster) keepLogs() (string, error) {
	to := filepath.Join(os.TempDir(), "causeway-"+c.cfg.Name+"-logs")
	if err := os.RemoveAll(to); err != nil {
		return "", err
	}
	return to, c.copyLogs(to)
}

func (c *Cluster) copyLogs(to string) error {
	var errs []error
	dirs := map[string]string{controlPlane.name: filepath.Join(c.machineDir(controlPlane.name), "logs")}
	for _, n := range c.nodes {
		dirs[n.place.name] = filepath.Join(n.dir(), "logs")
		dirs[n.place.name+"/pods"] = filepath.Join(n.dir(), "fs/var/log/pods")
	}
	for _, name := range []string{"tor1", "tor2", "spine"} {
		dirs[name] = filepath.Join(c.labRoot(), c.cfg.Name, "nodes", name, "logs")
	}
	for name, from := range dirs {
		errs = append(errs, copyFiles(from, filepath.Join(to, name)))
	}
	return errors.Join(errs...)
}

// copyFiles copies regular files; what goes meanwhile is no error.
func copyFiles(from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		b, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		} else if err != nil {
			return err
		}
		out := filepath.Join(to, rel)
		if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
			return err
		}
		return os.WriteFile(out, b, 0o644)
	})
}

// nodeQuestions are what CollectLogs asks each node.
var nodeQuestions = map[string]string{
	"network.txt": "ip -d address; for f in -4 -6; do ip $f rule; ip $f route show table all; ip $f neighbour; done",
	"iptables.txt": "for t in iptables-legacy-save ip6tables-legacy-save iptables-nft-save ip6tables-nft-save; do echo \"# $t\"; $t 2>&1; done; " +
		"nft list ruleset 2>&1; ipset list 2>&1",
	"state.txt":     "ls -lR /etc/cni /opt/cni /run/causeway /var/lib/causeway 2>&1; cat /etc/cni/net.d/* 2>&1; ps auxww",
	"causeway.json": "curl -s --max-time 5 --unix-socket /run/causeway/agent.sock http://agent/status",
}

// clusterQuestions are kubectl's.
var clusterQuestions = map[string][]string{
	"nodes.txt":  {"describe", "nodes"},
	"pods.txt":   {"get", "pods", "-A", "-o", "wide"},
	"events.txt": {"get", "events", "-A", "--sort-by=.lastTimestamp"},
	"all.txt":    {"get", "all,endpointslices", "-A", "-o", "wide"},
	"system.txt": {"describe", "pods", "-n", "kube-system"},
	"calico.yaml": {"get", "-o", "yaml",
		"ippools.projectcalico.org,ipamblocks.projectcalico.org,bgppeers.projectcalico.org,bgpconfigurations.projectcalico.org"},
}

// CollectLogs writes all that explains a failure to dir: the daemons' and the containers'
// logs, what the API says, what the nodes' kernels say, the routers' tables. What cannot
// be had is said in the file that would hold it; an error is of dir itself.
func (c *Cluster) CollectLogs(ctx context.Context, dir string) error {
	if err := c.copyLogs(dir); err != nil {
		return fmt.Errorf("logs: %w", err)
	}
	var (
		mu   sync.Mutex
		errs []error
		asks []func() error
	)
	ask := func(file string, f func() (string, error)) {
		asks = append(asks, func() error {
			out, err := f()
			if err != nil {
				out += "\n" + err.Error() + "\n"
			}
			path := filepath.Join(dir, file)
			err = os.MkdirAll(filepath.Dir(path), 0o755)
			if err == nil {
				err = os.WriteFile(path, []byte(out), 0o644)
			}
			mu.Lock()
			defer mu.Unlock()
			errs = append(errs, err)
			return nil
		})
	}
	for _, n := range c.nodes {
		if !n.machine.On() {
			continue
		}
		for file, question := range nodeQuestions {
			ask(filepath.Join(n.place.name, file), func() (string, error) { return n.machine.Exec(ctx, "sh", "-c", question) })
		}
	}
	for file, args := range clusterQuestions {
		ask(file, func() (string, error) { return c.Kubectl(ctx, append([]string{"--request-timeout=20s"}, args...)...) })
	}
	for _, r := range []Router{c.ToR(1), c.ToR(2), c.Spine()} {
		ask(filepath.Join(r.Name(), "bgp.txt"), func() (string, error) {
			return r.Vtysh(ctx, "show bgp summary", "show bgp ipv4 unicast", "show bgp ipv6 unicast", "show ip route", "show ipv6 route")
		})
	}
	if err := all(asks...); err != nil {
		return err
	}
	return errors.Join(errs...)
}

// Describe tells a person what is up and how to use it.
func (c *Cluster) Describe() string {
	var b strings.Builder
	fmt.Fprintf(&b, "cluster %s, kube-proxy %s, in %s\n", c.cfg.Name, c.cfg.ProxyMode, c.dir)
	fmt.Fprintf(&b, "  API       %s, kubeconfig %s (in the network namespace of the control plane)\n", apiURL(), c.Kubeconfig())
	for _, n := range c.nodes {
		fmt.Fprintf(&b, "  %s     rack %d, %s, %s\n", n.place.name, n.place.rack, n.place.v4.Addr(), n.place.v6.Addr())
	}
	fmt.Fprintf(&b, "  routers   tor1 (AS 65001), tor2 (AS 65002), spine (AS 65000): FRR, they expect the nodes as AS %d\n", NodeASN)
	fmt.Fprintf(&b, "  outside   %s, %s: a host beyond the spine\n", OutsideV4, OutsideV6)
	return b.String()
}
