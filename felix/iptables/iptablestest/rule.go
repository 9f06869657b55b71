package iptablestest

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/causeway-net/causeway/felix/iptables"
)

// extension is a match or a target: its options, and how many arguments each takes.
type extension struct {
	options map[string]int
	tables  []iptables.Table // nil: all
}

// errKernel is the kernel's refusal of a rule that the programs let pass.
var errKernel = errors.New("RULE_APPEND failed (Invalid argument)")

var ports = map[string]int{"--sport": 1, "--dport": 1}

var matches = map[string]extension{
	"addrtype":  {options: map[string]int{"--src-type": 1, "--dst-type": 1, "--limit-iface-in": 0, "--limit-iface-out": 0}},
	"comment":   {options: map[string]int{"--comment": 1}},
	"conntrack": {options: map[string]int{"--ctstate": 1, "--ctorigdst": 1, "--ctorigdstport": 1, "--ctdir": 1}},
	"connmark":  {options: map[string]int{"--mark": 1}},
	"icmp":      {options: map[string]int{"--icmp-type": 1}},
	"icmp6":     {options: map[string]int{"--icmpv6-type": 1}},
	"mark":      {options: map[string]int{"--mark": 1}},
	"multiport": {options: map[string]int{"--sports": 1, "--dports": 1, "--ports": 1}},
	"rpfilter": {options: map[string]int{"--invert": 0, "--loose": 0, "--validmark": 0, "--accept-local": 0},
		tables: []iptables.Table{iptables.Raw, iptables.Mangle}},
	"sctp": {options: ports},
	"set":  {options: map[string]int{"--match-set": 2}},
	"tcp":  {options: map[string]int{"--sport": 1, "--dport": 1, "--tcp-flags": 2, "--syn": 0}},
	"udp":  {options: ports},
}

var targets = map[string]extension{
	"ACCEPT": {}, "RETURN": {},
	"DROP":       {tables: []iptables.Table{iptables.Raw, iptables.Mangle, iptables.Filter}},
	"REJECT":     {options: map[string]int{"--reject-with": 1}, tables: []iptables.Table{iptables.Filter}},
	"MARK":       {options: map[string]int{"--set-mark": 1, "--set-xmark": 1, "--and-mark": 1, "--or-mark": 1}},
	"CONNMARK":   {options: map[string]int{"--set-mark": 1, "--set-xmark": 1, "--save-mark": 0, "--restore-mark": 0, "--mask": 1, "--nfmask": 1, "--ctmask": 1}},
	"MASQUERADE": {options: map[string]int{"--random-fully": 0, "--to-ports": 1}, tables: []iptables.Table{iptables.NAT}},
	"SNAT":       {options: map[string]int{"--to-source": 1, "--random-fully": 0}, tables: []iptables.Table{iptables.NAT}},
	"DNAT":       {options: map[string]int{"--to-destination": 1}, tables: []iptables.Table{iptables.NAT}},
	"NOTRACK":    {tables: []iptables.Table{iptables.Raw}},
	"CT":         {options: map[string]int{"--notrack": 0, "--zone": 1}, tables: []iptables.Table{iptables.Raw}},
	"NFLOG":      {options: map[string]int{"--nflog-group": 1, "--nflog-prefix": 1, "--nflog-size": 1}},
	"LOG":        {options: map[string]int{"--log-prefix": 1, "--log-level": 1}},
	"TCPMSS":     {options: map[string]int{"--clamp-mss-to-pmtu": 0, "--set-mss": 1}, tables: []iptables.Table{iptables.Mangle, iptables.Filter}},
}

var protocols = []string{"tcp", "udp", "icmp", "ipv6-icmp", "icmpv6", "sctp", "udplite", "ipencap", "all"}

