package ipam

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"net/netip"
	"time"

	"github.com/causeway-net/causeway/internal/model"
)

// A journal file is a row of frames:
//
//	4 bytes  frameMark
//	4 bytes  length of the payload, little endian
//	4 bytes  CRC-32C of length and payload, little endian
//	payload  a record as JSON
//
// The mark holds bytes that UTF-8 never has, so that behind a damaged stretch the next
// frame can be found.
var frameMark = [4]byte{0xC5, 0xFF, 0xFE, 0x4A}

const (
	frameHeader = 12
	maxPayload  = 1 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// recordKind says what a record does to the state.
type recordKind string

const (
	recNode   recordKind = "node"   // first record: whose journal this is, and of which version
	recSet    recordKind = "set"    // the endpoint is this one (assigned, adopted or wired)
	recDel    recordKind = "del"    // the endpoint was released; its addresses are to be freed
	recDrop   recordKind = "drop"   // the endpoint never came to be
	recStash  recordKind = "stash"  // these addresses are marked as our stash and unused
	recFree   recordKind = "free"   // these addresses are to be freed in their block
	recGone   recordKind = "gone"   // these addresses are no longer ours
	recTunnel recordKind = "tunnel" // this node's address of a tunnel is this one, or none; the one before is to be freed
	recWhole  recordKind = "whole"  // every address of this node in the Store is in this journal
)

// record is one change of state. Which fields count depends on Kind.
type record struct {
	Kind     recordKind           `json:"t"`
	Version  int                  `json:"v,omitempty"`      // node
	Node     string               `json:"node,omitempty"`   // node
	Endpoint *model.Endpoint      `json:"ep,omitempty"`     // set
	Blocks   []netip.Prefix       `json:"blocks,omitempty"` // set: the block of each address
	Key      *model.AttachmentKey `json:"key,omitempty"`    // del, drop
	Addrs    []netip.Addr         `json:"addrs,omitempty"`  // stash, free, gone; tunnel: one or none
	Block    netip.Prefix         `json:"block,omitzero"`   // stash, free, tunnel
	Handle   string               `json:"handle,omitempty"` // free: what the block may show beside the stash mark; tunnel
	Tunnel   string               `json:"tunnel,omitempty"` // tunnel: its name, as model.Tunnel prints it
	At       time.Time            `json:"at,omitzero"`      // set, del, free, tunnel: when; zero for a free address that was never used
}

const journalVersion = 1

// appendFrame appends a record's frame to buf.
func appendFrame(buf []byte, r record) []byte {
	payload, err := json.Marshal(r)
	if err != nil {
		panic(fmt.Sprintf("ipam: a journal record does not marshal: %v", err)) // plain data always does
	}
	start := len(buf)
	buf = append(buf, frameMark[:]...)
	buf = binary.LittleEndian.AppendUint32(buf, uint32(len(payload)))
	sum := crc32.Update(crc32.Checksum(buf[start+4:start+8], castagnoli), castagnoli, payload)
	buf = binary.LittleEndian.AppendUint32(buf, sum)
	return append(buf, payload...)
}

// frameAt returns the record of the frame that begins at data[0], and its length; 0 when
// there is no whole, sound frame.
func frameAt(data []byte) (record, int) {
	var r record
	if len(data) < frameHeader || !bytes.Equal(data[:4], frameMark[:]) {
		return r, 0
	}
	n := int(binary.LittleEndian.Uint32(data[4:]))
	if n > maxPayload || len(data) < frameHeader+n {
		return r, 0
	}
	payload := data[frameHeader : frameHeader+n]
	if crc32.Update(crc32.Checksum(data[4:8], castagnoli), castagnoli, payload) != binary.LittleEndian.Uint32(data[8:]) {
		return r, 0
	}
	if json.Unmarshal(payload, &r) != nil {
		return r, 0
	}
	return r, frameHeader + n
}

// hole is a stretch of a journal that is no frame.
type hole struct{ from, to int }

// scan reads all sound frames. Damage with sound frames behind it is a hole; what follows
// the last sound frame is the torn tail of a write that nobody waited for, and end is
// where it begins.
func scan(data []byte) (records []record, holes []hole, end int) {
	for at := 0; at < len(data); {
		r, n := frameAt(data[at:])
		if n > 0 {
			if at > end {
				holes = append(holes, hole{end, at})
			}
			records = append(records, r)
			at += n
			end = at
			continue
		}
		next := bytes.Index(data[at+1:], frameMark[:])
		if next < 0 {
			break
		}
		at += 1 + next
	}
	return records, holes, end
}
