package lab

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
)

// reader walks a YAML tree and collects what is wrong, so that one run shows everything.
type reader struct {
	path  string
	errs  []error
	warns []string
}

func (r *reader) at(n *yaml.Node, field string) string {
	return fmt.Sprintf("%s:%d: %s", r.path, n.Line, field)
}

func (r *reader) fail(n *yaml.Node, field, format string, args ...any) {
	r.errs = append(r.errs, fmt.Errorf("%s: %s", r.at(n, field), fmt.Sprintf(format, args...)))
}

func (r *reader) warn(n *yaml.Node, field, format string, args ...any) {
	r.warns = append(r.warns, fmt.Sprintf("%s: %s", r.at(n, field), fmt.Sprintf(format, args...)))
}

// mapping calls each for every key of a mapping; aliases and merge keys are resolved, and
// a key written in the mapping beats a merged one.
func (r *reader) mapping(n *yaml.Node, field string, each func(key, field string, v *yaml.Node)) {
	n = resolve(n)
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return
	}
	if n.Kind != yaml.MappingNode {
		r.fail(n, field, "must be a mapping (key: value)")
		return
	}
	seen := map[string]bool{}
	var merged []*yaml.Node
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], resolve(n.Content[i+1])
		if k.Tag == "!!merge" {
			if v.Kind == yaml.SequenceNode {
				merged = append(merged, v.Content...)
			} else {
				merged = append(merged, v)
			}
			continue
		}
		if seen[k.Value] {
			r.fail(k, field+"."+k.Value, "is there twice")
			continue
		}
		seen[k.Value] = true
		each(k.Value, field+"."+k.Value, v)
	}
	for _, m := range merged {
		r.mapping(m, field, func(key, f string, v *yaml.Node) {
			if !seen[key] {
				seen[key] = true
				each(key, f, v)
			}
		})
	}
}

func resolve(n *yaml.Node) *yaml.Node {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	return n
}

func (r *reader) list(n *yaml.Node, field string) []*yaml.Node {
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return nil
	}
	if n.Kind != yaml.SequenceNode {
		r.fail(n, field, "must be a list")
		return nil
	}
	out := make([]*yaml.Node, len(n.Content))
	for i, c := range n.Content {
		out[i] = resolve(c)
	}
	return out
}

func (r *reader) text(n *yaml.Node, field string) string {
	if n.Kind != yaml.ScalarNode {
		r.fail(n, field, "must be a single value")
		return ""
	}
	if n.Tag == "!!null" {
		return ""
	}
	return n.Value
}

func (r *reader) texts(n *yaml.Node, field string) []string {
	var out []string
	for i, c := range r.list(n, field) {
		out = append(out, r.text(c, fmt.Sprintf("%s[%d]", field, i)))
	}
	return out
}

func (r *reader) textMap(n *yaml.Node, field string) map[string]string {
	out := map[string]string{}
	r.mapping(n, field, func(k, f string, v *yaml.Node) { out[k] = r.text(v, f) })
	return out
}

// definition is one of defaults, a kind, a group or a node as written.
type definition struct {
	kind, image, group  string
	cmd                 []string
	exec, ports         []string
	binds               []Bind
	env, labels, sysctl map[string]string
	noMgmt              bool
	at                  *yaml.Node // of the kind, for errors
	imageAt             *yaml.Node
}

// Keys of containerlab that have no effect on the network itself: the lab says that it
// does not act on them and goes on.
var harmless = map[string]string{
	"ports":             "nothing is published here; the node is reached with `causeway-lab exec`",
	"publish":           "nothing is published here",
	"mgmt-ipv4":         "there is no management network here",
	"mgmt-ipv6":         "there is no management network here",
	"image-pull-policy": "no image is pulled here",
	"restart-policy":    "daemons are not restarted here",
	"auto-remove":       "nodes stay until the lab goes down",
	"cpu":               "not limited here",
	"cpu-set":           "not limited here",
	"memory":            "not limited here",
	"shm-size":          "not limited here",
	"runtime":           "nodes are namespaces here",
	"position":          "only for containerlab's own graph",
	"type":              "has no meaning for the kinds that run here",
	"aliases":           "node names are not resolved here",
	"certificate":       "no certificate is issued here",
	"healthcheck":       "not checked here",
	"cap-add":           "nodes have all capabilities here",
}

