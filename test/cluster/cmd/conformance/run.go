package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	cluster "github.com/causeway-net/causeway/test/cluster"
	"github.com/causeway-net/causeway/test/cluster/apiserver"
)

// outcome is what a run of a suite's specs gave.
type outcome struct {
	specs  []spec // by name
	took   time.Duration
	atOnce int
}

// notRun is the outcome of a spec that did not run; why says the reason.
const notRun = "not run"

// spec is one spec, or one test of a suite that is no Ginkgo suite.
type spec struct {
	name    string // without "[It] "
	outcome string // "passed", "failed", notRun, or what else Ginkgo says
	took    time.Duration
	why     string // it did not run
}

// runSuite runs a suite on a cluster. The programs' output goes to files in dir, and to
// stdout when that is one program only.
func runSuite(ctx context.Context, c *cluster.Cluster, s *suite, o options, dir string) (*outcome, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	start := time.Now()
	var r *outcome
	var err error
	if s.focus == "" {
		r, err = runGoTests(ctx, c, s, o, dir)
	} else {
		r, err = runGinkgo(ctx, c, s, o, dir)
	}
	if r != nil {
		r.took = time.Since(start)
		slices.SortFunc(r.specs, func(a, b spec) int { return strings.Compare(a.name, b.name) })
	}
	return r, err
}

// runGinkgo runs specs of upstream's end-to-end suite in as many processes as there are
// specs at once. Each has its own specs: Ginkgo's own parallel mode needs its own command,
// and these specs share nothing but the cluster.
func runGinkgo(ctx context.Context, c *cluster.Cluster, s *suite, o options, dir string) (*outcome, error) {
	focus := s.focus
	if o.focus != "" {
		focus = o.focus
	}
	all, err := listSpecs(ctx, c, focus, filepath.Join(dir, "list"))
	if err != nil {
		return nil, err
	}
	r := &outcome{atOnce: s.atOnce}
	if o.atOnce > 0 {
		r.atOnce = o.atOnce
	}
	var names []string
	for _, sp := range all {
		switch why := s.whyLeft(sp.name); {
		case o.short && !s.inShort(sp.name):
		case why != "":
			r.specs = append(r.specs, spec{name: sp.name, outcome: notRun, why: why})
		default:
			names = append(names, sp.name)
		}
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("no spec matches %s", focus)
	}
	r.atOnce = min(r.atOnce, len(names))
	fmt.Printf("%s: %d specs, %d at once; output in %s\n", s.name, len(names), r.atOnce, dir)
	reports, errs := make([][]spec, r.atOnce), make([]error, r.atOnce)
	var wg sync.WaitGroup
	for i := range r.atOnce {
		var own []string
		for n := i; n < len(names); n += r.atOnce {
			own = append(own, regexp.QuoteMeta(names[n])+"$")
		}
		wg.Go(func() {
			in := filepath.Join(dir, fmt.Sprint(i+1))
			ran := runE2E(ctx, c, in, r.atOnce == 1 && len(o.suites) == 1, "-ginkgo.focus", strings.Join(own, "|"), "-ginkgo.timeout", "2h")
			if reports[i], errs[i] = readJUnit(filepath.Join(in, "junit_01.xml")); errs[i] != nil {
				errs[i] = errors.Join(ran, errs[i]) // a spec that failed is in the report
			}
		})
	}
	wg.Wait()
	for _, specs := range reports {
		r.specs = append(r.specs, specs...)
	}
	if err := errors.Join(errs...); err != nil {
		return r, err
	}
	return r, sawAll(names, r.specs)
}

