package iptables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"

	goiptables "github.com/coreos/go-iptables/iptables"
)

// programs are the two that one backend of one family works by.
type programs struct{ save, restore string }

// command makes a child that speaks English and ends with ctx.
func command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	return cmd
}

// find returns the programs of a backend: those that carry its name, or else plain
// iptables-save where iptables --version says that it is that backend's.
func find(ctx context.Context, family Family, b Backend) (programs, error) {
	base := "iptables"
	if family == IPv6 {
		base = "ip6tables"
	}
	if b != NFT && b != Legacy {
		return programs{}, fmt.Errorf("iptables: backend %q is unknown; %q and %q are known", b, NFT, Legacy)
	}
	named := base + "-" + string(b)
	save, err1 := exec.LookPath(named + "-save")
	restore, err2 := exec.LookPath(named + "-restore")
	if err1 == nil && err2 == nil {
		return programs{save, restore}, nil
	}
	missing := errors.Join(err1, err2)
	plain, err := exec.LookPath(base)
	if err != nil {
		return programs{}, fmt.Errorf("iptables: no programs of backend %s: %w", b, missing)
	}
	version, err := command(ctx, plain, "--version").Output()
	if err != nil {
		return programs{}, fmt.Errorf("%s --version: %w", plain, err)
	}
	is := Legacy // before 1.8 there was no other, and it did not say
	if bytes.Contains(version, []byte("nf_tables")) {
		is = NFT
	}
	if is != b {
		return programs{}, fmt.Errorf("iptables: no programs of backend %s: %w; plain %s is %s", b, missing, plain, is)
	}
	save, err1 = exec.LookPath(base + "-save")
	restore, err2 = exec.LookPath(base + "-restore")
	return programs{save, restore}, errors.Join(err1, err2)
}

// release is the oldest iptables whose iptables-restore waits for the lock (--wait).
var release = [3]int{1, 6, 2}

// recentEnough says what is wrong with the release of iptables behind p, or nil.
func (p programs) recentEnough() error {
	name := strings.TrimSuffix(p.save, "-save")
	if _, err := os.Stat(name); err != nil {
		name = p.save // it tells as well, since 1.8
	}
	ipt, err := goiptables.New(goiptables.Path(name))
	if err != nil {
		return fmt.Errorf("%s: its release cannot be told: %w", name, err)
	}
	major, minor, patch := ipt.GetIptablesVersion()
	if have := [3]int{major, minor, patch}; slices.Compare(have[:], release[:]) < 0 {
		return fmt.Errorf("%s: release %d.%d.%d is too old; %d.%d.%d or later is needed, whose iptables-restore waits for the lock",
			name, major, minor, patch, release[0], release[1], release[2])
	}
	return nil
}

// Detect finds the backend that the host uses, so that our rules stand beside kube-proxy's
// and not in a world of their own. It looks at both families, so that both get the same
// answer, and decides like Kubernetes' own iptables wrapper:
//
//   - where kubelet left its hint chains (KUBE-IPTABLES-HINT, or KUBE-KUBELET-CANARY of
//     older ones) in table mangle, nft before legacy;
//   - else where there are more rules, ours not counted;
//   - else, when both hold as many, where rules of ours are, nft before legacy;
//   - else nft, when its programs work, because the kernel's legacy tables are going away.
//
// Looking makes no tables and loads no modules.
func Detect(ctx context.Context) (Backend, error) {
	type found struct {
		hint         bool
		rules, marks int
		works        bool
	}
	var (
		seen = map[Backend]*found{NFT: {}, Legacy: {}}
		errs []error
	)
	for _, b := range []Backend{NFT, Legacy} {
		f := seen[b]
		for _, family := range []Family{IPv4, IPv6} {
			p, err := find(ctx, family, b)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			text, err := save(ctx, p, "")
			if err != nil {
				errs = append(errs, err)
				continue
			}
			f.works = true
			hint, rules, marks := census(text)
			f.hint = f.hint || hint
			f.rules += rules
			f.marks += marks
		}
		if f.hint {
			return b, nil
		}
	}
	nft, legacy := seen[NFT], seen[Legacy]
	switch {
	case !nft.works && !legacy.works:
		return Auto, fmt.Errorf("iptables: neither backend works: %w", errors.Join(errs...))
	case !nft.works:
		return Legacy, nil
	case !legacy.works:
		return NFT, nil
	case nft.rules != legacy.rules:
		if nft.rules > legacy.rules {
			return NFT, nil
		}
		return Legacy, nil
	case nft.marks == 0 && legacy.marks > 0:
		return Legacy, nil
	}
	return NFT, nil
}

// census counts the rules of a save that are not ours, and those that are.
func census(text []byte) (hint bool, rules, marks int) {
	for l := range bytes.Lines(text) {
		switch s := string(l); {
		case strings.HasPrefix(s, ":KUBE-IPTABLES-HINT "), strings.HasPrefix(s, ":KUBE-KUBELET-CANARY "):
			hint = true
		case strings.HasPrefix(s, "-A "):
			chain, spec, _ := strings.Cut(s[3:], " ")
			if ours(chain) || strings.Contains(spec, markPrefix) {
				marks++
			} else {
				rules++
			}
		}
	}
	return hint, rules, marks
}