// parse reads a rule's arguments and prints them as iptables-save does: the options of
// the IP header first, then the matches in order, then the target.
func (k *Kernel) parse(name iptables.Table, t *table, args []string) (*rule, error) {
	header := map[string]string{}
	var tail []string
	r := &rule{}
	var loaded []extension // innermost last
	negated := false
	take := func(i, n int) ([]string, error) {
		if i+n >= len(args) {
			return nil, fmt.Errorf("option \"%s\" requires an argument", args[i])
		}
		return args[i+1 : i+1+n], nil
	}
	not := func(s string) string {
		if negated {
			negated = false
			return "! " + s
		}
		return s
	}
	for i := 0; i < len(args); i++ {
		a := args[i]
		switch a {
		case "!":
			if negated {
				return nil, errors.New("multiple consecutive ! not allowed")
			}
			negated = true
			continue
		case "-s", "-d", "-i", "-o", "-p":
			v, err := take(i, 1)
			if err != nil {
				return nil, err
			}
			text, err := k.headerOption(a, v[0])
			if err != nil {
				return nil, err
			}
			if header[a] != "" {
				return nil, fmt.Errorf("multiple %s flags not allowed", a)
			}
			header[a] = not(a + " " + text)
			if a == "-p" {
				loaded = append(loaded, matches[strings.TrimPrefix(v[0], "ipv6-")])
			}
			i++
		case "-m":
			v, err := take(i, 1)
			if err != nil {
				return nil, err
			}
			m, ok := matches[v[0]]
			if !ok {
				return nil, fmt.Errorf("Couldn't load match `%s':No such file or directory", v[0])
			}
			if m.tables != nil && !slices.Contains(m.tables, name) {
				return nil, errKernel
			}
			loaded = append(loaded, m)
			tail = append(tail, "-m", v[0])
			i++
		case "-j", "-g":
			v, err := take(i, 1)
			if err != nil {
				return nil, err
			}
			if r.target != "" {
				return nil, errors.New("multiple -j flags not allowed")
			}
			r.target, r.isGoto = v[0], a == "-g"
			x, ok := targets[v[0]]
			switch {
			case t.chains[v[0]] != nil && !slices.Contains(builtin[name], v[0]):
			case !ok || r.isGoto:
				return nil, fmt.Errorf("Chain '%s' does not exist", v[0])
			case x.tables != nil && !slices.Contains(x.tables, name):
				return nil, errKernel
			default:
				loaded = append(loaded, x)
			}
			tail = append(tail, a, v[0])
			i++
		default:
			arity := -1
			for _, x := range loaded {
				if n, ok := x.options[a]; ok {
					arity = n
				}
			}
			if arity < 0 {
				return nil, fmt.Errorf("unknown option \"%s\"", a)
			}
			v, err := take(i, arity)
			if err != nil {
				return nil, err
			}
			if negated {
				tail = append(tail, "!")
				negated = false
			}
			if a == "--comment" && len(v[0]) > 255 {
				return nil, errors.New("comment too long")
			}
			if a == "--set-mark" && strings.HasPrefix(args[max(i-1, 0)], "MARK") {
				a = "--set-xmark"
				value, mask, ok := strings.Cut(v[0], "/")
				if !ok {
					mask = "0xffffffff"
				}
				x, err1 := strconv.ParseUint(value, 0, 32)
				y, err2 := strconv.ParseUint(mask, 0, 32)
				if err1 != nil || err2 != nil {
					return nil, fmt.Errorf("MARK: bad value \"%s\"", v[0])
				}
				v = []string{fmt.Sprintf("0x%x/0x%x", x, y)}
			}
			tail = append(tail, a)
			for _, s := range v {
				tail = append(tail, quoted(a, s))
			}
			i += arity
		}
	}
	if negated {
		return nil, errors.New("nothing after !")
	}
	var out []string
	for _, o := range []string{"-s", "-d", "-i", "-o", "-p"} {
		if header[o] != "" {
			out = append(out, header[o])
		}
	}
	r.spec = strings.Join(append(out, tail...), " ")
	return r, nil
}

// headerOption checks one value and prints it in the kernel's form.
func (k *Kernel) headerOption(option, v string) (string, error) {
	switch option {
	case "-s", "-d":
		if p, err := netip.ParsePrefix(v); err == nil && p.Addr().Is4() == (k.family == iptables.IPv4) {
			return p.Masked().String(), nil
		}
		if a, err := netip.ParseAddr(v); err == nil && a.Is4() == (k.family == iptables.IPv4) {
			return netip.PrefixFrom(a, a.BitLen()).String(), nil
		}
		return "", fmt.Errorf("host/network `%s' not found", v)
	case "-i", "-o":
		if len(v) > 15 {
			return "", fmt.Errorf("interface name `%s' must be shorter than 16 characters", v)
		}
	case "-p":
		if v == "4" {
			v = "ipencap"
		}
		if !slices.Contains(protocols, v) {
			return "", fmt.Errorf("unknown protocol \"%s\" specified", v)
		}
	}
	return v, nil
}

// quoted prints a value as iptables-save does; comments always stand in quotes.
func quoted(option, v string) string {
	if option != "--comment" && !strings.ContainsAny(v, " \"'\\$`;&|<>(){}*?#~") {
		return v
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(v) + `"`
}

// words splits a line into arguments as iptables-restore does.
func words(l string) ([]string, error) {
	var (
		out              []string
		b                strings.Builder
		in, escape, some bool
	)
	flush := func() {
		if some {
			out = append(out, b.String())
		}
		b.Reset()
		some = false
	}
	for _, c := range []byte(l) {
		switch {
		case escape:
			b.WriteByte(c)
			escape, some = false, true
		case in && c == '\\':
			escape = true
		case c == '"':
			in = !in
		case !in && (c == ' ' || c == '\t'):
			flush()
		default:
			b.WriteByte(c)
			some = true
			if b.Len() > 1023 {
				return nil, errors.New("Parameter too long!")
			}
		}
	}
	flush()
	if in {
		return nil, errors.New("unbalanced quotes")
	}
	if len(out) == 0 || len(out) > 254 {
		return nil, errors.New("too many arguments")
	}
	return out, nil
}
