package wire

import (
	"os"
	"time"
)

// WasReady reports whether the ready file at path says that an agent was ready less than
// Away before now. A time that lies further than Away in the future (the clock was set
// back) proves nothing.
func WasReady(path string, now time.Time) bool {
	st, err := os.Stat(path)
	if err != nil || !st.Mode().IsRegular() {
		return false
	}
	age := now.Sub(st.ModTime())
	return age < Away && age > -Away
}

// MarkReady creates the ready file or sets its modification time to now. Mode 0644: it
// holds nothing.
func MarkReady(path string, now time.Time) error {
	err := os.Chtimes(path, now, now)
	if !os.IsNotExist(err) {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	return f.Close()
}
