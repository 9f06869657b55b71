package iptables

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unicode/utf8"
)

// Rule is one rule, in the arguments of iptables-restore. Each element is one argument
// and needs no quoting.
type Rule struct {
	Match   []string // {"-i", "cali+", "-m", "rpfilter", "--invert"}; empty matches every packet
	Action  Action   // empty: the rule only counts
	Comment string   // for who reads iptables-save; cut to what iptables takes. Optional
}

// Action is what happens to a packet that matches: "-j" or "-g", a target and its options.
type Action []string

// Target is the action of a target extension, such as Target("MARK", "--set-xmark", "1/1").
func Target(name string, options ...string) Action {
	return append(Action{"-j", name}, options...)
}

// Jump calls a chain; packets that reach its end come back.
func Jump(chain string) Action { return Action{"-j", chain} }

// Goto goes on in a chain; packets that reach its end return to the caller of this one.
func Goto(chain string) Action { return Action{"-g", chain} }

// Accept ends the table's verdict: the packet goes on.
func Accept() Action { return Action{"-j", "ACCEPT"} }

// Drop ends the packet.
func Drop() Action { return Action{"-j", "DROP"} }

// Return goes back to the calling chain.
func Return() Action { return Action{"-j", "RETURN"} }

// Source matches packets from p.
func Source(p netip.Prefix) []string { return []string{"-s", p.Masked().String()} }

// Destination matches packets to p.
func Destination(p netip.Prefix) []string { return []string{"-d", p.Masked().String()} }

// What iptables-restore takes (iptables/xshared.c, iptables-restore.c and
// include/uapi/linux/netfilter/xt_comment.h). A longer line would be cut in the middle
// and read as two, so nothing near the limits is ever handed over.
const (
	maxArgument  = 1000  // bytes; param_buffer is 1024
	maxArguments = 200   // argv is 255, less what we add
	maxLine      = 10000 // bytes; the line buffer is 10240
	maxComment   = 255   // bytes; XT_MAX_COMMENT_LEN less its end
)

const (
	markPrefix = Prefix + ":"
	digestLen  = 16
)

// line is a Rule as text.
type line struct {
	digest string // of the rule's text; together with markPrefix the mark
	text   string // the rule's arguments without the mark, quoted, separated by blanks
	before int    // how many bytes of text stand before the mark: what the rule matches
	callee string // the chain of ours that the rule goes to, or empty
}

// spec is the rule with its mark, as iptables-restore reads it behind "-A chain".
//
// The mark stands behind all that the rule matches. To the kernel a comment is a match, too,
// asked in its turn, and under iptables-nft it costs more than all that is native to nftables:
// only packets that the rule is about are to pay for it.
func (l line) spec() string {
	mark := "-m comment --comment " + markPrefix + l.digest
	match, rest := l.text[:l.before], strings.TrimPrefix(l.text[l.before:], " ")
	return strings.TrimSpace(match + " " + mark + " " + rest)
}

// compile makes the text of a rule.
func compile(r Rule) (line, error) {
	var args []string
	if c := comment(r.Comment); c != "" {
		args = append(args, "-m", "comment", "--comment", c)
	}
	// The kernel's programs print options of the IP header first; the order means
	// nothing to them, and a text that equals theirs is recognised without asking.
	args = slices.Concat(r.Match, args, r.Action)
	if len(args) > maxArguments {
		return line{}, fmt.Errorf("%d arguments; iptables takes at most %d", len(args), maxArguments)
	}
	for _, a := range args {
		switch {
		case a == "":
			return line{}, fmt.Errorf("an argument of %q is empty", args)
		case len(a) > maxArgument:
			return line{}, fmt.Errorf("argument %.40q... has %d bytes; iptables takes at most %d", a, len(a), maxArgument)
		case strings.ContainsFunc(a, func(c rune) bool { return c < ' ' || c == 0x7f }):
			return line{}, fmt.Errorf("argument %q holds a control character", a)
		}
	}
	l := line{text: join(args), before: len(join(r.Match)), callee: callee(args)}
	if len(l.text) > maxLine {
		return line{}, fmt.Errorf("the rule has %d bytes; iptables takes at most %d", len(l.text), maxLine)
	}
	sum := sha256.Sum256([]byte(l.text))
	l.digest = base64.RawURLEncoding.EncodeToString(sum[:])[:digestLen]
	return l, nil
}

// comment makes s fit for iptables: no control characters, valid UTF-8, not too long, and
// not to be taken for a mark.
func comment(s string) string {
	s = strings.Map(func(c rune) rune {
		if c < ' ' || c == 0x7f || c == utf8.RuneError {
			return '_'
		}
		return c
	}, s)
	if _, ok := mark(s); ok {
		s = "_" + s
	}
	for len(s) > maxComment {
		_, n := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-n]
	}
	return s
}

// mark returns the digest in a comment that marks a rule as ours.
func mark(comment string) (digest string, ok bool) {
	d, ok := strings.CutPrefix(comment, markPrefix)
	if !ok || len(d) != digestLen {
		return "", false
	}
	for _, c := range []byte(d) {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_') {
			return "", false
		}
	}
	return d, true
}

// callee returns the chain of ours that a rule's arguments go to.
func callee(args []string) string {
	for i := len(args) - 2; i >= 0; i-- {
		switch args[i] {
		case "-j", "-g", "--jump", "--goto":
			if ours(args[i+1]) {
				return args[i+1]
			}
			return ""
		}
	}
	return ""
}

// ours reports whether a chain's name makes it ours.
func ours(chain string) bool { return strings.HasPrefix(chain, Prefix) }

func join(args []string) string {
	var b strings.Builder
	for i, a := range args {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(quote(a))
	}
	return b.String()
}

// quote makes one argument of a as iptables-restore reads it (add_param_to_argv in
// iptables/xshared.c): in double quotes a backslash keeps the next byte.
func quote(a string) string {
	plain := func(c byte) bool {
		return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("_-./:,+=@%!&^~[]", c) >= 0
	}
	bare := a != ""
	for i := 0; i < len(a) && bare; i++ {
		bare = plain(a[i])
	}
	if bare {
		return a
	}
	var b strings.Builder
	b.WriteByte('"')
	for i := range len(a) {
		if a[i] == '"' || a[i] == '\\' {
			b.WriteByte('\\')
		}
		b.WriteByte(a[i])
	}
	b.WriteByte('"')
	return b.String()
}

// split is the reverse of join, for what iptables-save prints.
func split(text string) []string {
	var (
		args            []string
		b               strings.Builder
		quoted, escaped bool
		some            bool
	)
	for i := range len(text) {
		c := text[i]
		switch {
		case escaped:
			b.WriteByte(c)
			escaped = false
		case quoted && c == '\\':
			escaped = true
		case c == '"':
			quoted, some = !quoted, true
		case !quoted && (c == ' ' || c == '\t'):
			if some {
				args = append(args, b.String())
				b.Reset()
				some = false
			}
		default:
			b.WriteByte(c)
			some = true
		}
	}
	if some {
		args = append(args, b.String())
	}
	return args
}
