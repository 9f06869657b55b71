// Package child owns one life of the speaker process: it starts it with its own user, one
// capability and no file system, hands it the token that lets the agent write, forwards its
// log lines, and when it dies keeps the evidence of what it died of.
//
// # What the child may do
//
// The rights are taken away before the child's first instruction, on a thread that exists for
// this alone: own uid and gid, no supplementary groups, CAP_NET_BIND_SERVICE as the only
// effective, permitted, ambient and bounding capability, no_new_privs, and a Landlock domain
// (Linux 5.13) in which nothing can be opened but the program itself and nothing created but a
// socket in the child's own directory. The agent needs CAP_SETUID, CAP_SETGID, CAP_SETPCAP,
// CAP_NET_BIND_SERVICE, CAP_CHOWN, CAP_FOWNER and CAP_DAC_OVERRIDE (for the child's directory)
// for it, and CAP_KILL to end a child that hangs.
//
// # How the two hold on to each other
//
// One socket pair carries the handover (token, options), "ready" and "stop". When the agent
// dies, its end closes and the child exits without a word to its peers, so that they keep their
// routes (RFC 4724); PR_SET_PDEATHSIG is there for a child that no longer reads.
//
// # Evidence of death
//
// Two witnesses say whose bytes killed the child. The child labels the goroutines that work on
// a peer's messages with that peer, and Go prints the labels of the dying goroutine: that is
// exact, but only where a goroutine is labelled. For the rest, the crash report goes through a
// pipe that holds a single write, so that the dying child blocks in its report with its sockets
// still open until the agent has asked the kernel when each of them last received data.
package child
