// Package suite owns the list of test binaries that run under the stock kernel, and how
// they are built outside the machine, run inside, and judged.
package suite

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/causeway-net/causeway/test/lab"
	"github.com/causeway-net/causeway/test/vm"
)

// Entry is one test binary, which gets a machine of its own. A test that is skipped
// counts as failed: the machine lacks nothing.
type Entry struct {
	// Package is the folder, seen from the module's root; the tests run in it.
	Package string
	// Run selects tests, as go test -run does; default all.
	Run string
	// Timeout is for the tests; default 5 minutes.
	Timeout time.Duration
	// Slow stretches the lab's deadlines (lab.SlowVar); default 1.
	Slow float64
	// Memory of the machine in MiB; default 2048. Written files count.
	Memory int
	// Modules must be loaded when the tests end: proof that they used what only a
	// stock kernel has.
	Modules []string
	// Shows are texts that the output must hold, for the same reason.
	Shows []string
}

// Config of a run.
type Config struct {
	Root   string    // the module's folder
	Only   string    // run entries whose package contains this; empty is all
	Output io.Writer // required: the tests' output and the summary
	VM     vm.Config // what all machines share: CPUs, Log
}

// Run runs the entries one after the other and prints a summary. The error says which
// failed.
func Run(ctx context.Context, list []Entry, c Config) error {
	binaries, err := os.MkdirTemp(filepath.Join(c.Root, "bin"), "test-vm-")
	if err != nil {
		return fmt.Errorf("%w (make build plugins)", err)
	}
	defer os.RemoveAll(binaries)
	var results []result
	for _, e := range list {
		if !strings.Contains(e.Package, c.Only) {
			continue
		}
		binary, err := compile(ctx, c.Root, binaries, e.Package)
		if err != nil {
			return err
		}
		r := c.run(ctx, e, binary)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		results = append(results, r)
	}
	if len(results) == 0 {
		return fmt.Errorf("no entry has %q in its package", c.Only)
	}
	return summarize(c.Output, results)
}

// compile builds a package's tests as a static program, which needs nothing inside.
func compile(ctx context.Context, root, dir, pkg string) (string, error) {
	binary := filepath.Join(dir, strings.ReplaceAll(pkg, "/", "-")+".test")
	cmd := exec.CommandContext(ctx, "go", "test", "-c", "-o", binary, "./"+pkg)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go test -c %s: %w\n%s", pkg, err, out)
	}
	if _, err := os.Stat(binary); err != nil {
		return "", fmt.Errorf("%s has no tests: %w", pkg, err)
	}
	return binary, nil
}

// afterwards runs the command in its arguments, says which modules are loaded and ends as
// the command did.
const afterwards = `"$@"; code=$?; while read -r name rest; do echo "` + moduleMark + `$name"; done </proc/modules; exit $code`

func (c Config) run(ctx context.Context, e Entry, binary string) result {
	if e.Timeout == 0 {
		e.Timeout = 5 * time.Minute
	}
	fmt.Fprintf(c.Output, "\n== %s %s\n", e.Package, e.Run)
	r := result{Entry: e}
	out := &judge{result: &r, to: c.Output}
	m := c.VM
	m.Args = []string{"/bin/sh", "-c", afterwards, "sh", binary, "-test.v", "-test.timeout=" + e.Timeout.String(), "-test.run=" + e.Run}
	m.Dir = filepath.Join(c.Root, e.Package)
	m.Memory = e.Memory
	m.Timeout = e.Timeout + 2*time.Minute // the tests' own timeout says more
	m.Stdout, m.Stderr = out, c.Output
	if e.Slow != 0 {
		m.Env = append(m.Env, fmt.Sprintf("%s=%g", lab.SlowVar, e.Slow))
	}
	begin := time.Now()
	code, err := vm.Run(ctx, m)
	out.flush()
	r.took = time.Since(begin)
	switch {
	case err != nil:
		r.complaints = append(r.complaints, err.Error())
	case code != 0:
		r.complaints = append(r.complaints, fmt.Sprintf("exit code %d", code))
	}
	r.judge()
	return r
}

// result is what became of one entry.
type result struct {
	Entry
	took                    time.Duration
	passed, failed, skipped int // tests and subtests
	modules                 []string
	shown                   []string
	complaints              []string // empty is success
}

const moduleMark = "module loaded: "

// judge reads a test binary's output on its way.
type judge struct {
	*result
	to   io.Writer
	rest []byte
}

func (j *judge) Write(p []byte) (int, error) {
	j.rest = append(j.rest, p...)
	for {
		i := bytes.IndexByte(j.rest, '\n')
		if i < 0 {
			return len(p), nil
		}
		err := j.line(string(j.rest[:i]))
		j.rest = j.rest[i+1:]
		if err != nil {
			return 0, err
		}
	}
}

func (j *judge) flush() {
	if len(j.rest) > 0 {
		j.line(string(j.rest))
	}
	j.rest = nil
}

func (j *judge) line(s string) error {
	if name, ok := strings.CutPrefix(s, moduleMark); ok {
		j.modules = append(j.modules, name)
		return nil
	}
	switch verdict := strings.TrimSpace(s); {
	case strings.HasPrefix(verdict, "--- PASS: "):
		j.passed++
	case strings.HasPrefix(verdict, "--- FAIL: "):
		j.failed++
	case strings.HasPrefix(verdict, "--- SKIP: "):
		j.skipped++
	}
	for _, text := range j.Shows {
		if strings.Contains(s, text) {
			j.shown = append(j.shown, text)
		}
	}
	_, err := fmt.Fprintln(j.to, s)
	return err
}

// judge says what is wrong beside the exit code.
func (r *result) judge() {
	if r.skipped > 0 {
		r.complaints = append(r.complaints, fmt.Sprintf("%d tests were skipped: a stock kernel lacks nothing", r.skipped))
	}
	if r.passed == 0 {
		r.complaints = append(r.complaints, "no test passed")
	}
	for _, m := range missing(r.Modules, r.modules) {
		r.complaints = append(r.complaints, fmt.Sprintf("module %s was not loaded: its tests did not run for real", m))
	}
	for _, s := range missing(r.Shows, r.shown) {
		r.complaints = append(r.complaints, fmt.Sprintf("the output does not say %q", s))
	}
}

// missing are those of want that have lacks.
func missing(want, have []string) []string {
	there := map[string]bool{}
	for _, s := range have {
		there[s] = true
	}
	var out []string
	for _, s := range want {
		if !there[s] {
			out = append(out, s)
		}
	}
	return out
}

func summarize(to io.Writer, results []result) error {
	fmt.Fprintln(to, "\nUnder a stock kernel:")
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "PACKAGE\tTESTS\tFAILED\tTIME\tRESULT")
	var failed []error
	for _, r := range results {
		verdict := "ok"
		if len(r.Modules) > 0 {
			verdict += ", with " + strings.Join(r.Modules, " ")
		}
		if len(r.complaints) > 0 {
			verdict, _, _ = strings.Cut(strings.Join(r.complaints, "; "), "\n")
			failed = append(failed, fmt.Errorf("%s: %s", r.Package, strings.Join(r.complaints, "; ")))
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%s\t%s\n", r.Package, r.passed+r.failed, r.failed, r.took.Round(time.Second), verdict)
	}
	w.Flush()
	return errors.Join(failed...)
}
