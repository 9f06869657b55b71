package nftables

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
	"sigs.k8s.io/knftables"
)

// The messages and attributes of include/uapi/linux/netfilter/nf_tables.h.
const (
	subsystem    = 10 // NFNL_SUBSYS_NFTABLES
	groupEvents  = 7  // NFNLGRP_NFTABLES
	nfprotoINet  = 1
	nfprotoIPv4  = 2
	nfprotoIPv6  = 10
	headerLen    = 4 // struct nfgenmsg
	attrTypeMask = 0x3fff

	msgNewTable   = 0
	msgGetTable   = 1
	msgNewChain   = 3
	msgGetChain   = 4
	msgNewRule    = 6
	msgGetRule    = 7
	msgNewSet     = 9
	msgGetSet     = 10
	msgNewSetElem = 12
	msgGetSetElem = 13
	msgNewGen     = 15
	msgGetGen     = 16

	attrTable = 1 // of every message but those of generations
	attrGenID = 1

	attrChainName   = 3
	attrChainHook   = 4
	attrChainPolicy = 5
	attrHookNumber  = 1
	attrHookPrio    = 2

	attrRuleChain    = 2
	attrRuleExprs    = 4
	attrRuleUserdata = 7
	attrExprName     = 1
	attrExprData     = 2
	attrCountBytes   = 1
	attrCountPackets = 2
	udataComment     = 0 // NFTNL_UDATA_RULE_COMMENT

	attrSetName   = 2
	attrSetFlags  = 3
	attrSetKeyLen = 5

	attrElems       = 3
	attrElemKey     = 1
	attrElemData    = 2
	attrElemKeyEnd  = 10
	attrDataValue   = 1
	attrDataVerdict = 2
	attrVerdictCode = 1
	attrVerdictTo   = 2

	flagAnonymous = 1
	flagInterval  = 4
	flagMap       = 8

	verdictJump = -3 // NFT_JUMP
	accept      = 1  // NF_ACCEPT
)

var hooks = map[uint32]knftables.BaseChainHook{
	0: knftables.PreroutingHook, 1: knftables.InputHook, 2: knftables.ForwardHook, 3: knftables.OutputHook, 4: knftables.PostroutingHook,
}

// attrs are the attributes of a message, or within another; the last of each type.
type attrs map[uint16][]byte

func parse(b []byte) attrs {
	out := attrs{}
	each(b, func(typ uint16, value []byte) { out[typ] = value })
	return out
}

// each walks attributes in their order.
func each(b []byte, f func(typ uint16, value []byte)) {
	for len(b) >= 4 {
		n := int(binary.NativeEndian.Uint16(b))
		if n < 4 || n > len(b) {
			return
		}
		f(binary.NativeEndian.Uint16(b[2:])&attrTypeMask, b[4:n])
		b = b[min((n+3)&^3, len(b)):]
	}
}

func (a attrs) text(typ uint16) string { return strings.TrimRight(string(a[typ]), "\x00") }

func (a attrs) u32(typ uint16) uint32 {
	if len(a[typ]) != 4 {
		return 0
	}
	return binary.BigEndian.Uint32(a[typ])
}

func (a attrs) u64(typ uint16) uint64 {
	if len(a[typ]) != 8 {
		return 0
	}
	return binary.BigEndian.Uint64(a[typ])
}

// socket is what the kernel is asked by. One is used for many questions: the kernel keeps whoever
// closes one waiting for what transactions have taken away.
type socket map[int]*nl.SocketHandle

