package lab

import "testing"

func TestSlowness(t *testing.T) {
	for s, want := range map[string]float64{"": 1, "1": 1, "5": 5, "2.5": 2.5} {
		if n, err := parseSlowness(s); err != nil || n != want {
			t.Errorf("%q: %v %v, want %v", s, n, err, want)
		}
	}
	for _, s := range []string{"0", "0.5", "-1", "NaN", "Inf", "5x", "1001"} {
		if n, err := parseSlowness(s); err == nil {
			t.Errorf("%q is taken for %v", s, n)
		}
	}
}
