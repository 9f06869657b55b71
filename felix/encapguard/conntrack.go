package encapguard

import (
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ForgetTranslated deletes the connections of IPIP that the kernel gave another source: those
// of pods that sent such packets to a node before it was forbidden, which natOutgoing covered up. IPIP has no
// ports, so that what that node sends to this one looks like the answer, and the kernel
// would hand it to the pod for as long as it comes, instead of to the tunnel.
//
// It reads the whole table of connections of the network namespace that the calling thread is in.
func ForgetTranslated() error {
	if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, translatedIPIP{}); err != nil {
		return fmt.Errorf("forgetting what pods sent as IPIP: %w", err)
	}
	return nil
}

type translatedIPIP struct{}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (translatedIPIP) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	return f.Forward.Protocol == unix.IPPROTO_IPIP && !f.Forward.SrcIP.Equal(f.Reverse.DstIP)
}
