package main

import (
	"strings"
	"testing"
)

func TestBetween(t *testing.T) {
	doc := "before\n" + beginMark + "\nold\n" + endMark + "\nafter\n"
	got, err := between(doc, "new\n")
	if want := "before\n" + beginMark + "\n\nnew\n" + endMark + "\nafter\n"; err != nil || got != want {
		t.Fatalf("%q, %v; want %q", got, err, want)
	}
	if again, err := between(got, "new\n"); err != nil || again != got {
		t.Errorf("a second time: %q, %v", again, err)
	}
	for _, bad := range []string{"", beginMark, endMark + beginMark} {
		if _, err := between(bad, "x"); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestMarkdown(t *testing.T) {
	c := Comparison{Name: "work", Versus: "peer", Unit: "ms", Goal: 0.5}
	c.add(1, 4)
	c.finish()
	fast := Comparison{Name: "stream", Versus: "plain", Unit: "Gbit/s", Least: 0.97}
	fast.add(9.6, 10)
	fast.finish()
	missed := Figure{Name: "memory", Unit: "MB", Value: 61.25, Goal: 60}
	r := Report{Comparisons: []Comparison{c, fast}, Figures: []Figure{missed}, Breakdowns: []Breakdown{{Families: "IPv4", Total: 9, Agent: []Part{{"took", 5}, {"tookToWire", 3}}}}}
	got := r.Markdown()
	for _, want := range []string{
		"| work | 1.00 ms | peer | 4.00 ms | **0.25** | 0.25 – 0.25 | ≤ 0.5: met |",
		"| stream | 9.60 Gbit/s | plain | 10.0 Gbit/s | **0.96** | 0.96 – 0.96 | ≥ 0.97: **missed** |",
		"| memory | 61.2 MB | ≤ 60 MB: **missed** |",
		"| – of it the agent (`took`) | 5.00 |",
		"| – – of it `tookToWire` | 3.00 |",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no line %q in\n%s", want, got)
		}
	}
}
