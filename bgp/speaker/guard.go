package speaker

import (
	"context"
	"crypto/subtle"
	"fmt"
	"log/slog"
	"path"
	"runtime/debug"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/causeway-net/causeway/bgp/child"
)

// reads are the calls that change nothing. Every other call, known or not, is a write.
var reads = map[string]bool{
	"GetBgp":               true,
	"GetTable":             true,
	"ListBmp":              true,
	"ListDefinedSet":       true,
	"ListDynamicNeighbor":  true,
	"ListPath":             true,
	"ListPeer":             true,
	"ListPeerGroup":        true,
	"ListPolicy":           true,
	"ListPolicyAssignment": true,
	"ListRpki":             true,
	"ListRpkiTable":        true,
	"ListStatement":        true,
	"ListVrf":              true,
	"WatchEvent":           true,
}

// guard stands before every gRPC call: who may write, and that no answer shows a password.
type guard struct {
	token string
	open  bool // everyone who reaches the socket may write
	log   *slog.Logger
}

// check refuses a write that does not carry the agent's token. method is the full name, as
// /apipb.GobgpApi/AddPath.
func (g guard) check(ctx context.Context, method string) error {
	name := path.Base(method)
	if g.open || reads[name] {
		return nil
	}
	if g.agent(ctx) {
		return nil
	}
	from := "unknown"
	if p, ok := peer.FromContext(ctx); ok {
		from = p.Addr.String()
	}
	g.log.Warn("refused a call that would change the speaker", "call", name, "from", from)
	return status.Errorf(codes.PermissionDenied,
		"%s would change the speaker, which the Causeway agent configures from its resources (BGPPeer, BGPConfiguration, BGPFilter) and would change back; "+
			"change those instead, or start the agent with --gobgp-allow-writes to allow such calls", name)
}

// agent reports whether a call carries the agent's token.
func (g guard) agent(ctx context.Context) bool {
	md, _ := metadata.FromIncomingContext(ctx)
	for _, t := range md.Get(child.TokenKey) {
		if subtle.ConstantTimeCompare([]byte(t), []byte(g.token)) == 1 {
			return true
		}
	}
	return false
}

func (g guard) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (resp any, err error) {
	if err := g.check(ctx, info.FullMethod); err != nil {
		return nil, err
	}
	defer g.survive(info.FullMethod, &err)
	resp, err = next(ctx, req)
	redact(resp)
	return resp, err
}

func (g guard) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
	if err := g.check(ss.Context(), info.FullMethod); err != nil {
		return err
	}
	defer g.survive(info.FullMethod, &err)
	if path.Base(info.FullMethod) == "WatchEvent" && g.agent(ss.Context()) {
		watch := gather(redacted{ss})
		defer watch.close()
		return next(srv, watch)
	}
	return next(srv, redacted{ss})
}

// survive turns a panic over one caller's arguments, which GoBGP checks little, into that
// caller's error. It covers the call's own goroutine; what GoBGP passes on to its server
// goroutine still ends the process.
func (g guard) survive(method string, err *error) {
	if r := recover(); r != nil {
		g.log.Error("a gRPC call panicked", "call", path.Base(method), "error", fmt.Sprint(r), "stack", string(debug.Stack()))
		*err = status.Errorf(codes.InvalidArgument, "%s: GoBGP cannot take these arguments: %v", path.Base(method), r)
	}
}

// redacted blanks passwords in what a stream sends.
type redacted struct{ grpc.ServerStream }

func (s redacted) SendMsg(m any) error {
	redact(m)
	return s.ServerStream.SendMsg(m)
}
