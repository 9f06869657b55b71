package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

const frrDir = "/usr/lib/frr"

// frrKnown are FRR's daemons in starting order, zebra first.
var frrKnown = []string{"zebra", "staticd", "bfdd", "bgpd", "ripd", "ripngd", "ospfd", "ospf6d", "isisd", "babeld", "pimd",
	"ldpd", "nhrpd", "eigrpd", "pbrd", "fabricd", "vrrpd", "pathd"}

// frrDaemons reads what the node binds at /etc/frr/daemons, as FRR's own init script
// does: zebra always runs (staticd too, unless staticd=no, which the script does not
// have), others as the file says, with their options.
func (n *Node) frrDaemons() ([]*Daemon, error) {
	source := n.bindOf("/etc/frr/daemons")
	if source == "" || strings.HasPrefix(source, "__clab") {
		return nil, errors.New("FRR needs its list of daemons: bind a file to /etc/frr/daemons")
	}
	text, err := os.ReadFile(source)
	if err != nil {
		return nil, err
	}
	vars, err := parseFRRDaemons(string(text))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", source, err)
	}
	var out []*Daemon
	for _, name := range frrKnown {
		on := vars[name]
		if on == "" && (name == "zebra" || name == "staticd") {
			on = "yes"
		}
		if on != "yes" && on != "1" {
			continue
		}
		d := &Daemon{Name: name, node: n, argv: []string{filepath.Join(frrDir, name), "--log", "stdout", "--log-level", "informational"},
			ready: []string{"/run/frr/" + name + ".vty"}}
		d.argv = append(d.argv, strings.Fields(vars["frr_global_options"])...)
		d.argv = append(d.argv, strings.Fields(vars[name+"_options"])...)
		if name == "zebra" {
			d.ready = append(d.ready, "/run/frr/zserv.api")
		} else {
			d.after = []string{"zebra"}
		}
		if vars["vtysh_enable"] != "no" {
			d.configure = []string{"vtysh", "-b", "-d", name}
		}
		out = append(out, d)
	}
	return out, nil
}

// parseFRRDaemons reads the assignments of an FRR daemons file.
func parseFRRDaemons(text string) (map[string]string, error) {
	vars := map[string]string{}
	line := 0
	for s := range strings.Lines(text) {
		line++
		s = strings.TrimSpace(s)
		if s == "" || s[0] == '#' {
			continue
		}
		name, value, ok := strings.Cut(s, "=")
		if !ok || strings.ContainsAny(name, " \t") {
			return nil, fmt.Errorf("line %d: %q is not name=value", line, s)
		}
		words, err := splitWords(value + " #")
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", line, err)
		}
		if value = words[0]; strings.HasPrefix(value, "#") {
			value = ""
		}
		base, option := strings.CutSuffix(name, "_options")
		known := name == "vtysh_enable" || name == "frr_global_options" || name == "frr_profile"
		for _, d := range frrKnown {
			known = known || d == base
		}
		switch {
		case name == "frr_profile":
			return nil, fmt.Errorf("line %d: frr_profile is not supported here: write -F %s into the daemons' options", line, value)
		case known, value == "no", option, name == "MAX_FDS", name == "watchfrr_enable":
		default:
			return nil, fmt.Errorf("line %d: %s=%s is not supported here", line, name, value)
		}
		vars[name] = value
	}
	return vars, nil
}
