package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
)

func TestFrameRoundTrip(t *testing.T) {
	want := Request{Version: Version, Command: "ADD", ContainerID: "c", NetNS: "/run/netns/x", IfName: "eth0", Args: "A=1", Path: "/opt", Stdin: []byte("{not json")}
	b, err := Frame(want)
	if err != nil {
		t.Fatal(err)
	}
	var got Request
	if err := ReadFrame(iotest.OneByteReader(bytes.NewReader(b)), &got); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestFrameBounds(t *testing.T) {
	if _, err := Frame(Request{Stdin: make([]byte, MaxFrame)}); !errors.Is(err, ErrTooLong) {
		t.Errorf("Frame of an oversized request: %v", err)
	}
	var r Request
	if err := ReadFrame(bytes.NewReader(binary.BigEndian.AppendUint32(nil, MaxFrame+1)), &r); !errors.Is(err, ErrTooLong) {
		t.Errorf("ReadFrame with an oversized length: %v", err)
	}
	whole, _ := Frame(Request{Version: 1, Command: "DEL"})
	for n := range whole {
		want := io.ErrUnexpectedEOF
		if n == 0 {
			want = io.EOF
		}
		if err := ReadFrame(bytes.NewReader(whole[:n]), &r); err != want {
			t.Errorf("frame cut at %d of %d: %v, want %v", n, len(whole), err, want)
		}
	}
}

func TestCheckVersion(t *testing.T) {
	if err := CheckVersion("agent", "plugin", Version); err != nil {
		t.Error(err)
	}
	err := CheckVersion("agent", "plugin", 7)
	if err == nil || !strings.Contains(err.Error(), "plugin speaks version 7") || !strings.Contains(err.Error(), "agent version 1") {
		t.Errorf("error %v names not both versions", err)
	}
}

func TestReadyFile(t *testing.T) {
	if got := ReadyFile(DefaultSocket); got != "/run/causeway/cni.ready" {
		t.Error(got)
	}
}

func FuzzReadFrame(f *testing.F) {
	b, _ := Frame(Request{Version: 1, Command: "ADD", Stdin: []byte("{}")})
	f.Add(b)
	f.Add([]byte{0, 0, 0, 0})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, '{'})
	f.Fuzz(func(t *testing.T, b []byte) {
		var r Request
		if err := ReadFrame(bytes.NewReader(b), &r); err != nil {
			return
		}
		again, err := Frame(r)
		if err != nil {
			t.Fatal(err)
		}
		var r2 Request
		if err := ReadFrame(bytes.NewReader(again), &r2); err != nil {
			t.Fatal(err)
		}
	})
}