// Keys of containerlab that would change what the node is or does.
var unsupported = map[string]string{
	"startup-config": "bind the file instead, for example frr.conf:/etc/frr/frr.conf",
	"entrypoint":     "use cmd",
	"user":           "daemons run as root here and drop rights themselves",
	"env-files":      "use env",
	"stages":         "nodes start together here",
	"wait-for":       "nodes start together here",
	"startup-delay":  "nodes start together here",
	"license":        "licensed nodes cannot run here",
	"config":         "bind the configuration instead",
	"extras":         "not for the kinds that run here",
	"devices":        "not for the kinds that run here",
	"dns":            "name resolution of nodes is not set up here",
	"components":     "not for the kinds that run here",

	"enforce-startup-config":  "bind the file instead",
	"suppress-startup-config": "bind the file instead",
	"sandbox":                 "not for the kinds that run here",
	"kernel":                  "not for the kinds that run here",
	"credentials":             "not for the kinds that run here",
}

func (r *reader) definition(n *yaml.Node, field string) definition {
	d := definition{at: n, imageAt: n}
	r.mapping(n, field, func(key, f string, v *yaml.Node) {
		switch key {
		case "kind":
			d.kind, d.at = r.text(v, f), v
		case "image":
			d.image, d.imageAt = r.text(v, f), v
		case "group":
			d.group = r.text(v, f)
		case "cmd":
			words, err := splitWords(r.text(v, f))
			if err != nil {
				r.fail(v, f, "%v", err)
			}
			d.cmd = words
		case "exec":
			d.exec = r.texts(v, f)
			for i, line := range d.exec {
				if _, err := splitWords(line); err != nil {
					r.fail(v, fmt.Sprintf("%s[%d]", f, i), "%v", err)
				}
			}
		case "binds":
			for i, c := range r.list(v, f) {
				if b, ok := r.bind(c, fmt.Sprintf("%s[%d]", f, i)); ok {
					d.binds = append(d.binds, b)
				}
			}
		case "ports":
			d.ports = r.texts(v, f)
			r.warn(v, f, "ignored: %s", harmless[key])
		case "env":
			d.env = r.textMap(v, f)
		case "labels":
			d.labels = r.textMap(v, f)
		case "sysctls":
			d.sysctl = r.textMap(v, f)
			for k := range d.sysctl {
				if !strings.HasPrefix(k, "net.") {
					r.fail(v, f+"."+k, "only net.* belongs to a node; set others on the machine")
				}
			}
		case "network-mode":
			if mode := r.text(v, f); mode == "none" {
				d.noMgmt = true
			} else {
				r.fail(v, f, "%q cannot be had here; leave it out or use none", mode)
			}
		default:
			if why, ok := harmless[key]; ok {
				r.warn(v, f, "ignored: %s", why)
			} else if why, ok := unsupported[key]; ok {
				r.fail(v, f, "not supported: %s", why)
			} else {
				r.fail(v, f, "is not a key of a containerlab node")
			}
		}
	})
	return d
}

func (r *reader) bind(n *yaml.Node, field string) (Bind, bool) {
	s := r.text(n, field)
	b := Bind{where: fmt.Sprintf("%s:%d", r.path, n.Line)}
	parts := strings.Split(s, ":")
	if len(parts) < 2 || len(parts) > 3 || parts[0] == "" {
		r.fail(n, field, "%q must be source:target or source:target:ro", s)
		return b, false
	}
	b.Source, b.Target = parts[0], path.Clean(parts[1])
	if !path.IsAbs(b.Target) || b.Target == "/" {
		r.fail(n, field, "target %q must be an absolute path below /", parts[1])
		return b, false
	}
	top, _, _ := strings.Cut(b.Target[1:], "/")
	if slices.Contains([]string{"proc", "sys", "dev", "usr", "bin", "sbin", "lib", "lib64", "boot"}, top) {
		r.fail(n, field, "target %q: /%s is the machine's own here; use a path below /etc, /opt, /run or /var", b.Target, top)
		return b, false
	}
	if len(parts) == 3 {
		for _, opt := range strings.Split(parts[2], ",") {
			switch opt {
			case "ro":
				b.ReadOnly = true
			case "rw", "z", "Z":
			default:
				r.fail(n, field, "option %q is not supported; use ro or rw", opt)
				return b, false
			}
		}
	}
	switch {
	case strings.HasPrefix(b.Source, clabDir), strings.HasPrefix(b.Source, clabNodeDir):
	case b.Source == "~" || strings.HasPrefix(b.Source, "~/"):
		home, err := os.UserHomeDir()
		if err != nil {
			r.fail(n, field, "source %q: %v", b.Source, err)
			return b, false
		}
		b.Source = filepath.Join(home, b.Source[1:])
	case !filepath.IsAbs(b.Source):
		b.Source = filepath.Join(filepath.Dir(r.path), b.Source)
	default:
		b.Source = filepath.Clean(b.Source)
	}
	return b, true
}

