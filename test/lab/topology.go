package lab

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Topology is a containerlab topology file as far as the lab acts on it.
type Topology struct {
	Name  string
	Path  string // of the file, absolute
	Nodes []*NodeSpec
	Links []Link
	// Warnings name what the file asks for and the lab does not do, one line each,
	// with file and line. What would change the network is an error instead.
	Warnings []string
}

// Dir is the folder that relative paths of the topology start from.
func (t *Topology) Dir() string { return filepath.Dir(t.Path) }

// Node returns the node with that name, or nil.
func (t *Topology) Node(name string) *NodeSpec {
	i := slices.IndexFunc(t.Nodes, func(n *NodeSpec) bool { return n.Name == name })
	if i < 0 {
		return nil
	}
	return t.Nodes[i]
}

// Role says what runs on a node.
type Role string

// The roles. An image chooses one by its name, see roleOf.
const (
	RoleCauseway Role = "causeway" // our agent
	RoleFRR      Role = "frr"      // zebra, bgpd and what the daemons file enables
	RoleBIRD     Role = "bird"
	RoleGoBGP    Role = "gobgp"
	RoleHost     Role = "host"   // nothing but what exec and cmd say
	RoleBridge   Role = "bridge" // a switch, named as the node
)

// NodeSpec is one node with defaults, group and kind merged in.
type NodeSpec struct {
	Name    string
	Kind    string // as the file says
	Image   string
	Role    Role
	Group   string
	Cmd     []string
	Exec    []string // lines, run in order when links and routers are up
	Binds   []Bind
	Env     map[string]string
	Labels  map[string]string
	Sysctls map[string]string // "net.ipv4.ip_forward": "1"
	Ports   []string          // shown only; nothing is published
}

// Bind makes Source of this machine appear at Target in the node.
type Bind struct {
	// Source is absolute, or begins with __clabDir__ or __clabNodeDir__, the lab's and
	// the node's own folder.
	Source   string
	Target   string
	ReadOnly bool
	where    string // file:line, for errors
}

// Endpoint is one end of a link.
type Endpoint struct {
	Node      string
	Interface string
	MAC       net.HardwareAddr // nil: the kernel chooses
}

func (e Endpoint) String() string { return e.Node + ":" + e.Interface }

// Link is a veth pair.
type Link struct {
	A, B Endpoint
	MTU  int // bytes
}

// defaultMTU is containerlab's for links that name none.
const defaultMTU = 9500

var (
	labName  = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,29}$`)
	nodeName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9_.-]{0,40}[A-Za-z0-9])?$`)
	ifName   = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}$`)
)

func validLabName(s string) bool { return labName.MatchString(s) }

// roleOf tells from kind and image what a node runs.
func roleOf(kind, image string) (Role, error) {
	switch kind {
	case "bridge":
		return RoleBridge, nil
	case "frr", "bird", "gobgp", "causeway":
		return Role(kind), nil
	case "linux":
		repository := strings.ToLower(image)
		if i := strings.LastIndexByte(repository, ':'); i > strings.LastIndexByte(repository, '/') {
			repository = repository[:i]
		}
		for _, r := range []Role{RoleCauseway, RoleFRR, RoleGoBGP, RoleBIRD} {
			if strings.Contains(repository, string(r)) {
				return r, nil
			}
		}
		return RoleHost, nil
	case "":
		return "", fmt.Errorf("missing; use linux or bridge")
	}
	return "", fmt.Errorf("%q cannot run here; use linux (with an image of frr, bird, gobgp, causeway or a plain host) or bridge", kind)
}

// Load reads a containerlab topology file. Its error joins everything wrong with the
// file, each line beginning with file:line and the field.
func Load(path string) (*Topology, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(abs)
	if err != nil {
		return nil, fmt.Errorf("topology: %w", err)
	}
	return parse(abs, text, os.LookupEnv)
}

// expandEnv replaces ${NAME}, ${NAME:-default}, ${NAME:=default} and $NAME, as
// containerlab does before it reads the YAML. A name without value or default is an
// error that says its line.
func expandEnv(path string, text []byte, lookup func(string) (string, bool)) ([]byte, error) {
	var (
		out []byte
		end int
	)
	group := func(m []int, i int) string {
		if m[2*i] < 0 {
			return ""
		}
		return string(text[m[2*i]:m[2*i+1]])
	}
	for _, m := range envRef.FindAllSubmatchIndex(text, -1) {
		out = append(out, text[end:m[0]]...)
		end = m[1]
		name := group(m, 1) + group(m, 4)
		v, ok := lookup(name)
		switch {
		case ok && v != "":
			out = append(out, v...)
		case m[4] >= 0: // has a default
			out = append(out, group(m, 3)...)
		default:
			line := 1 + strings.Count(string(text[:m[0]]), "\n")
			return nil, fmt.Errorf("%s:%d: environment variable %s is not set; set it or write ${%s:=default}", path, line, name, name)
		}
	}
	return append(out, text[end:]...), nil
}

var envRef = regexp.MustCompile(`\$\{([A-Za-z_][A-Za-z0-9_]*)(:?[-=]([^}]*))?\}|\$([A-Za-z_][A-Za-z0-9_]*)`)

// splitWords splits a command line as a shell would, with quotes and backslashes and
// without any expansion: containerlab runs exec lines without a shell.
func splitWords(line string) ([]string, error) {
	var (
		words  []string
		word   strings.Builder
		inWord bool
		quote  rune
		escape bool
	)
	for _, c := range line {
		switch {
		case escape:
			if quote == '"' && !strings.ContainsRune("\"\\$`", c) {
				word.WriteByte('\\')
			}
			word.WriteRune(c)
			escape = false
		case c == '\\' && quote != '\'':
			escape, inWord = true, true
		case quote != 0:
			if c == quote {
				quote = 0
			} else {
				word.WriteRune(c)
			}
		case c == '\'' || c == '"':
			quote, inWord = c, true
		case c == ' ' || c == '\t' || c == '\n':
			if inWord {
				words = append(words, word.String())
				word.Reset()
				inWord = false
			}
		default:
			word.WriteRune(c)
			inWord = true
		}
	}
	if quote != 0 || escape {
		return nil, fmt.Errorf("a quote is not closed")
	}
	if inWord {
		words = append(words, word.String())
	}
	if len(words) == 0 {
		return nil, fmt.Errorf("empty command")
	}
	return words, nil
}
