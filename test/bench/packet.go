package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"
)

// How often a packet goes to and fro: batches are as short as they can be and still be
// measured, so that some of them meet nothing else that the machine does.
const (
	batches = 400
	rounds  = 25
)

// packet is the processor time of one small TCP packet, in µs, from the sender's write to the
// receiver's read: that of two pods that send each other one byte in turn. One thread does both
// ends, and the kernel delivers a packet on a veth within the sender's own call, so that the
// thread's time is that of the whole way. It is the time of a batch that nothing held up: the
// tenth percentile.
func (w *wire) packet() (float64, error) {
	from, to, err := w.dial()
	if err != nil {
		return 0, err
	}
	defer from.Close()
	defer to.Close()
	var each []float64
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never given back: the thread ends with its counters
		done <- func() error {
			for range batches {
				began, err := threadTime()
				for range rounds {
					err = errors.Join(err, pass(from, to), pass(to, from))
				}
				ended, terr := threadTime()
				if err := errors.Join(err, terr); err != nil {
					return err
				}
				each = append(each, (ended-began)/2/rounds)
			}
			return nil
		}()
	}()
	if err := <-done; err != nil {
		return 0, err
	}
	slices.Sort(each)
	return each[batches/10], nil
}

// threadTime is the processor time of the calling thread, in µs.
func threadTime() (float64, error) {
	var t unix.Timespec
	err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t)
	return float64(t.Nano()) / 1e3, err
}

// pass sends one byte and takes it in.
func pass(from, to *os.File) error {
	var b [1]byte
	if _, err := unix.Write(int(from.Fd()), b[:]); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	if n, err := unix.Read(int(to.Fd()), b[:]); err != nil || n != 1 {
		return fmt.Errorf("read %d bytes: %w", n, err)
	}
	return nil
}

// packetPort is where dial's target listens.
const packetPort = 5202

// dial connects the two pods, both ends in this process.
func (w *wire) dial() (from, to *os.File, err error) {
	socket := func() (int, error) { return unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0) }
	var listener, client int
	err = w.to.Do(func() (err error) {
		if listener, err = socket(); err != nil {
			return err
		}
		return errors.Join(
			unix.SetsockoptInt(listener, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
			unix.Bind(listener, &unix.SockaddrInet4{Port: packetPort}),
			unix.Listen(listener, 1))
	})
	if err != nil {
		return nil, nil, fmt.Errorf("%s: listen: %w", w.to, err)
	}
	defer unix.Close(listener)
	err = w.from.Do(func() (err error) {
		if client, err = socket(); err != nil {
			return err
		}
		return unix.Connect(client, &unix.SockaddrInet4{Port: packetPort, Addr: w.at.As4()})
	})
	if err != nil {
		return nil, nil, fmt.Errorf("%s: connect to %s: %w", w.from, w.at, err)
	}
	from = os.NewFile(uintptr(client), "client")
	server, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
	if err != nil {
		return nil, nil, errors.Join(err, from.Close())
	}
	to = os.NewFile(uintptr(server), "server")
	for _, f := range []*os.File{from, to} {
		late := unix.Timeval{Sec: 10}
		err = errors.Join(err, unix.SetsockoptInt(int(f.Fd()), unix.IPPROTO_TCP, unix.TCP_NODELAY, 1),
			unix.SetsockoptTimeval(int(f.Fd()), unix.SOL_SOCKET, unix.SO_RCVTIMEO, &late))
	}
	if err != nil {
		return nil, nil, errors.Join(err, from.Close(), to.Close())
	}
	return from, to, nil
}
