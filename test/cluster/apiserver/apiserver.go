// Package apiserver is a real kube-apiserver with its etcd for tests that need no node: it
// owns their start in a network namespace of the test's own, and their end.
//
// The programs come from `make kubernetes`; a test package calls Main from its TestMain.
package apiserver

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"k8s.io/client-go/rest"
)

// Bin returns the folder of the Kubernetes programs: CAUSEWAY_KUBERNETES_BIN, or the cache
// that `make kubernetes` fills.
func Bin() string {
	if dir := os.Getenv("CAUSEWAY_KUBERNETES_BIN"); dir != "" {
		return dir
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = "/root/.cache"
	}
	return filepath.Join(cache, "causeway", "kubernetes", "bin")
}

// inside marks the process that runs in the namespace.
const inside = "CAUSEWAY_TEST_APISERVER_NETNS"

// Main runs the tests of a package in a network namespace of their own, in which an API
// server listens on loopback. set is called with the administrator's configuration before
// the first test; extra are flags of kube-apiserver.
func Main(m *testing.M, set func(*rest.Config), extra ...string) {
	MainServer(m, func(s *Server) { set(s.Config) }, extra...)
}

// MainServer is Main for tests that stop and start the API server.
func MainServer(m *testing.M, set func(*Server), extra ...string) {
	os.Exit(run(m, set, extra))
}

func run(m *testing.M, set func(*Server), extra []string) int {
	if os.Getenv(inside) == "" {
		cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
		cmd.Env = append(os.Environ(), inside+"=1")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: unix.SIGKILL}
		err := cmd.Run()
		var exit *exec.ExitError
		switch {
		case errors.As(err, &exit):
			return exit.ExitCode()
		case err != nil:
			fmt.Fprintln(os.Stderr, "a network namespace for the test (needs root):", err)
			return 1
		}
		return 0
	}
	dir, err := os.MkdirTemp("", "causeway-apiserver-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	s, err := Start(dir, extra...)
	if err != nil {
		fmt.Fprintln(os.Stderr, "kube-apiserver for the tests:", err)
		return 1
	}
	defer s.Stop()
	set(s)
	return m.Run()
}

// Server is a running API server.
type Server struct {
	Config *rest.Config // of a member of system:masters
	dir    string
	extra  []string
	procs  []process // etcd first
}

// process is a program that runs.
type process struct {
	cmd   *exec.Cmd
	ended chan struct{}
}

func (p process) kill() {
	p.cmd.Process.Kill()
	<-p.ended
}

const token = "causeway-test-administrator"

// Start starts etcd and kube-apiserver in this process's network namespace, whose loopback
// it brings up, and waits until they are ready. Files go to dir.
func Start(dir string, extra ...string) (*Server, error) {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return nil, err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return nil, err
	}
	s := &Server{dir: dir, extra: extra}
	if err := s.writeKeys(); err != nil {
		return nil, err
	}
	if err := s.startEtcd(); err != nil {
		return nil, err
	}
	s.Config = &rest.Config{
		Host: "https://127.0.0.1:6443", BearerToken: token, QPS: 1000, Burst: 2000,
		TLSClientConfig: rest.TLSClientConfig{Insecure: true},
	}
	if err := s.StartAPI(); err != nil {
		s.Stop()
		return nil, err
	}
	return s, nil
}

func (s *Server) startEtcd() error {
	return s.start("etcd", "--data-dir", filepath.Join(s.dir, "etcd"), "--unsafe-no-fsync", "--log-level", "error",
		"--listen-client-urls", "http://127.0.0.1:2379", "--advertise-client-urls", "http://127.0.0.1:2379", "--listen-peer-urls", "http://127.0.0.1:2380")
}

func (s *Server) writeKeys() error {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
	return errors.Join(
		os.WriteFile(filepath.Join(s.dir, "sa.key"), text, 0o600),
		os.WriteFile(filepath.Join(s.dir, "tokens.csv"), []byte(token+",admin,admin,system:masters\n"), 0o600),
	)
}

// StartAPI starts kube-apiserver, after StopAPI again, and waits until it is ready.
func (s *Server) StartAPI() error {
	key := filepath.Join(s.dir, "sa.key")
	args := append([]string{
		"--etcd-servers=http://127.0.0.1:2379", "--cert-dir=" + filepath.Join(s.dir, "cert"), "--bind-address=127.0.0.1", "--secure-port=6443",
		"--service-cluster-ip-range=10.96.0.0/16,fd96::/112", "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
		"--disable-admission-plugins=ServiceAccount", "--allow-privileged=true", "--token-auth-file=" + filepath.Join(s.dir, "tokens.csv"),
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local", "--service-account-key-file=" + key, "--service-account-signing-key-file=" + key,
		"--advertise-address=192.0.2.1", "--endpoint-reconciler-type=none",
	}, s.extra...)
	if err := s.start("kube-apiserver", args...); err != nil {
		return err
	}
	h, err := rest.HTTPClientFor(s.Config)
	if err != nil {
		return err
	}
	deadline := time.Now().Add(2 * time.Minute)
	for {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.Config.Host+"/readyz", nil)
		if err != nil {
			cancel()
			return err
		}
		resp, err := h.Do(req)
		if err == nil {
			resp.Body.Close()
		}
		cancel()
		if err == nil && resp.StatusCode == http.StatusOK {
			return nil
		}
		if time.Now().After(deadline) {
			out, _ := os.ReadFile(filepath.Join(s.dir, "kube-apiserver.log"))
			return fmt.Errorf("not ready after two minutes (%v); its log ends with:\n%s", err, tail(out))
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func tail(b []byte) []byte {
	lines := bytes.Split(b, []byte("\n"))
	return bytes.Join(lines[max(0, len(lines)-25):], []byte("\n"))
}

// start starts a program that ends with this process. A thread is kept for it: the kernel sends
// PR_SET_PDEATHSIG when the thread that forked ends (prctl(2)), and tests have threads that end.
func (s *Server) start(name string, args ...string) error {
	path := filepath.Join(Bin(), name)
	if _, err := os.Stat(path); err != nil {
		return fmt.Errorf("%w: run `make kubernetes` first", err)
	}
	out, err := os.OpenFile(filepath.Join(s.dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	started, ended := make(chan error), make(chan struct{})
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(ended)
		err := cmd.Start()
		started <- err
		if err == nil {
			cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return err
	}
	s.procs = append(s.procs, process{cmd, ended})
	return nil
}

// StopAPI ends kube-apiserver and leaves etcd.
func (s *Server) StopAPI() {
	for _, p := range s.procs[1:] {
		p.kill()
	}
	s.procs = s.procs[:1]
}

// Stop ends both.
func (s *Server) Stop() {
	s.StopAPI()
	s.procs[0].kill()
}
