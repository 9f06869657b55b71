// Package child owns one life of the speaker process: it starts it with its own user and one
// capability, hands it the token that lets the agent write, forwards its log lines, and when it
// dies keeps the evidence of what it died of.
package child
