package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/causeway-net/causeway/cni-plugin/veth"
	"github.com/causeway-net/causeway/cni-plugin/wire"
	"github.com/causeway-net/causeway/internal/model"
)

// Error codes of CHECK (from 100 on they are the plugin's own: CNI spec 1.1.0, section 5).
const (
	CodeRecord    uint = 100 // the agent's record, or prevResult, says otherwise
	CodeHostLink  uint = 101
	CodePodLink   uint = 102
	CodeAddress   uint = 103
	CodeRoute     uint = 104
	CodeNeighbour uint = 105
	CodeSysctl    uint = 106
	CodeDataplane uint = 107 // the host's route or rules
)

// asWire makes a CNI error of any error. What ran out of time may be tried again.
func asWire(err error) *wire.Error {
	var e *wire.Error
	switch {
	case errors.As(err, &e):
		return e
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return &wire.Error{Code: wire.CodeTryAgain, Msg: err.Error()}
	case errors.Is(err, veth.ErrNetNS):
		return &wire.Error{Code: wire.CodeInvalidNetNS, Msg: err.Error()}
	}
	return &wire.Error{Code: wire.CodeInternal, Msg: err.Error()}
}

// request is one request, checked and taken apart.
type request struct {
	*wire.Request
	conf *conf
	args podArgs
	key  model.AttachmentKey
	ns   *os.File // nil when the plugin had none
}

// handle works on one request and returns the result to print. It waits for its turn until
// ending is cancelled, and works within ctx.
func (s *Server) handle(ending, ctx context.Context, wr *wire.Request, ns *os.File) (result []byte, err error) {
	start := time.Now()
	r := &request{Request: wr, ns: ns, key: model.AttachmentKey{ContainerID: wr.ContainerID, IfName: wr.IfName}, conf: new(conf)}
	defer func() {
		if err == nil {
			return
		}
		if ending.Err() != nil {
			s.Log.Info("request left to the next agent", "command", r.Command, "attachment", r.key.String(), "pod", r.pod(), "took", time.Since(start), "error", err)
			return
		}
		s.Log.Warn("request failed", "command", r.Command, "attachment", r.key.String(), "pod", r.pod(), "took", time.Since(start), "error", err)
		e := *asWire(err)
		e.CNIVersion = r.conf.CNIVersion
		err = &e
	}()
	if err := r.check(); err != nil {
		return nil, err
	}
	switch r.Command {
	case "VERSION":
		return json.Marshal(map[string]any{"cniVersion": current.ImplementedSpecVersion, "supportedVersions": wire.SpecVersions})
	case "STATUS":
		return nil, s.status()
	}
	turn, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ending, cancel)()
	if r.Command == "ADD" || r.Command == "GC" {
		if err := s.waitReady(turn); err != nil {
			return nil, err
		}
	}
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-turn.Done():
		return nil, fmt.Errorf("waiting for %d other requests to end: %w", cap(s.slots), turn.Err())
	}
	if err := turn.Err(); err != nil {
		return nil, fmt.Errorf("waiting for its turn: %w", err)
	}
	if r.Command == "GC" {
		s.gc.Lock()
		defer s.gc.Unlock()
		return nil, s.collect(ctx, r)
	}
	s.gc.RLock()
	defer s.gc.RUnlock()
	leave, err := s.containers.enter(turn, r.ContainerID)
	if err != nil {
		return nil, fmt.Errorf("waiting for another request of container %s to end: %w", r.ContainerID, err)
	}
	defer leave()
	switch r.Command {
	case "ADD":
		return s.add(ctx, r)
	case "CHECK":
		return nil, s.check(ctx, r)
	default:
		return nil, s.del(ctx, r)
	}
}

// check refuses requests that lack something, each with the specification's code.
func (r *request) check() (err error) {
	switch r.Command {
	case "VERSION":
		return nil
	case "ADD", "DEL", "CHECK", "GC", "STATUS":
	default:
		return &wire.Error{Code: wire.CodeInvalidEnvironment, Msg: fmt.Sprintf("CNI_COMMAND %q: want ADD, DEL, CHECK, GC, STATUS or VERSION", r.Command)}
	}
	if r.conf, err = parseConf(r.Command, r.Stdin); err != nil || r.Command == "STATUS" || r.Command == "GC" {
		return err
	}
	if err := utils.ValidateContainerID(r.ContainerID); err != nil {
		return &wire.Error{Code: wire.CodeInvalidEnvironment, Msg: "CNI_CONTAINERID: " + err.Error()}
	}
	if err := utils.ValidateInterfaceName(r.IfName); err != nil {
		return &wire.Error{Code: wire.CodeInvalidEnvironment, Msg: "CNI_IFNAME: " + err.Error()}
	}
	if r.Command != "DEL" && (slices.Contains([]string{"lo", "all", "default"}, r.IfName) || strings.Contains(r.IfName, "%")) {
		// Of the last the kernel makes a name of its own (dev_alloc_name).
		return &wire.Error{Code: wire.CodeInvalidEnvironment, Msg: fmt.Sprintf("CNI_IFNAME %q: the kernel keeps that name for itself", r.IfName)}
	}
	if r.args, err = parseArgs(r.Args, r.Command == "DEL"); err != nil || r.Command == "DEL" {
		return err
	}
	if r.ns == nil {
		return &wire.Error{Code: wire.CodeInvalidNetNS, Msg: "the plugin sent no network namespace (CNI_NETNS)"}
	}
	return r.conf.validate()
}

// pod names the pod for logs; empty without Kubernetes.
func (r *request) pod() string {
	if r.args.pod == "" {
		return ""
	}
	return r.args.namespace + "/" + r.args.pod
}

// hostName is the name of the attachment's host end.
func (r *request) hostName() string { return veth.HostName(r.key, r.args.namespace, r.args.pod) }

func (r *request) owner() veth.Owner { return veth.Owner{Network: r.conf.Name, Key: r.key} }

// inode recognises the pod's network namespace.
func (r *request) inode() (uint64, error) {
	st, err := r.ns.Stat()
	if err != nil {
		return 0, err
	}
	return st.Sys().(*syscall.Stat_t).Ino, nil
}

// status answers STATUS. While the agent comes back from an upgrade it is not ready yet
// and nobody need know: an ADD waits for it.
func (s *Server) status() error {
	err := s.ready()
	if err == nil || s.starting() {
		return nil
	}
	code := wire.CodeNotAvailable
	if errors.Is(err, ErrLimited) {
		code = wire.CodeLimited
	}
	return &wire.Error{Code: code, Msg: "Causeway is not ready on this node", Details: err.Error()}
}

// waitReady returns when the agent has been ready once since it started. Later troubles do
// not stop it from attaching pods: they fail on their own if they must.
func (s *Server) waitReady(ctx context.Context) error {
	for !s.everReady.Load() {
		err := s.ready()
		if err == nil || errors.Is(err, ErrLimited) {
			return nil
		}
		if !s.starting() {
			return &wire.Error{Code: wire.CodeTryAgain, Msg: "Causeway is not ready on this node", Details: err.Error()}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for Causeway to be ready (%v): %w", err, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

// print returns the result in the configuration's version.
func (c *conf) print(result *current.Result) ([]byte, error) {
	if modern, err := version.GreaterThanOrEqualTo(c.CNIVersion, "1.1.0"); err == nil && !modern {
		for _, i := range result.Interfaces {
			i.Mtu, i.SocketPath, i.PciID = 0, "", "" // words of 1.1.0
		}
	}
	r, err := result.GetAsVersion(c.CNIVersion)
	if err != nil {
		return nil, err
	}
	return json.Marshal(r)
}