// The magic variables of containerlab.
const (
	clabDir      = "__clabDir__"
	clabNodeDir  = "__clabNodeDir__"
	clabNodeName = "__clabNodeName__"
)

func parse(file string, text []byte, lookup func(string) (string, bool)) (*Topology, error) {
	text, err := expandEnv(file, text, lookup)
	if err != nil {
		return nil, err
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if len(doc.Content) == 0 {
		return nil, fmt.Errorf("%s:1: the file is empty; it needs name and topology.nodes", file)
	}
	r := &reader{path: file}
	root := resolve(doc.Content[0])
	t := &Topology{Path: file}
	var topology *yaml.Node
	r.mapping(root, "", func(key, f string, v *yaml.Node) {
		f = strings.TrimPrefix(f, ".")
		switch key {
		case "name":
			t.Name = r.text(v, f)
			if !validLabName(t.Name) {
				r.fail(v, f, "%q must be lower-case letters, digits and '-', 30 at most", t.Name)
			}
		case "topology":
			topology = v
		case "mgmt", "prefix", "settings", "debug":
			r.warn(v, f, "ignored: it concerns containerlab's own containers and management network")
		default:
			r.fail(v, f, "is not a key of a topology file")
		}
	})
	if t.Name == "" && len(r.errs) == 0 {
		r.fail(root, "name", "missing; it tells labs apart")
	}
	if topology == nil {
		r.fail(root, "topology", "missing")
	} else {
		r.topology(t, topology)
	}
	if err := errors.Join(r.errs...); err != nil {
		return nil, err
	}
	t.Warnings = r.warns
	return t, nil
}

func (r *reader) topology(t *Topology, n *yaml.Node) {
	var (
		defaults      definition
		kinds, groups = map[string]definition{}, map[string]definition{}
		names         []string
		nodes         = map[string]definition{}
		links         []*yaml.Node
	)
	r.mapping(n, "topology", func(key, f string, v *yaml.Node) {
		switch key {
		case "defaults":
			defaults = r.definition(v, f)
		case "kinds":
			r.mapping(v, f, func(k, f string, v *yaml.Node) { kinds[k] = r.definition(v, f) })
		case "groups":
			r.mapping(v, f, func(k, f string, v *yaml.Node) { groups[k] = r.definition(v, f) })
		case "nodes":
			r.mapping(v, f, func(k, f string, v *yaml.Node) {
				if !nodeName.MatchString(k) {
					r.fail(v, f, "a node's name is made of letters, digits, '-', '_' and '.', 42 at most")
				}
				nodes[k] = r.definition(v, f)
				names = append(names, k)
			})
		case "links":
			links = r.list(v, f)
		default:
			r.fail(v, f, "is not supported; use defaults, kinds, groups, nodes and links")
		}
	})
	if len(names) == 0 {
		r.fail(n, "topology.nodes", "missing; a topology needs at least one node")
	}
	for _, name := range names {
		d := nodes[name]
		g := groups[first(d.group, defaults.group)]
		kind := first(d.kind, g.kind, defaults.kind)
		r.node(t, name, kind, []definition{defaults, kinds[kind], g, d})
	}
	r.links(t, links, nodes)
}

func first(ss ...string) string {
	for _, s := range ss {
		if s != "" {
			return s
		}
	}
	return ""
}

// node merges the layers, weakest first, as containerlab does: values are replaced, maps
// merged, exec and binds added up.
func (r *reader) node(t *Topology, name, kind string, layers []definition) {
	s := &NodeSpec{Name: name, Kind: kind, Env: map[string]string{}, Labels: map[string]string{}, Sysctls: map[string]string{}}
	own := layers[len(layers)-1]
	expand := func(v string) string { return strings.ReplaceAll(v, clabNodeName, name) }
	for _, d := range layers {
		s.Image = first(d.image, s.Image)
		s.Group = first(d.group, s.Group)
		if d.cmd != nil {
			s.Cmd = nil
			for _, w := range d.cmd {
				s.Cmd = append(s.Cmd, expand(w))
			}
		}
		if d.ports != nil {
			s.Ports = d.ports
		}
		for _, line := range d.exec {
			s.Exec = append(s.Exec, expand(line))
		}
		for _, b := range d.binds {
			b.Source, b.Target = expand(b.Source), expand(b.Target)
			// The stronger layer's bind of a target replaces the weaker one's.
			s.Binds = slices.DeleteFunc(s.Binds, func(o Bind) bool { return o.Target == b.Target })
			s.Binds = append(s.Binds, b)
		}
		for k, v := range d.env {
			s.Env[k] = expand(v)
		}
		maps.Copy(s.Labels, d.labels)
		maps.Copy(s.Sysctls, d.sysctl)
	}
	field := "topology.nodes." + name
	role, err := roleOf(kind, s.Image)
	if err != nil {
		r.fail(own.at, field+".kind", "%v", err)
		return
	}
	s.Role = role
	switch {
	case kind == "linux" && s.Image == "":
		r.fail(own.imageAt, field+".image", "missing; the image names what runs on the node")
	case kind != "linux" && kind != "bridge":
		r.warn(own.at, field+".kind", "%s is known to causeway-lab only; containerlab itself wants linux and an image", kind)
	}
	if role == RoleFRR && len(s.Cmd) > 0 {
		r.fail(own.at, field+".cmd", "not for FRR nodes: /etc/frr/daemons says what runs")
	}
	if role == RoleBridge {
		if own.cmd != nil || own.exec != nil || own.binds != nil {
			r.fail(own.at, field, "a bridge takes no cmd, exec or binds")
		}
		s.Cmd, s.Exec, s.Binds = nil, nil, nil // those of defaults are meant for others
	}
	if role == RoleBridge && !ifName.MatchString(name) {
		r.fail(own.at, field, "a bridge's name is that of a link: 15 characters at most")
	}
	t.Nodes = append(t.Nodes, s)
}

func (r *reader) links(t *Topology, links []*yaml.Node, defs map[string]definition) {
	used := map[string]bool{}
	for i, n := range links {
		field := fmt.Sprintf("topology.links[%d]", i)
		l := Link{MTU: defaultMTU}
		var ends []Endpoint
		r.mapping(n, field, func(key, f string, v *yaml.Node) {
			switch key {
			case "endpoints":
				for j, e := range r.list(v, f) {
					ends = append(ends, r.endpoint(e, fmt.Sprintf("%s[%d]", f, j)))
				}
			case "mtu":
				mtu, err := strconv.Atoi(r.text(v, f))
				if err != nil || mtu < 1280 || mtu > 65535 {
					r.fail(v, f, "%q must be a number from 1280 (what IPv6 needs) to 65535", v.Value)
				}
				l.MTU = mtu
			case "type":
				if typ := r.text(v, f); typ != "veth" {
					r.fail(v, f, "%q is not supported; only veth", typ)
				}
			case "labels", "vars":
				r.warn(v, f, "ignored: the lab does not use them")
			default:
				r.fail(v, f, "is not supported; use endpoints, mtu and type: veth")
			}
		})
		if len(ends) != 2 {
			r.fail(n, field+".endpoints", "has %d; a link has two, [\"a:eth1\", \"b:eth1\"]", len(ends))
			continue
		}
		l.A, l.B = ends[0], ends[1]
		for _, e := range ends {
			d, ok := defs[e.Node]
			switch {
			case e.Node == "":
				continue // said already
			case !ok && (e.Node == "host" || e.Node == "mgmt-net" || e.Node == "macvlan"):
				r.fail(n, field+".endpoints", "%s reaches outside the lab, which is not supported", e)
			case !ok:
				r.fail(n, field+".endpoints", "%s: there is no node %q", e, e.Node)
			case used[e.String()]:
				r.fail(n, field+".endpoints", "%s is in two links", e)
			case e.Interface == "eth0" && !d.noMgmt && d.kind != "bridge":
				r.fail(n, field+".endpoints", "%s is containerlab's management interface; begin with eth1 or set network-mode: none", e)
			}
			used[e.String()] = true
		}
		t.Links = append(t.Links, l)
	}
}

func (r *reader) endpoint(n *yaml.Node, field string) Endpoint {
	var e Endpoint
	if n.Kind == yaml.MappingNode {
		r.mapping(n, field, func(key, f string, v *yaml.Node) {
			switch key {
			case "node":
				e.Node = r.text(v, f)
			case "interface":
				e.Interface = r.text(v, f)
			case "mac":
				mac, err := net.ParseMAC(r.text(v, f))
				if err != nil {
					r.fail(v, f, "%q must be a MAC address", v.Value)
				}
				e.MAC = mac
			default:
				r.fail(v, f, "is not supported; use node, interface and mac")
			}
		})
	} else {
		node, iface, ok := strings.Cut(r.text(n, field), ":")
		if !ok {
			r.fail(n, field, "%q must be node:interface", n.Value)
			return e
		}
		e.Node, e.Interface = node, iface
	}
	if !ifName.MatchString(e.Interface) {
		r.fail(n, field, "interface %q must be 1 to 15 letters, digits, '-', '_' or '.'", e.Interface)
	}
	return e
}
