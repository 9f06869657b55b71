package felixtest

import (
	"reflect"
	"slices"
)

// shrink makes a history smaller as long as it still fails: it leaves out changes, then
// parts of objects.
func shrink(history []Change, fails func([]Change) bool) []Change {
	for size := len(history) / 2; size > 0; {
		progress := false
		for i := 0; i+size <= len(history); {
			less := slices.Concat(history[:i], history[i+size:])
			if fails(less) {
				history, progress = less, true
			} else {
				i += size
			}
		}
		if size > 1 || !progress {
			size /= 2
		}
	}
	for progress := true; progress; {
		progress = false
		for i := range history {
			for _, simpler := range simpler(reflect.ValueOf(history[i].Object)) {
				h := slices.Clone(history)
				h[i].Object = simpler.Interface()
				if fails(h) {
					history, progress = h, true
					break
				}
			}
		}
	}
	return history
}

// simpler lists values that have one thing less.
func simpler(v reflect.Value) []reflect.Value {
	var out []reflect.Value
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			if !v.Type().Field(i).IsExported() || v.Field(i).IsZero() || v.Type().Field(i).Name == "ID" || v.Type().Field(i).Name == "Name" {
				continue
			}
			for _, f := range append([]reflect.Value{reflect.Zero(v.Field(i).Type())}, simpler(v.Field(i))...) {
				c := reflect.New(v.Type()).Elem()
				c.Set(v)
				c.Field(i).Set(f)
				out = append(out, c)
			}
		}
	case reflect.Slice:
		for i := range v.Len() {
			rest := reflect.MakeSlice(v.Type(), 0, v.Len()-1)
			rest = reflect.AppendSlice(reflect.AppendSlice(rest, v.Slice(0, i)), v.Slice(i+1, v.Len()))
			out = append(out, rest)
			for _, e := range simpler(v.Index(i)) {
				c := reflect.MakeSlice(v.Type(), v.Len(), v.Len())
				reflect.Copy(c, v)
				c.Index(i).Set(e)
				out = append(out, c)
			}
		}
	case reflect.Map:
		for _, k := range v.MapKeys() {
			c := reflect.MakeMap(v.Type())
			for _, other := range v.MapKeys() {
				if !other.Equal(k) {
					c.SetMapIndex(other, v.MapIndex(other))
				}
			}
			out = append(out, c)
		}
	}
	return out
}
