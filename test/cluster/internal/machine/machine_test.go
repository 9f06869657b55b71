package machine_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/causeway-net/causeway/test/cluster/internal/machine"
)

func TestMain(m *testing.M) {
	machine.Reexec()
	os.Exit(m.Run())
}

func bootOne(t *testing.T, dir string) *machine.Machine {
	t.Helper()
	m, err := machine.Boot(t.Context(), machine.Config{Hostname: "box", Dir: dir, Cgroup: fmt.Sprintf("causeway-test-%d", os.Getpid()),
		Dirs: []string{"/var/lib/kubelet"}, Files: map[string]string{"/etc/box": "here"},
		Masks:   map[string]string{"vm.overcommit_memory": "7"},
		Sysctls: map[string]string{"net.ipv4.ip_forward": "1"}})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func exec(t *testing.T, m *machine.Machine, line string) string {
	t.Helper()
	out, err := m.Exec(t.Context(), "sh", "-c", line)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// TestPowerCycle shows what a machine has of its own, what lasts over PowerOff, and that
// nothing of it is left on this computer.
func TestPowerCycle(t *testing.T) {
	dir := t.TempDir()
	m := bootOne(t, dir)
	t.Cleanup(func() { m.PowerOff(t.Context()) })
	for line, want := range map[string]string{
		"hostname":                                "box",
		"cat /etc/box":                            "here",
		"cat /proc/sys/vm/overcommit_memory":      "7",
		"cat /proc/sys/net/ipv4/ip_forward":       "1",
		"ls /sys/class/net":                       "lo",
		"ls /run/netns":                           "",
		"grep -c :/$ /proc/1/cgroup":              exec(t, m, "wc -l < /proc/1/cgroup"),
		"grep ' / / ' /proc/self/mountinfo|wc -l": "1",
		"echo x > /var/lib/kubelet/keep; echo x > /var/lib/lost; echo $$ > /dev/null; ls /var/lib/kubelet": "keep",
	} {
		if got := exec(t, m, line); got != want {
			t.Errorf("%s: %q, want %q", line, got, want)
		}
	}
	if err := m.Keep(t.Context(), machine.Daemon{Name: "sleeper", Argv: []string{"/bin/sh", "-c", "echo up; exec sleep 1000"}}); err != nil {
		t.Fatal(err)
	}
	status := func() machine.Status {
		ds, err := m.Daemons(t.Context())
		if err != nil || len(ds) != 1 {
			t.Fatalf("daemons %+v, %v", ds, err)
		}
		return ds[0]
	}
	first := status().PID
	if err := m.Restart(t.Context(), "sleeper"); err != nil {
		t.Fatal(err)
	}
	if s := status(); s.PID == 0 || s.PID == first || s.Starts != 2 {
		t.Fatalf("after a restart: %+v, first process %d", s, first)
	}
	if err := m.Kill(t.Context(), "sleeper"); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); status().Starts != 3; {
		if time.Now().After(deadline) {
			t.Fatalf("a killed daemon is not started again: %+v", status())
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := m.Stop(t.Context(), "sleeper"); err != nil {
		t.Fatal(err)
	}
	if s := status(); s.PID != 0 || s.Wanted {
		t.Fatalf("after stop: %+v", s)
	}
	if err := m.PowerOff(t.Context()); err != nil {
		t.Fatal(err)
	}
	if found, _ := filepath.Glob(fmt.Sprintf("/sys/fs/cgroup/*/causeway-test-%d", os.Getpid())); len(found) != 0 {
		t.Errorf("cgroups left: %v", found)
	}
	for _, left := range []string{"/var/lib/lost", "/etc/box"} {
		if _, err := os.Stat(left); err == nil {
			t.Errorf("%s is on this computer", left)
		}
	}
	m = bootOne(t, dir)
	if got := exec(t, m, "ls /var/lib/kubelet; ls /var/lib/lost 2>/dev/null || true"); got != "keep" {
		t.Errorf("after a power cycle: %q, want keep", got)
	}
	if err := m.PowerOff(t.Context()); err != nil {
		t.Fatal(err)
	}
}
