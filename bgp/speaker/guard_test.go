package speaker

import (
	"context"
	"log/slog"
	"strings"
	"testing"

	api "github.com/osrg/gobgp/v3/api"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/causeway-net/causeway/bgp/child"
)

const secret = "s3cr3t"

// methods lists every call of the API by name.
func methods() map[string]protoreflect.MethodDescriptor {
	out := map[string]protoreflect.MethodDescriptor{}
	services := api.File_gobgp_proto.Services()
	for i := range services.Len() {
		for j := range services.Get(i).Methods().Len() {
			m := services.Get(i).Methods().Get(j)
			out[string(m.Name())] = m
		}
	}
	return out
}

// TestEveryCallIsJudged: what is not a read by its name is refused without the token.
func TestEveryCallIsJudged(t *testing.T) {
	g := guard{token: "right", log: slog.New(slog.DiscardHandler)}
	with := func(tokens ...string) context.Context {
		md := metadata.MD{}
		md.Append(child.TokenKey, tokens...)
		return metadata.NewIncomingContext(context.Background(), md)
	}
	all := methods()
	if len(all) < 50 {
		t.Fatalf("only %d methods", len(all))
	}
	for name := range reads {
		if all[name] == nil {
			t.Errorf("%s is on the list of reads and not in the API", name)
		}
	}
	for name := range all {
		full := "/apipb.GobgpApi/" + name
		read := strings.HasPrefix(name, "List") || strings.HasPrefix(name, "Get") || name == "WatchEvent"
		if err := g.check(context.Background(), full); (err == nil) != read {
			t.Errorf("%s without a token: %v", name, err)
		} else if !read && (status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "--gobgp-allow-writes")) {
			t.Errorf("%s: unclear: %v", name, err)
		}
		if err := g.check(with("right"), full); err != nil {
			t.Errorf("%s with the token: %v", name, err)
		}
		for _, wrong := range []string{"", "righ", "right ", "wrong"} {
			if err := g.check(with(wrong), full); (err == nil) != read {
				t.Errorf("%s with token %q: %v", name, wrong, err)
			}
		}
	}
	if g.check(context.Background(), "/apipb.GobgpApi/SomethingNew") == nil {
		t.Error("an unknown call is a write")
	}
	g.open = true
	if err := g.check(context.Background(), "/apipb.GobgpApi/AddPath"); err != nil {
		t.Errorf("allowed by the operator: %v", err)
	}
}

// fill sets every string of a message, and every message in it, as deep as types go.
func fill(m protoreflect.Message, above map[protoreflect.FullName]bool) {
	d := m.Descriptor()
	if above[d.FullName()] {
		return
	}
	above[d.FullName()] = true
	defer delete(above, d.FullName())
	for i := range d.Fields().Len() {
		f := d.Fields().Get(i)
		switch {
		case f.IsMap():
		case f.IsList() && f.Message() != nil:
			e := m.Mutable(f).List().AppendMutable()
			fill(e.Message(), above)
		case f.IsList() && f.Kind() == protoreflect.StringKind:
			m.Mutable(f).List().Append(protoreflect.ValueOfString(secret))
		case f.IsList():
		case f.Message() != nil:
			fill(m.Mutable(f).Message(), above)
		case f.Kind() == protoreflect.StringKind:
			m.Set(f, protoreflect.ValueOfString(secret))
		}
	}
}

// fields counts the strings of a message that are set, passwords apart.
func fields(m protoreflect.Message) (passwords, others int) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsList() && f.Message() != nil:
			for i := range v.List().Len() {
				p, o := fields(v.List().Get(i).Message())
				passwords, others = passwords+p, others+o
			}
		case f.IsList(), f.IsMap():
		case f.Message() != nil:
			p, o := fields(v.Message())
			passwords, others = passwords+p, others+o
		case f.Kind() == protoreflect.StringKind && strings.Contains(string(f.Name()), "password"):
			passwords++
		case f.Kind() == protoreflect.StringKind:
			others++
		}
		return true
	})
	return passwords, others
}

// TestNoAnswerShowsAPassword fills every answer of the API and redacts it.
func TestNoAnswerShowsAPassword(t *testing.T) {
	holders := map[string]bool{}
	for name, m := range methods() {
		variants := []protoreflect.FieldDescriptor{nil}
		if oneofs := m.Output().Oneofs(); oneofs.Len() > 0 { // fill would keep the last member only
			for i := range oneofs.Get(0).Fields().Len() {
				variants = append(variants, oneofs.Get(0).Fields().Get(i))
			}
		}
		for _, only := range variants {
			msg := dynamicpb.NewMessage(m.Output())
			if only == nil {
				fill(msg, map[protoreflect.FullName]bool{})
			} else {
				fill(msg.Mutable(only).Message(), map[protoreflect.FullName]bool{})
			}
			before, kept := fields(msg)
			if before > 0 {
				holders[name] = true
			}
			redact(proto.Message(msg))
			after, others := fields(msg)
			if after != 0 || others != kept {
				t.Errorf("%s: %d passwords of %d left, %d other strings of %d", name, after, before, others, kept)
			}
		}
	}
	for _, name := range []string{"ListPeer", "ListPeerGroup", "WatchEvent"} {
		if !holders[name] {
			t.Errorf("%s held no password to blank: the test is blind", name)
		}
	}
	redact(nil)
	redact("no message")
	redact((*api.ListPeerResponse)(nil))
}

// TestRoutesCostNothing: a route stream is not searched.
func TestRoutesCostNothing(t *testing.T) {
	path := &api.ListPathResponse{Destination: &api.Destination{Prefix: "10.0.0.0/24", Paths: []*api.Path{{}, {}}}}
	event := &api.WatchEventResponse{Event: &api.WatchEventResponse_Table{Table: &api.WatchEventResponse_TableEvent{Paths: []*api.Path{{}, {}}}}}
	redact(path)
	redact(event)
	if n := testing.AllocsPerRun(100, func() { redact(path); redact(event) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestPanicOfACall becomes the caller's error.
func TestPanicOfACall(t *testing.T) {
	g := guard{open: true, log: slog.New(slog.DiscardHandler)}
	_, err := g.unary(context.Background(), nil, &grpc.UnaryServerInfo{FullMethod: "/apipb.GobgpApi/ListPath"},
		func(context.Context, any) (any, error) { panic("boom") })
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "boom") {
		t.Error(err)
	}
}
