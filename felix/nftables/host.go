package nftables

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"sigs.k8s.io/knftables"
)

// Host is the kernel of a network namespace: written by nft(8), which must be 1.0.1 or
// newer, and read over netlink.
type Host struct {
	within func(func() error) error

	mu  sync.Mutex
	nft knftables.Interface

	edit sync.Mutex
	conn *editor // nil: there is none
}

// NewHost makes the Host of the namespace that its methods are called in.
func NewHost() *Host { return &Host{within: func(f func() error) error { return f() }} }

// Within makes a Host of another namespace: enter runs a function on a thread there.
func (h *Host) Within(enter func(func() error) error) *Host { return &Host{within: enter} }

// NewTransaction begins a transaction on the table.
func (h *Host) NewTransaction() *knftables.Transaction {
	var tx *knftables.Transaction
	err := h.within(func() error {
		nft, err := h.open()
		if err == nil {
			tx = nft.NewTransaction()
		}
		return err
	})
	if err != nil { // and Run will say so
		tx = knftables.NewFake(knftables.InetFamily, TableName).NewTransaction()
	}
	return tx
}

// open finds nft, once.
func (h *Host) open() (knftables.Interface, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.nft == nil {
		nft, err := knftables.New(knftables.InetFamily, TableName)
		if err != nil {
			return nil, err
		}
		h.nft = nft
	}
	return h.nft, nil
}

// slow is how long a transaction may take. nft that is ended before it is done has changed
// nothing, or all.
const slow = 2 * time.Minute

// Run has nft bring a transaction into the kernel.
func (h *Host) Run(ctx context.Context, tx *knftables.Transaction) error {
	ctx, cancel := context.WithTimeout(ctx, slow)
	defer cancel()
	return h.within(func() error {
		nft, err := h.open()
		if err != nil {
			return err
		}
		return nft.Run(ctx, tx)
	})
}

// Read returns what stands in the table.
func (h *Host) Read(context.Context) (s State, err error) {
	err = h.within(func() (err error) {
		s, err = readState()
		return err
	})
	return s, err
}

// Count hands over how much each rule of the table has met.
func (h *Host) Count(_ context.Context, f func(chain, comment string, packets, bytes uint64)) error {
	return h.within(func() error { return asking(func(s socket) error { return s.eachRule(f) }) })
}

// Watch tells of transactions that touch the table.
func (h *Host) Watch(ctx context.Context, lost func(), changed func(Change)) error {
	var sock *os.File
	if err := h.within(func() (err error) {
		sock, err = listen()
		return err
	}); err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { sock.Close() })()
	defer sock.Close()
	lost()
	var (
		buf = make([]byte, 64<<10)
		tx  transaction
	)
	for {
		n, err := sock.Read(buf)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, syscall.ENOBUFS): // the kernel had to drop some
			tx = transaction{}
			lost()
			continue
		case err != nil:
			return fmt.Errorf("nf_tables events: %w", err)
		}
		msgs, err := syscall.ParseNetlinkMessage(buf[:n])
		if err != nil {
			return fmt.Errorf("nf_tables events: %w", err)
		}
		for _, m := range msgs {
			if c, done := tx.take(m); done {
				changed(c)
			}
		}
	}
}

// listen opens a socket that the kernel tells of all changes of tables.
func listen() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	// A start of ours is told member by member.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (groupEvents - 1)}); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("bind", err)
	}
	return os.NewFile(uintptr(fd), "nf_tables events"), nil
}
