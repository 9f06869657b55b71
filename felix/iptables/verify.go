package iptables

import (
	"context"
	"errors"
	"fmt"
)

// Limits of asking iptables-restore -C: it compares with each rule of the chain, so that
// a chain of n rules costs n*n; and every wrong rule costs one more call.
const (
	maxChecked = 200
	maxWrong   = 16
)

// verify clears the mark of every rule of ours that is not what its mark says, so that it
// is written anew. Most rules are printed as we wrote them, or as they were when last
// they were right; the others iptables compares itself, by a transaction of -C commands,
// which changes nothing. In chains of more than maxChecked rules the mark is believed the
// first time a rule is seen.
func (r *Reconciler) verify(ctx context.Context, t *table, now *actual) error {
	wanted := map[string]line{}
	know := func(lines []line) {
		for _, l := range lines {
			wanted[l.digest] = l
		}
	}
	for _, c := range t.want {
		know(c.lines)
		know(c.fallback)
	}
	for _, c := range t.good {
		know(c.lines)
	}
	for _, h := range t.hooks {
		know(h.head)
		know(h.tail)
	}
	// Every rule of ours that is wanted somewhere, with the text it is saved as.
	type sighting struct {
		chain string
		rules int
		text  string
		clear func()
	}
	var seen = map[string][]sighting{}
	for name, c := range now.chains {
		for i := range c.rules {
			a := &c.rules[i]
			if _, ok := wanted[a.digest]; ok && a.digest != "" {
				seen[a.digest] = append(seen[a.digest], sighting{name, len(c.rules), a.text, func() { a.digest = "" }})
			}
			a.text = ""
		}
	}
	for name, f := range now.foreign {
		for i := range f.hooks {
			a := &f.hooks[i]
			if _, ok := wanted[a.digest]; ok {
				_, rest := cutMark(split(a.spec))
				seen[a.digest] = append(seen[a.digest], sighting{name, f.rules, join(rest), func() { a.digest = "" }})
			}
		}
	}
	canon := make(map[string]string, len(seen))
	var ask []string
	for digest, at := range seen {
		right, known := t.canon[digest]
		same := true
		for _, s := range at {
			if s.text == wanted[digest].text {
				right, known = s.text, true
			}
			same = same && s.text == at[0].text
		}
		switch {
		case known:
			for _, s := range at {
				if s.text == right {
					canon[digest] = right
				} else {
					s.clear()
				}
			}
		case !same: // two printings of one rule: at least one is wrong
			for _, s := range at {
				s.clear()
			}
		case at[0].rules > maxChecked:
			canon[digest] = at[0].text
		default:
			ask = append(ask, digest)
		}
	}
	for wrong := 0; len(ask) > 0; {
		text := []byte("*" + string(t.name) + "\n")
		for _, d := range ask {
			text = append(text, "-C "+seen[d][0].chain+" "+wanted[d].spec()+"\n"...)
		}
		err := r.restore(ctx, append(text, "COMMIT\n"...))
		passed := len(ask)
		var no *RestoreError
		if errors.As(err, &no) && !no.Temporary() {
			if len(no.Lines) == 0 || wrong == maxWrong {
				passed = 0
			} else {
				passed = min(no.Lines[0]-2, len(ask)-1)
			}
		} else if err != nil {
			return fmt.Errorf("comparing rules: %w", err)
		}
		for _, d := range ask[:passed] {
			canon[d] = seen[d][0].text
		}
		ask = ask[passed:]
		if len(ask) == 0 {
			break
		}
		wrong++
		bad := ask[:1]
		if len(no.Lines) == 0 || wrong > maxWrong {
			bad = ask
		}
		for _, d := range bad {
			for _, s := range seen[d] {
				s.clear()
			}
		}
		ask = ask[len(bad):]
	}
	t.canon = canon
	return nil
}
