package policy

import "testing"

func TestMarks(t *testing.T) {
	m, err := NewMarks(DefaultMarkMask)
	if want := (Marks{0x10000, 0x20000, 0x40000, 0x80000, 0x100000}); err != nil || m != want {
		t.Fatalf("%#x, %v; want %#x", m, err, want)
	}
	if m, err = NewMarks(0x80000f1); err != nil || m != (Marks{1, 0x10, 0x20, 0x40, 0x80}) {
		t.Fatalf("%#x, %v", m, err)
	}
	if _, err = NewMarks(0xf00); err == nil {
		t.Fatal("four bits are enough")
	}
}
