package client

import (
	"bytes"
	"encoding/json"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/causeway-net/causeway/cni-plugin/wire"
)

// run executes the plugin with an environment and returns what it did.
func run(env map[string]string, stdin string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = Run(Config{Getenv: func(k string) string { return env[k] }, Stdin: strings.NewReader(stdin), Stdout: &out, Stderr: &errs, About: "the plugin"})
	return code, out.String(), errs.String()
}

func TestAlone(t *testing.T) {
	dir := t.TempDir()
	socket := `"socket":"` + filepath.Join(dir, "cni.sock") + `"`
	for name, tt := range map[string]struct {
		env   map[string]string
		stdin string
		code  uint
		says  string
	}{
		"unknown command":   {map[string]string{"CNI_COMMAND": "EAT"}, "", wire.CodeInvalidEnvironment, "want ADD, DEL"},
		"no JSON":           {map[string]string{"CNI_COMMAND": "ADD"}, "{", wire.CodeDecoding, "not a JSON object"},
		"relative socket":   {map[string]string{"CNI_COMMAND": "ADD"}, `{"socket":"cni.sock"}`, wire.CodeInvalidConfig, `"cni.sock": want an absolute path`},
		"long socket":       {map[string]string{"CNI_COMMAND": "ADD"}, `{"socket":"/` + strings.Repeat("x", 107) + `"}`, wire.CodeInvalidConfig, "at most 107 bytes"},
		"ADD without netns": {map[string]string{"CNI_COMMAND": "ADD"}, `{` + socket + `}`, wire.CodeInvalidEnvironment, "CNI_NETNS is not set"},
		"CHECK, netns gone": {map[string]string{"CNI_COMMAND": "CHECK", "CNI_NETNS": "/nowhere"}, `{` + socket + `}`, wire.CodeInvalidNetNS, "/nowhere"},
		"ADD, no agent":     {map[string]string{"CNI_COMMAND": "ADD", "CNI_NETNS": "/proc/self/ns/net"}, `{"cniVersion":"1.0.0",` + socket + `}`, wire.CodeTryAgain, "does not run"},
		"DEL, no agent":     {map[string]string{"CNI_COMMAND": "DEL", "CNI_NETNS": "/nowhere"}, `{` + socket + `}`, wire.CodeTryAgain, "does not run"},
		"GC, no agent":      {map[string]string{"CNI_COMMAND": "GC"}, `{` + socket + `}`, wire.CodeTryAgain, "does not run"},
		"STATUS, no agent":  {map[string]string{"CNI_COMMAND": "STATUS"}, `{` + socket + `}`, wire.CodeNotAvailable, "does not run"},
		"too much":          {map[string]string{"CNI_COMMAND": "GC"}, `{` + socket + `,"x":"` + strings.Repeat("x", wire.MaxFrame) + `"}`, wire.CodeInvalidConfig, "more than"},
		"rather much":       {map[string]string{"CNI_COMMAND": "GC"}, `{` + socket + `,"x":"` + strings.Repeat("x", wire.MaxFrame-200) + `"}`, wire.CodeInvalidConfig, "too long"},
		"VERSION of noise":  {map[string]string{"CNI_COMMAND": "VERSION"}, `[`, wire.CodeDecoding, ""},
	} {
		t.Run(name, func(t *testing.T) {
			code, stdout, _ := run(tt.env, tt.stdin)
			var e wire.Error
			if err := json.Unmarshal([]byte(stdout), &e); err != nil || code != 1 || e.Code != tt.code || !strings.Contains(e.Error(), tt.says) {
				t.Errorf("exit %d, %.300s; want code %d, %q", code, stdout, tt.code, tt.says)
			}
			if strings.Contains(tt.stdin, "1.0.0") && e.CNIVersion != "1.0.0" {
				t.Errorf("error in version %q", e.CNIVersion)
			}
		})
	}
	if code, stdout, stderr := run(nil, ""); code != 0 || stdout != "" || !strings.Contains(stderr, "the plugin") || !strings.Contains(stderr, "1.1.0") {
		t.Errorf("without a command: exit %d, %q, %q", code, stdout, stderr)
	}
	var out bytes.Buffer
	if code := Run(Config{Getenv: func(string) string { return "DEL" }, Stdin: iotest.ErrReader(errors.New("made to fail")), Stdout: &out}); code != 1 || !strings.Contains(out.String(), "made to fail") {
		t.Errorf("stdin that cannot be read: exit %d, %s", code, out.String())
	}
}

func TestVersion(t *testing.T) {
	for stdin, want := range map[string]string{"": "1.1.0", `{"cniVersion":"0.4.0"}`: "0.4.0", `{"cniVersion":"7.0.0"}`: "1.1.0"} {
		code, stdout, _ := run(map[string]string{"CNI_COMMAND": "VERSION"}, stdin)
		var v struct {
			CNIVersion        string
			SupportedVersions []string
		}
		if err := json.Unmarshal([]byte(stdout), &v); err != nil || code != 0 || v.CNIVersion != want || len(v.SupportedVersions) != len(wire.SpecVersions) {
			t.Errorf("VERSION %q: exit %d, %s", stdin, code, stdout)
		}
	}
}

// agent answers connections with frames, in order, and closes after each.
func agent(t *testing.T, answers ...[]byte) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "cni.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { l.Close(); <-done })
	go func() {
		defer close(done)
		for _, a := range answers {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			var req wire.Request
			if err := wire.ReadFrame(conn, &req); err != nil {
				t.Error(err)
			}
			conn.Write(a)
			conn.Close()
		}
		l.Close()
	}()
	return socket
}

func frame(t *testing.T, r wire.Response) []byte {
	t.Helper()
	b, err := wire.Frame(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestAnswers(t *testing.T) {
	result := frame(t, wire.Response{Version: wire.Version, Result: json.RawMessage(`{"cniVersion":"1.1.0"}`)})
	for name, tt := range map[string]struct {
		answer []byte
		exit   int
		says   string
	}{
		"a result":       {result, 0, `"cniVersion": "1.1.0"`},
		"nothing":        {frame(t, wire.Response{Version: wire.Version}), 0, ""},
		"an error":       {frame(t, wire.Response{Version: wire.Version, Error: &wire.Error{Code: 107, Msg: "route is missing"}}), 1, `"code":107`},
		"newer":          {frame(t, wire.Response{Version: 2}), 1, "the agent speaks version 2"},
		"newer, refused": {frame(t, wire.Response{Version: 2, Error: &wire.Error{Code: 999, Msg: "update the plugin"}}), 1, "update the plugin"},
		"cut":            {result[:10], 1, "closed the connection before it answered"},
		"garbage":        {append([]byte{0, 0, 0, 2}, "{{"...), 1, "reading the answer"},
		"too long":       {[]byte{0xff, 0, 0, 0}, 1, "too long"},
		"closed":         {nil, 1, "closed the connection before it answered"},
	} {
		t.Run(name, func(t *testing.T) {
			socket := agent(t, tt.answer)
			code, stdout, _ := run(map[string]string{"CNI_COMMAND": "DEL"}, `{"socket":"`+socket+`"}`)
			if code != tt.exit || !strings.Contains(stdout, tt.says) || (tt.says == "" && stdout != "") {
				t.Errorf("exit %d, %s; want %d, %q", code, stdout, tt.exit, tt.says)
			}
		})
	}
}
