package operator

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"sigs.k8s.io/yaml"

	v3 "github.com/causeway-net/causeway/api/v3"
	"github.com/causeway-net/causeway/ipam"
	"github.com/causeway-net/causeway/test/topology/scenario"
)

// Blocks reads all IPAMBlocks of the fabric.
func Blocks(f *scenario.Fabric) ([]v3.IPAMBlock, error) {
	files, err := filepath.Glob(filepath.Join(f.Shared("manifests"), "ipam/blocks/*.yaml"))
	if err != nil {
		return nil, err
	}
	var out []v3.IPAMBlock
	for _, file := range files {
		b, err := os.ReadFile(file)
		if os.IsNotExist(err) {
			continue // given back just now
		}
		if err != nil {
			return nil, err
		}
		var block v3.IPAMBlock
		if err := yaml.UnmarshalStrict(b, &block); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		out = append(out, block)
	}
	return out, nil
}

// AccountedFor returns nil when the blocks hold each address of each pod for that pod,
// and otherwise nothing but the stashes of the nodes (I1).
func AccountedFor(f *scenario.Fabric) error {
	holder := map[netip.Addr]string{}
	stash := map[string]bool{}
	for _, n := range f.Agents() {
		stash[ipam.StashPrefix+n.Name()] = true
		for _, p := range n.Pods() {
			for _, a := range p.Addresses {
				if other, twice := holder[a.Addr()]; twice {
					return fmt.Errorf("%s has two holders, %s and %s", a, other, p)
				}
				holder[a.Addr()] = "causeway." + p.ContainerID
			}
		}
	}
	blocks, err := Blocks(f)
	if err != nil {
		return err
	}
	for _, b := range blocks {
		cidr, err := netip.ParsePrefix(b.Spec.CIDR)
		if err != nil {
			return err
		}
		addr := cidr.Addr()
		for i, attr := range b.Spec.Allocations {
			if i > 0 {
				addr = addr.Next()
			}
			handle := ""
			if attr != nil && b.Spec.Attributes[*attr].HandleID != nil {
				handle = *b.Spec.Attributes[*attr].HandleID
			}
			want, held := holder[addr]
			delete(holder, addr)
			switch {
			case held && handle != want:
				return fmt.Errorf("block %s: %s belongs to %s and is held by %q", cidr, addr, want, handle)
			case !held && handle != "" && !stash[handle]:
				return fmt.Errorf("block %s: %s is held by %q, which is no pod", cidr, addr, handle)
			}
		}
	}
	for a, who := range holder {
		return fmt.Errorf("%s of %s is in no block", a, who)
	}
	return nil
}
