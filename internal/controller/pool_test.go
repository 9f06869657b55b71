package controller

import (
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v3 "github.com/causeway-net/causeway/api/v3"
)

func TestUsage(t *testing.T) {
	for name, tc := range map[string]struct {
		u         usage
		exhausted bool
		text      string
	}{
		"new":              {usage{bits: 16, blockBits: 6}, false, "0 of 65536 addresses in use, 0 more put by on nodes, 0 resting and 0 free in claimed blocks; 0 of 1024 blocks claimed"},
		"all blocks, free": {usage{bits: 7, blockBits: 6, blocks: 2, tally: tally{inUse: 100, free: 28}}, false, "100 of 128"},
		"all blocks, rest": {usage{bits: 7, blockBits: 6, blocks: 2, tally: tally{inUse: 127, resting: 1}}, false, "127 of 128"},
		"full":             {usage{bits: 7, blockBits: 6, blocks: 2, tally: tally{inUse: 120, stash: 8}}, true, "120 of 128 addresses in use, 8 more"},
		"one block short":  {usage{bits: 7, blockBits: 6, blocks: 1, tally: tally{inUse: 64}}, false, "1 of 2 blocks"},
		"IPv6":             {usage{bits: 72, blockBits: 6, blocks: 3}, false, "0 of 2^72 addresses in use, 0 more put by on nodes, 0 resting and 0 free in claimed blocks; 3 of 2^66 blocks claimed"},
	} {
		if tc.u.exhausted() != tc.exhausted || !strings.Contains(tc.u.String(), tc.text) {
			t.Errorf("%s: exhausted %v, %q", name, tc.u.exhausted(), tc.u)
		}
	}
}

func TestReportDue(t *testing.T) {
	now := t0
	u := func(inUse int) usage { return usage{bits: 10, tally: tally{inUse: inUse}} }
	last := func(inUse int, ago time.Duration) report {
		return report{at: now.Add(-ago), usage: u(inUse), known: true}
	}
	for name, tc := range map[string]struct {
		r               report
		now             usage
		urgent, numbers bool
		wait            time.Duration
		ok              bool
	}{
		"nothing changed":                    {last(5, time.Hour), u(5), false, false, 0, false},
		"a little":                           {last(500, time.Hour), u(505), false, true, 0, false},
		"a hundredth":                        {last(500, time.Hour), u(511), false, true, 0, true},
		"a hundredth, of late":               {last(500, 4*time.Second), u(511), false, true, 6 * time.Second, true},
		"the first one":                      {last(0, time.Hour), u(1), false, true, 0, true},
		"the last one":                       {last(1, time.Hour), u(0), false, true, 0, true},
		"a condition, of late":               {last(5, time.Second), u(5), true, false, 9 * time.Second, true},
		"what an earlier leader said":        {report{}, u(5), false, false, 0, false},
		"what an earlier leader said is old": {report{}, u(5), false, true, 0, true},
	} {
		if wait, ok := tc.r.due(tc.now, tc.urgent, tc.numbers, now, 10*time.Second); wait != tc.wait || ok != tc.ok {
			t.Errorf("%s: %s %v, want %s %v", name, wait, ok, tc.wait, tc.ok)
		}
	}
}

