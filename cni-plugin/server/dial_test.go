package server

import (
	"net"
	"os"

	"golang.org/x/sys/unix"
)

func dial(socket string) (*net.UnixConn, error) {
	return net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
}

// send writes a frame with descriptors.
func send(conn *net.UnixConn, frame []byte, files ...*os.File) error {
	var oob []byte
	if len(files) > 0 {
		var fds []int
		for _, f := range files {
			fds = append(fds, int(f.Fd()))
		}
		oob = unix.UnixRights(fds...)
	}
	_, _, err := conn.WriteMsgUnix(frame, oob, nil)
	return err
}
