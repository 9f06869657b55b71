package child

import (
	"net/netip"
	"syscall"
	"time"
)

// Death says how and why one life of the speaker ended.
type Death struct {
	// Err is never nil: "speaker: panic: ...", "speaker: killed by SIGKILL",
	// "speaker: stopped" when Stop ended it.
	Err error
	// Signal ended the process; 0 when it exited by itself. A Go panic exits with code 2.
	Signal syscall.Signal
	// Killed is set when somebody ended the process: a signal that was sent, the kernel's
	// OOM killer, Stop. No peer is to blame then: Suspect and LastSpeakers are empty.
	Killed bool
	// Stopped is set when that somebody was Stop.
	Stopped bool
	// Trace holds the panic and the stack of the goroutine that died; empty without a crash.
	Trace string
	// Suspect is the peer whose bytes the process most probably died of; the zero Addr when
	// nothing points at one peer.
	Suspect netip.Addr
	// LastSpeakers lists the peers whose TCP connections the process held when it crashed:
	// Suspect first, the others by how recently they sent something.
	LastSpeakers []Heard
	// At is when the death was noticed.
	At time.Time
}

// Heard is one peer and how long before the crash its last byte came.
type Heard struct {
	Addr netip.Addr
	Ago  time.Duration
}
