package causeway_test

import (
	"encoding/json"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/causeway-net/causeway/"

// rule is one wall of the house: packages at or below From may import none that stand at
// or below a path in Never, unless it stands at or below a path in But.
type rule struct {
	from  string
	never []string
	but   []string
	why   string
}

var rules = []rule{
	{"internal/model", []string{"*"}, []string{"std"}, "the vocabulary depends on nothing"},
	{"internal/selector", []string{"*"}, []string{"std", "internal/model"}, "pure"},
	{"bgp/bfd", []string{"ipam", "felix", "cni-plugin"}, nil, "rooms do not see each other"},
	{"bgp", []string{"ipam", "felix", "cni-plugin", "cmd", "test"}, nil, "rooms do not see each other"},
	{"ipam", []string{"bgp", "felix", "cni-plugin", "cmd", "test"}, nil, "rooms do not see each other"},
	{"felix", []string{"bgp", "ipam", "cni-plugin", "cmd", "test"}, nil, "rooms do not see each other"},
	{"cni-plugin", []string{"bgp", "ipam", "felix", "cmd", "test"}, nil, "rooms do not see each other"},
	{"internal", []string{"bgp", "felix", "cni-plugin", "cmd", "test"}, nil, "imports point down"},
	{"api", []string{"bgp", "ipam", "felix", "cni-plugin", "cmd", "test", "internal"}, nil, "imports point down"},
	{"cni-plugin/wire", []string{"*"}, []string{"std", "cni-plugin/wire"}, "linked into the plugin"},
	{"cni-plugin/client", []string{"*"}, []string{"std", "cni-plugin/wire"}, "linked into the plugin"},
	{"cmd/causeway-cni", []string{"*"}, []string{"std", "cni-plugin/wire", "cni-plugin/client"}, "starts in a millisecond"},
}

// exact rules hold for one package and not for those below it.
var exact = []rule{
	{"bgp", []string{"*"}, []string{"std", "internal/model", "internal/selector"}, "pure"},
	{"felix/dataplane", []string{"*"}, []string{"std", "internal/model", "internal/selector"}, "pure"},
	{"felix/policy", []string{"*"}, []string{"std", "internal/model", "internal/selector"}, "pure"},
	{"felix/trace", []string{"*"}, []string{"std", "internal/model", "felix/policy"}, "pure"},
	{"internal/nodeaddr", []string{"*"}, []string{"std"}, "pure"},
}

// soleImporters names, for an outside module, the only packages that may import it.
var soleImporters = map[string][]string{
	"github.com/osrg/gobgp":         {"bgp/gobgp", "bgp/speaker", "internal/deps", "test"},
	"k8s.io/client-go":              {"internal/kubeapi", "internal/watch/kube", "ipam/kube", "internal/node", "internal/controller", "internal/deps", "cmd/causeway", "test"},
	"sigs.k8s.io/knftables":         {"felix/nftables", "internal/deps", "test"},
	"github.com/google/nftables":    {"felix/nftables", "internal/deps", "test"},
	"github.com/coreos/go-iptables": {"felix/iptables", "internal/deps", "test"},
}

func under(pkg, path string) bool { return pkg == path || strings.HasPrefix(pkg, path+"/") }

func isStd(pkg string) bool {
	first, _, _ := strings.Cut(pkg, "/")
	return !strings.Contains(first, ".")
}

func (r rule) broken(imp string) bool {
	in, local := strings.CutPrefix(imp, module)
	match := func(path string) bool {
		switch path {
		case "*":
			return true
		case "std":
			return !local && isStd(imp)
		}
		return local && under(in, path)
	}
	return slices.ContainsFunc(r.never, match) && !slices.ContainsFunc(r.but, match)
}

// blockWorkers are the packages of internal that may see ipam: the cluster-wide controller
// works on the same blocks, by the same compare-and-swap.
var blockWorkers = []string{"internal/controller"}

// violations lists what the import of imp by the package pkg of this module breaks.
func violations(pkg, imp string) []string {
	var out []string
	for _, r := range rules {
		if under(pkg, r.from) && r.broken(imp) {
			out = append(out, pkg+" imports "+imp+", which "+r.from+" must not: "+r.why)
		}
	}
	for _, r := range exact {
		if pkg == r.from && r.broken(imp) {
			out = append(out, pkg+" imports "+imp+", which "+r.from+" must not: "+r.why)
		}
	}
	if in, local := strings.CutPrefix(imp, module); local && under(in, "ipam") && under(pkg, "internal") && !slices.ContainsFunc(blockWorkers, func(w string) bool { return under(pkg, w) }) {
		out = append(out, pkg+" imports "+imp+", which only "+strings.Join(blockWorkers, ", ")+" of internal may: imports point down")
	}
	for mod, who := range soleImporters {
		if under(imp, mod) && !slices.ContainsFunc(who, func(w string) bool { return under(pkg, w) }) {
			out = append(out, pkg+" imports "+imp+", which only "+strings.Join(who, ", ")+" may")
		}
	}
	return out
}

// TestImports holds the walls of docs/architecture.md: every import of every package of
// this module (not of its tests) is checked.
func TestImports(t *testing.T) {
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports", "./...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	n := 0
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := dec.Decode(&p); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		n++
		for _, imp := range p.Imports {
			for _, v := range violations(strings.TrimPrefix(p.ImportPath, module), imp) {
				t.Error(v)
			}
		}
	}
	if n < 30 {
		t.Fatalf("go list named %d packages only", n)
	}
}

// TestImportRulesBite shows that each wall stands: a forbidden import is reported.
func TestImportRulesBite(t *testing.T) {
	for pkg, imp := range map[string]string{
		"internal/model":    "k8s.io/api/core/v1",
		"bgp":               module + "ipam",
		"bgp/gobgp":         module + "felix/route",
		"ipam/file":         module + "bgp",
		"felix/route":       "github.com/osrg/gobgp/v3/api",
		"felix/dataplane":   "github.com/vishvananda/netlink",
		"cni-plugin/server": module + "ipam",
		"cni-plugin/client": "github.com/vishvananda/netlink",
		"cmd/causeway-cni":  module + "internal/model",
		"internal/watch":    module + "cmd/causeway",
		"internal/node":     module + "ipam",
		"cni-plugin/veth":   "k8s.io/client-go/rest",
	} {
		if len(violations(pkg, imp)) == 0 {
			t.Errorf("%s may import %s", pkg, imp)
		}
	}
	for pkg, imp := range map[string]string{
		"bgp":               module + "internal/selector",
		"bgp/gobgp":         "github.com/osrg/gobgp/v3/api",
		"cmd/causeway":      module + "ipam",
		"cmd/causeway-cni":  module + "cni-plugin/client",
		"cni-plugin/server": module + "internal/model",
	} {
		if v := violations(pkg, imp); len(v) != 0 {
			t.Errorf("%v", v)
		}
	}
}
