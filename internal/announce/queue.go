package announce

import (
	"slices"
	"time"
)

// gather is how long pods that come together are waited for.
const gather = 2 * time.Millisecond

// repeats are the waits between the times that a pod is told: a datagram that is lost costs
// 40 ms, two in a row 150 ms.
var repeats = []time.Duration{40 * time.Millisecond, 110 * time.Millisecond}

// queue holds the pods that are still to be told, each of them 1+len(repeats) times.
type queue struct{ pods []told }

type told struct {
	pod       Pod
	times     int
	last, due time.Time
}

// add takes a pod, in the place of what was to be told of one of that name.
func (q *queue) add(p Pod, now time.Time) {
	q.pods = slices.DeleteFunc(q.pods, func(t told) bool { return t.pod.Namespace == p.Namespace && t.pod.Name == p.Name })
	q.pods = append(q.pods, told{pod: p, last: now, due: now.Add(gather)})
}

// next says when take has something to give; ok is false when nothing is left.
func (q *queue) next() (at time.Time, ok bool) {
	for _, t := range q.pods {
		if !ok || t.due.Before(at) {
			at, ok = t.due, true
		}
	}
	return at, ok
}

// take returns the pods to be told now. When there are any, those whose next time is nearer
// than their last one travel along.
func (q *queue) take(now time.Time) []Pod {
	if at, ok := q.next(); !ok || at.After(now) {
		return nil
	}
	var out []Pod
	left := q.pods[:0]
	for _, t := range q.pods {
		if t.due.Sub(now) <= now.Sub(t.last) {
			out = append(out, t.pod)
			if t.times == len(repeats) {
				continue
			}
			t.last, t.due = now, now.Add(repeats[t.times])
			t.times++
		}
		left = append(left, t)
	}
	clear(q.pods[len(left):])
	q.pods = left
	return out
}