// asking opens a socket for f, in the thread's namespace.
func asking(f func(socket) error) error {
	s, err := nl.Subscribe(unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	defer s.Close()
	if err := errors.Join(s.SetSendTimeout(&nl.SocketTimeoutTv), s.SetReceiveTimeout(&nl.SocketTimeoutTv)); err != nil {
		return err
	}
	return f(socket{unix.NETLINK_NETFILTER: {Socket: s}})
}

// ask sends a question about our table and hands over each answer's attributes.
func (s socket) ask(msg int, flags int, f func(attrs), with ...*nl.RtAttr) error {
	err := syscall.EINTR
	for range 10 { // a dump that a change came into
		req := nl.NewNetlinkRequest(subsystem<<8|msg, flags)
		req.Sockets = s
		req.AddData(&nl.Nfgenmsg{NfgenFamily: nfprotoINet})
		for _, a := range with {
			req.AddData(a)
		}
		var got []attrs
		err := req.ExecuteIter(unix.NETLINK_NETFILTER, subsystem<<8|uint16(answer(msg)), func(m []byte) bool {
			if len(m) >= headerLen {
				got = append(got, parse(bytes.Clone(m[headerLen:])))
			}
			return true
		})
		if errors.Is(err, nl.ErrDumpInterrupted) || errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		for _, a := range got {
			f(a)
		}
		return nil
	}
	return err
}

// answer is the message that answers a question.
func answer(msg int) int { return msg - 1 }

func stringAttr(typ int, s string) *nl.RtAttr { return nl.NewRtAttr(typ, nl.ZeroTerminated(s)) }

// generation is the number of the last transaction on any table of the namespace.
func (s socket) generation() (id uint32, err error) {
	err = s.ask(msgGetGen, 0, func(a attrs) { id = a.u32(attrGenID) })
	return id, err
}

// readState reads our table in the thread's namespace.
func readState() (now State, err error) {
	err = asking(func(s socket) (err error) {
		now, err = s.readState()
		return err
	})
	return now, err
}

func (sock socket) readState() (State, error) {
	for range 20 {
		before, err := sock.generation()
		if err != nil {
			return State{}, err
		}
		s, err := sock.readOnce()
		if err != nil {
			return State{}, err
		}
		after, err := sock.generation()
		if err != nil {
			return State{}, err
		}
		if before == after {
			return s, nil
		}
	}
	return State{}, errors.New("others change tables all the time; not once in 20 it could be read as a whole")
}

func (sock socket) readOnce() (State, error) {
	mine := stringAttr(attrTable, TableName)
	s := State{}
	err := sock.ask(msgGetTable, unix.NLM_F_DUMP, func(a attrs) { s.there = s.there || a.text(attrTable) == TableName })
	if err != nil || !s.there {
		return State{}, err
	}
	s = newState()
	err = sock.ask(msgGetChain, unix.NLM_F_DUMP, func(a attrs) {
		if a.text(attrTable) != TableName {
			return
		}
		c := standing{}
		if h, ok := a[attrChainHook]; ok {
			hook := parse(h)
			c.base = base{hooks[hook.u32(attrHookNumber)], int(int32(hook.u32(attrHookPrio)))}
			if a.u32(attrChainPolicy) != accept {
				s.odd = "policy of chain " + a.text(attrChainName)
			}
		}
		s.chains[a.text(attrChainName)] = c
	}, mine)
	if err != nil {
		return State{}, err
	}
	err = sock.eachRule(func(in, comment string, _, _ uint64) {
		c := s.chains[in]
		c.digests = append(c.digests, comment[:min(len(comment), digestLen)])
		s.chains[in] = c
	})
	if err != nil {
		return State{}, err
	}
	err = sock.ask(msgGetSet, unix.NLM_F_DUMP, func(a attrs) {
		flags := a.u32(attrSetFlags)
		if a.text(attrTable) == TableName && flags&flagAnonymous == 0 {
			s.sets[a.text(attrSetName)] = &content{keyLen: int(a.u32(attrSetKeyLen)), flags: flags & (flagInterval | flagMap), members: map[string]string{}}
		}
	}, mine)
	if err != nil {
		return State{}, err
	}
	for name, c := range s.sets {
		err := sock.ask(msgGetSetElem, unix.NLM_F_DUMP, func(a attrs) {
			each(a[attrElems], func(_ uint16, b []byte) { c.take(b) })
		}, mine, stringAttr(attrSetName, name))
		if err != nil {
			return State{}, fmt.Errorf("set %s: %w", name, err)
		}
	}
	return s, nil
}

// take takes in a member as the kernel tells it.
func (c *content) take(b []byte) {
	e := parse(b)
	key := string(parse(e[attrElemKey])[attrDataValue])
	if c.flags&flagInterval != 0 {
		if end, ok := e[attrElemKeyEnd]; ok {
			key += string(parse(end)[attrDataValue])
		} else {
			key += key
		}
	}
	value := ""
	if c.flags&flagMap != 0 {
		verdict := parse(parse(e[attrElemData])[attrDataVerdict])
		value = fmt.Sprint("verdict ", int32(verdict.u32(attrVerdictCode)))
		if int32(verdict.u32(attrVerdictCode)) == verdictJump {
			value = verdict.text(attrVerdictTo)
		}
	}
	c.members[key] = value
}

// eachRule reads all rules of our table, chain by chain and each chain's in order.
func (s socket) eachRule(f func(chain, comment string, packets, bytes uint64)) error {
	return s.ask(msgGetRule, unix.NLM_F_DUMP, func(a attrs) {
		if a.text(attrTable) != TableName {
			return
		}
		var packets, size uint64
		each(a[attrRuleExprs], func(_ uint16, b []byte) {
			if e := parse(b); e.text(attrExprName) == "counter" {
				n := parse(e[attrExprData])
				packets, size = n.u64(attrCountPackets), n.u64(attrCountBytes)
			}
		})
		f(a.text(attrRuleChain), comment(a[attrRuleUserdata]), packets, size)
	}, stringAttr(attrTable, TableName))
}

// comment finds a rule's comment in what nft keeps beside it: type, length, value.
func comment(b []byte) string {
	for len(b) >= 2 && len(b) >= 2+int(b[1]) {
		if b[0] == udataComment {
			return strings.TrimRight(string(b[2:2+int(b[1])]), "\x00")
		}
		b = b[2+int(b[1]):]
	}
	return ""
}

// transaction collects the messages of one transaction, which the kernel ends with a new generation.
type transaction struct {
	touched bool
	change  Change
}

// take reports whether m ends a transaction that touched our table.
func (t *transaction) take(m syscall.NetlinkMessage) (Change, bool) {
	if m.Header.Type>>8 != subsystem || len(m.Data) < headerLen {
		return Change{}, false
	}
	if m.Header.Type&0xff == msgNewGen {
		was := *t
		*t = transaction{}
		return was.change, was.touched
	}
	if m.Data[0] != nfprotoINet {
		return Change{}, false
	}
	a := parse(m.Data[headerLen:])
	if a.text(attrTable) != TableName {
		return Change{}, false
	}
	t.touched = true
	if m.Header.Type&0xff == msgNewSetElem && a.text(attrSetName) == numberSet {
		each(a[attrElems], func(_ uint16, b []byte) {
			if v := parse(parse(b)[attrElemKey])[attrDataValue]; len(v) == 4 {
				t.change.Numbers = append(t.change.Numbers, binary.NativeEndian.Uint32(v))
			}
		})
	}
	return Change{}, false
}
