package encapguard

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/causeway-net/causeway/felix/conntrack"
)

// ForgetTranslated deletes the connections of IPIP that the kernel gave another source: those
// of pods that sent such packets to a node before it was forbidden, which natOutgoing covered up. IPIP has no
// ports, so that what that node sends to this one looks like the answer, and the kernel
// would hand it to the pod for as long as it comes, instead of to the tunnel.
//
// It reads the whole table of connections of the network namespace that the calling thread is in.
func ForgetTranslated() error {
	_, err := conntrack.NewTable().Delete(context.Background(), unix.AF_INET, func(f *conntrack.Flow) bool {
		return f.Protocol == unix.IPPROTO_IPIP && f.Source != f.ReplyTo
	})
	if err != nil {
		return fmt.Errorf("forgetting what pods sent as IPIP: %w", err)
	}
	return nil
}
