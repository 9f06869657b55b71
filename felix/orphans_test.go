package felix

import (
	"net/netip"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/causeway-net/causeway/internal/model"
)

// TestOrphans reads a real kernel: routes of our protocol to a pod's link name its
// addresses; other routes, and links without any, do not.
func TestOrphans(t *testing.T) {
	runtime.LockOSThread() // never unlocked: the thread ends with the test, and its namespace
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("this test needs root: %v", err)
	}
	for _, line := range []string{
		"link set lo up",
		"link add cali1 type veth peer name p1", "link set cali1 up", "link set p1 up",
		"link add cali2 type veth peer name p2", "link set cali2 up", "link set p2 up",
		"route add 10.244.0.5/32 dev cali1 proto 82 metric 1024", "-6 route add fd00::5/128 dev cali1 proto 82 metric 1024",
		"route add 10.9.0.0/24 dev cali1 proto 82", "route add 10.244.0.6/32 dev cali2 proto static",
	} {
		if out, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", line, err, out)
		}
	}
	got, err := Orphans([]model.Endpoint{{HostInterface: "cali1"}, {HostInterface: "cali2"}, {HostInterface: "cali3"}}, 82)
	if err != nil {
		t.Fatal(err)
	}
	want := []netip.Addr{netip.MustParseAddr("10.244.0.5"), netip.MustParseAddr("fd00::5")}
	if len(got) != 1 || got[0].HostInterface != "cali1" || !slices.Equal(got[0].Addresses, want) {
		t.Errorf("got %+v, want cali1 with %v", got, want)
	}
}
