package main

import (
	"testing"

	"golang.org/x/sys/unix"
)

func TestRouteAt(t *testing.T) {
	for i, want := range map[int]string{0: "20.0.0.0/24", 1: "20.0.1.0/24", 256: "20.1.0.0/24", 99_999: "21.134.159.0/24"} {
		if got := routeAt(i).String(); got != want {
			t.Errorf("route %d: %s, want %s", i, got, want)
		}
	}
}

// TestNote counts each route of the sender once and nothing else.
func TestNote(t *testing.T) {
	w := &fibWatch{want: 10, seen: make([]bool, 10)}
	message := func(bits, table byte, dst ...byte) []byte {
		b := make([]byte, unix.SizeofRtMsg)
		b[0], b[1], b[4] = unix.AF_INET, bits, table
		b = append(b, 8, 0, unix.RTA_PRIORITY, 0, 0, 4, 0, 0)
		b = append(b, 8, 0, unix.RTA_DST, 0)
		return append(b, dst...)
	}
	for _, m := range []struct {
		kind uint16
		body []byte
		have int
	}{
		{unix.RTM_NEWROUTE, message(24, unix.RT_TABLE_MAIN, 20, 0, 3, 0), 1},
		{unix.RTM_NEWROUTE, message(24, unix.RT_TABLE_MAIN, 20, 0, 3, 0), 1},
		{unix.RTM_NEWROUTE, message(24, unix.RT_TABLE_MAIN, 20, 0, 9, 0), 2},
		{unix.RTM_NEWROUTE, message(24, unix.RT_TABLE_MAIN, 20, 0, 10, 0), 2},
		{unix.RTM_NEWROUTE, message(24, unix.RT_TABLE_MAIN, 10, 0, 1, 0), 2},
		{unix.RTM_NEWROUTE, message(31, unix.RT_TABLE_MAIN, 20, 0, 1, 0), 2},
		{unix.RTM_NEWROUTE, message(24, unix.RT_TABLE_LOCAL, 20, 0, 1, 0), 2},
		{unix.RTM_DELROUTE, message(24, unix.RT_TABLE_MAIN, 20, 0, 1, 0), 2},
		{unix.RTM_NEWROUTE, []byte{1, 2, 3}, 2},
	} {
		w.note(m.kind, m.body)
		if w.have != m.have {
			t.Errorf("after %d %v: %d, want %d", m.kind, m.body, w.have, m.have)
		}
	}
}
