package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/causeway-net/causeway/cni-plugin/install"
	"github.com/causeway-net/causeway/cni-plugin/veth"
	"github.com/causeway-net/causeway/felix"
	"github.com/causeway-net/causeway/felix/ipset"
	"github.com/causeway-net/causeway/felix/iptables"
	"github.com/causeway-net/causeway/felix/nftables"
	"github.com/causeway-net/causeway/felix/route"
	"github.com/causeway-net/causeway/felix/tunnel"
	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/internal/node"
)

// runCleanup removes all that is Causeway's from this host and says what it did, a line for
// each. What cannot be removed does not keep the rest. It takes nothing back that others may
// rely on by now: forwarding stays on. The node's blocks return to their pools when the Node
// is deleted.
func runCleanup(ctx context.Context, o options, out io.Writer) error {
	log, err := logger(o.logLevel)
	if err != nil {
		return err
	}
	unlock, err := lockForCleanup(o.runDir)
	if errors.Is(err, errRunning) {
		return fmt.Errorf("%w; end it first, as by `kubectl delete` of its DaemonSet or a label that its node selector does not match", err)
	}
	if err != nil {
		return err
	}
	defer unlock()
	var errs []error
	n := 0
	for _, step := range o.cleanupSteps(log) {
		done, err := step(ctx)
		for _, d := range done {
			fmt.Fprintln(out, d)
		}
		n += len(done)
		errs = append(errs, err)
	}
	if n == 0 {
		fmt.Fprintln(out, "nothing of Causeway's was found")
	}
	return errors.Join(errs...)
}

// lockForCleanup keeps an agent from starting meanwhile, where there is a run folder.
func lockForCleanup(dir string) (unlock func(), err error) {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return func() {}, nil
	}
	run, err := lockRunFolder(dir)
	if err != nil {
		return nil, err
	}
	return run.close, nil
}

// cleanupSteps are in this order because nothing may be made anew behind them: first the
// runtime forgets the plugin.
func (o options) cleanupSteps(log *slog.Logger) []func(context.Context) ([]string, error) {
	steps := []func(context.Context) ([]string, error){
		func(context.Context) ([]string, error) {
			if o.cniConfDir == "" {
				return nil, nil
			}
			return install.RemoveConflist(o.cniConfDir)
		},
		func(context.Context) ([]string, error) {
			if o.cniBinDir == "" {
				return nil, nil
			}
			return install.Remove(o.cniSourceDir, o.cniBinDir)
		},
		func(context.Context) ([]string, error) { return removeLinks(o.procSys) },
		func(context.Context) ([]string, error) {
			n, err := felix.RemoveRoutes(route.DefaultProtocol)
			if n == 0 {
				return nil, err
			}
			return []string{fmt.Sprintf("%d routes of protocol %d removed", n, route.DefaultProtocol)}, err
		},
		func(ctx context.Context) ([]string, error) {
			gone, err := tunnel.Remove(ctx, tunnel.Config{Log: log, ProcSys: o.procSys})
			for i, name := range gone {
				gone[i] = fmt.Sprintf("link %s removed", name)
				if name == model.TunnelIPIP.Device() { // the kernel's own, which cannot be
					gone[i] = fmt.Sprintf("link %s set down, without our address", name)
				}
			}
			return gone, err
		},
		func(ctx context.Context) ([]string, error) { return removeRules(ctx, log) },
		func(ctx context.Context) ([]string, error) { // after the rules, which refer to them
			n, err := ipset.Remove(ctx, ipset.NewHost())
			if n == 0 {
				return nil, err
			}
			return []string{fmt.Sprintf("%d ipsets removed", n)}, err
		},
	}
	if o.datastore == kubernetes {
		steps = append(steps, func(ctx context.Context) ([]string, error) {
			clients, err := o.clients()
			if err != nil {
				return nil, err
			}
			ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
			defer cancel()
			return node.Clear(ctx, clients, o.nodeName)
		})
	}
	return append(steps, func(context.Context) ([]string, error) {
		state, serr := removeFolder(o.stateDir, "")
		run, rerr := removeFolder(o.runDir, "agent.lock")
		return append(state, run...), errors.Join(serr, rerr)
	})
}

func removeLinks(procSys string) (done []string, err error) {
	w, err := veth.New(procSys)
	if err != nil {
		return nil, err
	}
	defer w.Close()
	owned, err := w.Owned()
	if err != nil {
		return nil, err
	}
	var errs []error
	for name, owner := range owned {
		if err := w.Remove(name, owner); err != nil {
			errs = append(errs, err)
			continue
		}
		done = append(done, fmt.Sprintf("link %s of container %s removed", name, owner.Key))
	}
	return done, errors.Join(errs...)
}

func removeRules(ctx context.Context, log *slog.Logger) (done []string, err error) {
	var errs []error
	for _, family := range []iptables.Family{iptables.IPv4, iptables.IPv6} {
		for _, b := range []iptables.Backend{iptables.NFT, iptables.Legacy} {
			// A backend that this host does not have holds nothing; Remove says when it has none.
			if text, err := iptables.NewHost(family, b, iptables.DefaultLockTimeout).Save(ctx, ""); err == nil && bytes.Contains(text, []byte(":"+iptables.Prefix)) {
				done = append(done, fmt.Sprintf("%s chains and rules removed from iptables (%s)", family, b))
			}
		}
		errs = append(errs, iptables.Remove(ctx, iptables.Config{Family: family, Log: log}))
	}
	gone, err := nftables.Remove(ctx, nil)
	if gone {
		done = append(done, fmt.Sprintf("table inet %s removed from nftables", nftables.TableName))
	}
	errs = append(errs, err)
	return done, errors.Join(errs...)
}

// removeFolder removes a folder and what is in it; last, which is held, goes at the end. A
// folder that is a mount, as in a container (whose root may be read-only), stays and is
// empty.
func removeFolder(dir, last string) (done []string, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, e := range entries {
		if e.Name() != last {
			errs = append(errs, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	if last != "" {
		if err := os.Remove(filepath.Join(dir, last)); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	err = os.Remove(dir)
	if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EROFS) {
		err = nil
		if len(entries) == 0 || len(entries) == 1 && entries[0].Name() == last {
			return nil, errors.Join(errs...)
		}
	}
	return []string{"folder " + dir + " removed"}, errors.Join(append(errs, err)...)
}
