package tunnel

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Commands of include/uapi/linux/ethtool.h. The old form, which knows of all transmit
// checksums as one, is that which every kernel understands.
const (
	ethtoolGTXCSUM = 0x16
	ethtoolSTXCSUM = 0x17
)

// ethtool is a socket to ask SIOCETHTOOL of.
type ethtool int

func openEthtool() (ethtool, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("ethtool socket: %w", err)
	}
	return ethtool(fd), nil
}

func (e ethtool) close() { unix.Close(int(e)) }

// ethtoolValue is struct ethtool_value.
type ethtoolValue struct{ cmd, data uint32 }

// ifreqData is struct ifreq with the pointer of its union.
type ifreqData struct {
	name [unix.IFNAMSIZ]byte
	data unsafe.Pointer
	_    [16]byte
}

func (e ethtool) ask(name string, v *ethtoolValue) error {
	r := ifreqData{data: unsafe.Pointer(v)}
	if copy(r.name[:unix.IFNAMSIZ-1], name) != len(name) {
		return fmt.Errorf("link name %q: longer than %d bytes", name, unix.IFNAMSIZ-1)
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(e), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&r))); errno != 0 {
		return errno
	}
	return nil
}

// checksum reports whether transmit checksums are left to the hardware.
func (e ethtool) checksum(name string) (bool, error) {
	v := ethtoolValue{cmd: ethtoolGTXCSUM}
	err := e.ask(name, &v)
	return v.data != 0, err
}

func (e ethtool) setChecksum(name string, on bool) error {
	v := ethtoolValue{cmd: ethtoolSTXCSUM}
	if on {
		v.data = 1
	}
	return e.ask(name, &v)
}
