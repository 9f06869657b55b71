// Package gobgp brings a running GoBGP v3 speaker to the desired bgp.Speaker over GoBGP's own
// gRPC API, and tells the rest of the agent what the speaker learned. It owns the lives of the
// speaker: it starts one, and when it dies it keeps every learned route, starts the next one so
// that the peers keep theirs (RFC 4724), and holds back a peer whose return killed it again.
//
// One life goes so: watch first, then StartBgp, policies, own paths, and peers. After a death
// all peers carry the restart bits and are added together behind a gate (gate.go), the suspect
// alone after them (suspects.go); when every one has sent its End-of-RIB, or had its time, the
// collected table replaces the old one.
//
// Traps of GoBGP v3.37.0 that shape this code: a policy keeps pointing at the defined sets it
// was made with; an empty neighbor set matches everybody; UpdatePeer silently ignores a changed
// route reflector client and forgets, where it does not bounce the session, that the peer can
// restart gracefully; DeletePeer leaves the listener's MD5 key behind; any change of a
// description bounces the session.
package gobgp
