package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// usage is what processes cost, summed.
type usage struct {
	pss  float64       // proportional set size, MB
	anon float64       // of it memory that is not of a file: heap and stacks, MB
	peak float64       // largest resident set so far, MB
	cpu  time.Duration // user and system time
}

const megabyte = 1 << 20

// usageOf sums over processes, by id.
func usageOf(pids ...int) (usage, error) {
	var u usage
	for _, pid := range pids {
		path := fmt.Sprintf("/proc/%d/smaps_rollup", pid)
		for field, to := range map[string]*float64{"Pss": &u.pss, "Pss_Anon": &u.anon} {
			if err := addKiB(path, field, to); err != nil {
				return u, err
			}
		}
		path = fmt.Sprintf("/proc/%d/status", pid)
		if err := addKiB(path, "VmHWM", &u.peak); err != nil {
			return u, err
		}
		cpu, err := cpuOf(pid)
		if err != nil {
			return u, err
		}
		u.cpu += cpu
	}
	return u, nil
}

func addKiB(path, field string, to *float64) error {
	value := procField(path, field)
	kib, err := strconv.ParseFloat(strings.TrimSuffix(value, " kB"), 64)
	if err != nil {
		return fmt.Errorf("%s: %s %q: %w", path, field, value, err)
	}
	*to += kib * 1024 / megabyte
	return nil
}

// cpuOf is the processor time of a process (proc(5): stat fields 14 and 15, in ticks of
// USER_HZ, which is 100 on every Linux that Go runs on).
func cpuOf(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat: %q", pid, b)
	}
	var ticks int64
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/%d/stat: %w", pid, err)
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / 100, nil
}

// children are the ids of the processes that pid started.
func children(pid int) ([]int, error) {
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return nil, err
	}
	var out []int
	for _, t := range tasks {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", pid, t.Name()))
		if err != nil {
			if os.IsNotExist(err) { // the thread ended meanwhile
				continue
			}
			return nil, err
		}
		for f := range strings.FieldsSeq(string(b)) {
			n, err := strconv.Atoi(f)
			if err != nil {
				return nil, err
			}
			out = append(out, n)
		}
	}
	return out, nil
}
