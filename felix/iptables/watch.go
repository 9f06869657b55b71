package iptables

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
)

// nf_tables' messages, include/uapi/linux/netfilter/nf_tables.h and nfnetlink.h.
const (
	netlinkNetfilter = 12 // NETLINK_NETFILTER
	groupNFTables    = 7  // NFNLGRP_NFTABLES
	subsysNFTables   = 10 // NFNL_SUBSYS_NFTABLES

	msgNewTable = 0
	msgDelTable = 2
	msgNewChain = 3
	msgDelChain = 5
	msgNewRule  = 6
	msgDelRule  = 8
	msgNewGen   = 15

	attrTable     = 1 // NFTA_TABLE_NAME, NFTA_CHAIN_TABLE, NFTA_RULE_TABLE
	attrRuleChain = 2 // NFTA_RULE_CHAIN
	attrChainName = 3 // NFTA_CHAIN_NAME
)

// Watch listens to the kernel's nf_tables events. The legacy backend has none.
func (h *Host) Watch(ctx context.Context, ready func(), changed func([]Change)) error {
	_, b, err := h.open(ctx)
	if err != nil {
		return err
	}
	if b != NFT {
		return ErrUnwatchable
	}
	var sock *os.File
	if err := h.in(func() (err error) {
		sock, err = listen()
		return err
	}); err != nil {
		return fmt.Errorf("nf_tables events: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { sock.Close() })
	defer stop()
	defer sock.Close()
	ready()
	var (
		buf   = make([]byte, 64<<10)
		batch events
	)
	for {
		n, err := sock.Read(buf)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, syscall.ENOBUFS): // the kernel had to drop some
			batch = events{}
			changed([]Change{{}})
			continue
		case err != nil:
			return fmt.Errorf("nf_tables events: %w", err)
		}
		msgs, err := syscall.ParseNetlinkMessage(buf[:n])
		if err != nil {
			return fmt.Errorf("nf_tables events: %w", err)
		}
		for _, m := range msgs {
			if done := batch.take(h.family, m); len(done) > 0 && !h.child(batch.sender) {
				changed(done)
			}
		}
	}
}

func listen() (*os.File, error) {
	fd, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_RAW|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, netlinkNetfilter)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	// A table of thousands of rules is told rule by rule.
	_ = syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_RCVBUFFORCE, 4<<20)
	if err := syscall.Bind(fd, &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK, Groups: 1 << (groupNFTables - 1)}); err != nil {
		syscall.Close(fd)
		return nil, os.NewSyscallError("bind", err)
	}
	return os.NewFile(uintptr(fd), "nf_tables events"), nil
}

// events collects the messages of one transaction, which the kernel ends with NEWGEN.
type events struct {
	seen   map[Change]bool
	sender uint32 // netlink port of who did it: the process id of an iptables program
}

// take returns what the transaction touched when m ends it.
func (e *events) take(family Family, m syscall.NetlinkMessage) []Change {
	if m.Header.Type>>8 != subsysNFTables || len(m.Data) < 4 {
		return nil
	}
	msg := m.Header.Type & 0xff
	if msg == msgNewGen {
		var out []Change
		for c := range e.seen {
			out = append(out, c)
		}
		e.seen = nil
		return out
	}
	nfproto := byte(syscall.AF_INET) // NFPROTO_IPV4 and _IPV6 have the numbers of AF_*
	if family == IPv6 {
		nfproto = syscall.AF_INET6
	}
	if m.Data[0] != nfproto { // struct nfgenmsg: family, version, resource id
		return nil
	}
	c := Change{Table: Table(attribute(m.Data[4:], attrTable))}
	switch msg {
	case msgNewTable, msgDelTable:
	case msgNewChain, msgDelChain:
		c.Chain = attribute(m.Data[4:], attrChainName)
	case msgNewRule, msgDelRule:
		c.Chain = attribute(m.Data[4:], attrRuleChain)
	default:
		return nil
	}
	if e.seen == nil {
		e.seen = map[Change]bool{}
	}
	e.seen[c] = true
	e.sender = m.Header.Pid
	return nil
}

// attribute returns a string attribute (struct nlattr: length, type, value, padded to 4).
func attribute(b []byte, kind uint16) string {
	for len(b) >= 4 {
		n := int(binary.NativeEndian.Uint16(b))
		if n < 4 || n > len(b) {
			return ""
		}
		if binary.NativeEndian.Uint16(b[2:])&0x3fff == kind {
			return strings.TrimRight(string(b[4:n]), "\x00")
		}
		b = b[min((n+3)&^3, len(b)):]
	}
	return ""
}