// sawAll is an error for specs that should have run and are in no report.
func sawAll(names []string, specs []spec) error {
	var missing []string
	for _, name := range names {
		if !slices.ContainsFunc(specs, func(s spec) bool { return s.name == name }) {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("in no report: %s", strings.Join(missing, "; "))
	}
	return nil
}

// listSpecs asks the suite which specs a regular expression means.
func listSpecs(ctx context.Context, c *cluster.Cluster, focus, dir string) ([]spec, error) {
	if err := runE2E(ctx, c, dir, false, "-ginkgo.dry-run", "-ginkgo.focus", focus); err != nil {
		return nil, err
	}
	return readJUnit(filepath.Join(dir, "junit_01.xml"))
}

// runE2E runs upstream's suite in the control plane's network namespace.
func runE2E(ctx context.Context, c *cluster.Cluster, dir string, show bool, args ...string) error {
	args = append([]string{"-kubeconfig", c.Kubeconfig(), "-provider", "skeleton", "-node-os-distro", "debian", "-num-nodes", "4",
		"-ginkgo.no-color", "-report-dir", dir}, args...)
	cmd := exec.CommandContext(ctx, filepath.Join(apiserver.Bin(), "e2e.test"), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.Kubeconfig(), "PATH="+apiserver.Bin()+":"+os.Getenv("PATH"))
	return runIn(c, cmd, dir, show)
}

// runIn runs a program with dir as its working folder, where specs make their files, and
// its output in dir/output.
func runIn(c *cluster.Cluster, cmd *exec.Cmd, dir string, show bool) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	out, err := os.Create(filepath.Join(dir, "output"))
	if err != nil {
		return err
	}
	defer out.Close()
	cmd.Dir, cmd.Stdout = dir, out
	if show {
		cmd.Stdout = io.MultiWriter(out, os.Stdout)
	}
	cmd.Stderr = cmd.Stdout
	if err := c.StartKubectl(cmd); err != nil {
		return err
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("%s (output: %s): %w", filepath.Base(cmd.Path), out.Name(), err)
	}
	return nil
}

// runGoTests runs the suite of ClusterNetworkPolicy, which is a Go test.
func runGoTests(ctx context.Context, c *cluster.Cluster, s *suite, o options, dir string) (*outcome, error) {
	pick := "TestClusterNetworkPolicy"
	switch {
	case o.focus != "":
		pick += "/" + o.focus
	case o.short:
		pick += "/^(" + strings.Join(s.short, "|") + ")$"
	}
	fmt.Printf("%s: output in %s\n", s.name, dir)
	cmd := exec.CommandContext(ctx, filepath.Join(apiserver.Bin(), "policyapi.test"), "-test.v", "-test.timeout", "2h", "-test.run", pick,
		"-kubeconfig", c.Kubeconfig(), "-agnhost", cluster.AgnhostImage)
	ran := runIn(c, cmd, dir, false)
	out, err := os.ReadFile(filepath.Join(dir, "output"))
	if err != nil {
		return nil, errors.Join(ran, err)
	}
	r := &outcome{atOnce: 1, specs: readGoTests(string(out))}
	if len(r.specs) == 0 {
		return nil, errors.Join(ran, fmt.Errorf("no test matches %s", pick))
	}
	if r.count("failed") > 0 {
		ran = nil // which ones, the report says
	}
	return r, ran
}

func (r *outcome) count(what string) int {
	n := 0
	for _, s := range r.specs {
		if s.outcome == what {
			n++
		}
	}
	return n
}

// summary is one line: how many there are, and how many passed, failed, did not run.
func (r *outcome) summary() string {
	out := fmt.Sprintf("%d of %d passed", r.count("passed"), len(r.specs))
	counted := r.count("passed")
	for _, what := range []string{"failed", notRun} {
		if n := r.count(what); n > 0 {
			out += fmt.Sprintf(", %d %s", n, what)
			counted += n
		}
	}
	if n := len(r.specs) - counted; n > 0 {
		out += fmt.Sprintf(", %d neither", n)
	}
	return out
}

// failed is an error that names the specs that ran and did not pass.
func (r *outcome) failed() error {
	var errs []error
	for _, s := range r.specs {
		if s.outcome != "passed" && s.outcome != notRun {
			errs = append(errs, fmt.Errorf("%s: %s", s.name, s.outcome))
		}
	}
	return errors.Join(errs...)
}
