package traffic

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
)

// Counters are an interface's packets and bytes since it was made (rtnetlink's
// IFLA_STATS64).
type Counters struct {
	RxPackets uint64 `json:"rx_packets"`
	TxPackets uint64 `json:"tx_packets"`
	RxBytes   uint64 `json:"rx_bytes"`
	TxBytes   uint64 `json:"tx_bytes"`
	RxDropped uint64 `json:"rx_dropped"`
	TxDropped uint64 `json:"tx_dropped"`
}

// Sub is what was counted since an earlier reading.
func (c Counters) Sub(earlier Counters) Counters {
	return Counters{
		RxPackets: c.RxPackets - earlier.RxPackets, TxPackets: c.TxPackets - earlier.TxPackets,
		RxBytes: c.RxBytes - earlier.RxBytes, TxBytes: c.TxBytes - earlier.TxBytes,
		RxDropped: c.RxDropped - earlier.RxDropped, TxDropped: c.TxDropped - earlier.TxDropped,
	}
}

// Read returns the counters of all interfaces in a space, by name.
func Read(s Space) (map[string]Counters, error) {
	out := map[string]Counters{}
	err := s.Do(func() error {
		for range 20 {
			links, err := netlink.LinkList()
			if errors.Is(err, netlink.ErrDumpInterrupted) {
				continue
			}
			if err != nil {
				return err
			}
			for _, l := range links {
				if st := l.Attrs().Statistics; st != nil {
					out[l.Attrs().Name] = Counters{RxPackets: st.RxPackets, TxPackets: st.TxPackets,
						RxBytes: st.RxBytes, TxBytes: st.TxBytes, RxDropped: st.RxDropped, TxDropped: st.TxDropped}
				}
			}
			return nil
		}
		return netlink.ErrDumpInterrupted
	})
	if err != nil {
		return nil, fmt.Errorf("counters of %s: %w", s, err)
	}
	return out, nil
}
