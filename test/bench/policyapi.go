package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"k8s.io/client-go/rest"

	"github.com/causeway-net/causeway/internal/kubeapi"
	"github.com/causeway-net/causeway/test/cluster/apiserver"
	"github.com/causeway-net/causeway/test/lab"
)

// apiCommand is how this program is called inside a node that bears the API server.
const apiCommand = "apiserver"

// apiAddress is where all nodes reach it.
const apiAddress = "10.60.9.2:6443"

// api is a real API server in a node of a lab.
type api struct {
	config  *rest.Config // of the administrator, from this process
	clients *kubeapi.Clients
	cmd     *exec.Cmd
	in      io.Closer
}

// apiReady is what the process in the node says when the API server answers.
type apiReady struct {
	Token string `json:"token"`
}

// startAPI starts an API server with its etcd in n. It ends with ctx or with stop.
func startAPI(ctx context.Context, n *lab.Node) (*api, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(n.StateDir(), "api")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	a := &api{cmd: n.Command(ctx, exe, apiCommand, dir)}
	a.cmd.Env = append(a.cmd.Env, "CAUSEWAY_KUBERNETES_BIN="+apiserver.Bin())
	a.cmd.Stderr = os.Stderr
	in, err := a.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	a.in = in
	out, err := a.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := a.cmd.Start(); err != nil {
		return nil, fmt.Errorf("node %s: %w", n, err)
	}
	var ready apiReady
	if err := json.NewDecoder(out).Decode(&ready); err != nil {
		a.stop()
		return nil, fmt.Errorf("node %s: kube-apiserver did not start: %w", n, err)
	}
	a.config = &rest.Config{
		Host: "https://" + apiAddress, BearerToken: ready.Token, QPS: -1, // no limit of the client's own
		TLSClientConfig: rest.TLSClientConfig{Insecure: true},
		// Sockets of this process stay in its own namespace; this one is made in the node.
		Dial: func(ctx context.Context, network, address string) (conn net.Conn, err error) {
			derr := n.Do(func() error {
				conn, err = new(net.Dialer).DialContext(ctx, network, address)
				return err
			})
			return conn, derr
		},
	}
	if a.clients, err = kubeapi.New(a.config); err != nil {
		a.stop()
		return nil, err
	}
	return a, nil
}

func (a *api) stop() {
	a.in.Close()
	a.cmd.Wait() // how it ends says nothing that a request did not
}

// kubeconfig is the file by which an agent reaches the API server.
func (a *api) kubeconfig() []byte {
	return fmt.Appendf(nil, `{"apiVersion":"v1","kind":"Config","current-context":"c",
"clusters":[{"name":"c","cluster":{"server":%q,"insecure-skip-tls-verify":true}}],
"users":[{"name":"u","user":{"token":%q}}],"contexts":[{"name":"c","context":{"cluster":"c","user":"u"}}]}
`, a.config.Host, a.config.BearerToken)
}

// runAPI is the main of the process in the node: it serves until its input ends.
func runAPI(dir string, in io.Reader, out io.Writer) error {
	s, err := apiserver.Start(dir, "--bind-address=0.0.0.0", "--advertise-address=10.60.9.2")
	if err != nil {
		return err
	}
	defer s.Stop()
	if err := json.NewEncoder(out).Encode(apiReady{s.Config.BearerToken}); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, in)
	return err
}

// retry calls f again while the API server is busy or an object has changed meanwhile, three
// times at most.
func retry(ctx context.Context, f func() error) error {
	var err error
	for range 3 {
		if err = f(); err == nil || ctx.Err() != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		case <-time.After(200 * time.Millisecond):
		}
	}
	return err
}