func TestMerge(t *testing.T) {
	want := conditions(standing{reason: reasonOK, message: "m"}, usage{bits: 8, blockBits: 6}, 3)
	out, urgent, _ := merge([]metav1.Condition{{Type: "Other", Status: "True"}}, want, t0)
	if !urgent || len(out) != 3 || out[0].Type != "Other" || !out[1].LastTransitionTime.Time.Equal(t0) {
		t.Errorf("first: %v %+v", urgent, out)
	}
	later := t0.Add(time.Hour)
	if same, urgent, numbers := merge(out, want, later); urgent || numbers || !slices.Equal(same, out) {
		t.Errorf("nothing new: %v %v %+v", urgent, numbers, same)
	}
	more := conditions(standing{reason: reasonOK, message: "m"}, usage{bits: 8, blockBits: 6, blocks: 1}, 3)
	if out, urgent, numbers := merge(out, more, later); urgent || !numbers || !out[2].LastTransitionTime.Time.Equal(t0) {
		t.Errorf("numbers: %v %v %+v", urgent, numbers, out)
	}
	off := conditions(standing{reason: reasonDisabled, message: "off"}, usage{bits: 8, blockBits: 6}, 4)
	if out, urgent, _ := merge(out, off, later); !urgent || out[1].Status != metav1.ConditionFalse || !out[1].LastTransitionTime.Time.Equal(later) {
		t.Errorf("disabled: %v %+v", urgent, out)
	}
}

func TestFinalizers(t *testing.T) {
	deleted := metav1.NewTime(t0)
	for name, tc := range map[string]struct {
		have    []string
		deleted bool
		inForce bool
		blocks  int
		want    string
	}{
		"new":                     {nil, false, true, 0, poolFinalizer},
		"in force":                {[]string{"x", poolFinalizer}, false, true, 3, "="},
		"not in force":            {[]string{poolFinalizer, "x"}, false, false, 3, "x"},
		"deleted, in use":         {[]string{poolFinalizer}, true, true, 1, "="},
		"deleted, empty":          {[]string{poolFinalizer, "x"}, true, true, 0, "x"},
		"deleted, others' blocks": {[]string{poolFinalizer}, true, false, 1, ""},
		"deleted, not ours":       {[]string{"x"}, true, true, 1, "="},
	} {
		p := &v3.IPPool{ObjectMeta: metav1.ObjectMeta{Finalizers: tc.have}}
		if tc.deleted {
			p.DeletionTimestamp = &deleted
		}
		out, changed := finalizers(p, standing{inForce: tc.inForce}, tc.blocks)
		if changed == (tc.want == "=") || changed && strings.Join(out, " ") != tc.want {
			t.Errorf("%s: %v %v, want %s", name, out, changed, tc.want)
		}
	}
}

func TestView(t *testing.T) {
	pool := func(name, cidr string, age time.Duration, set func(*v3.IPPool)) *v3.IPPool {
		p := &v3.IPPool{ObjectMeta: metav1.ObjectMeta{Name: name, CreationTimestamp: metav1.NewTime(t0.Add(-age))}, Spec: v3.IPPoolSpec{CIDR: cidr, NodeSelector: "all()"}}
		if set != nil {
			set(p)
		}
		return p
	}
	gone := metav1.NewTime(t0)
	v := newView([]*v3.IPPool{
		pool("young", "10.0.0.0/16", time.Hour, nil),
		pool("old", "10.0.1.0/24", 2*time.Hour, nil),
		pool("wrong", "10.0.0.1/16", 3*time.Hour, nil),
		pool("off", "10.1.0.0/16", time.Hour, func(p *v3.IPPool) { p.Spec.Disabled = true }),
		pool("leaving", "10.2.0.0/16", time.Hour, func(p *v3.IPPool) { p.DeletionTimestamp = &gone }),
	}, nil, nil)
	for name, want := range map[string]string{"young": reasonOverlap, "old": reasonOK, "wrong": reasonInvalid, "off": reasonDisabled, "leaving": reasonTerminating} {
		if s := v.standing[name]; s.reason != want || s.message == "" {
			t.Errorf("%s: %+v, want %s", name, s, want)
		}
	}
	if got := v.differs(nil); len(got) != 5 {
		t.Errorf("differs from nothing: %v", got)
	}
	if got := v.differs(v); got != nil {
		t.Errorf("differs from itself: %v", got)
	}
	if v.gives(v.pool("off")) || v.gives(v.pool("leaving")) || !v.gives(v.pool("old")) {
		t.Error("which pools give addresses")
	}
}
