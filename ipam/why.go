package ipam

import (
	"fmt"
	"strings"
)

// What a pod's event shows of an ADD that found no address is one line: the kind of error
// once, then each pool with why it could not serve.

// why is a reason that is of a kind (ErrExhausted, ErrNoPool) without saying its name.
type why struct {
	kind error
	text string
}

func because(kind error, format string, args ...any) error {
	return &why{kind, fmt.Sprintf(format, args...)}
}

func (w *why) Error() string { return w.text }
func (w *why) Unwrap() error { return w.kind }

// reasons is several errors on one line.
type reasons []error

func (r reasons) Error() string {
	parts := make([]string, len(r))
	for i, err := range r {
		parts[i] = err.Error()
	}
	return strings.Join(parts, "; ")
}

func (r reasons) Unwrap() []error { return r }

// together returns several reasons for one thing, nil for none.
func together(errs []error) error {
	if len(errs) == 0 {
		return nil
	}
	err := errs[0]
	for _, e := range errs[1:] {
		err = fmt.Errorf("%w, and %w", err, e)
	}
	return err
}

// orNil returns r as an error, nil without reasons.
func (r reasons) orNil() error {
	if len(r) == 0 {
		return nil
	}
	return r
}

// maxUnused bounds how many pools are named that were never asked.
const maxUnused = 4

// refused returns the error of a want that no pool could serve: what the asked pools said,
// and why the others of its family were not asked.
func (w want) refused(said reasons) error {
	if len(said) == 0 {
		return nil
	}
	out := append(reasons{}, said...)
	for i, err := range w.unused {
		if i == maxUnused {
			out = append(out, fmt.Errorf("%d more pools do not serve this pod or node", len(w.unused)-i))
			break
		}
		out = append(out, err)
	}
	return out
}
