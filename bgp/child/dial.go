package child

import (
	"context"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/emptypb"
)

// maxMessage bounds one gRPC message in bytes, both ways. A policy's prefix sets are the
// largest.
const maxMessage = 64 << 20

// Dial connects to the child with the right to write, and returns when the connection stands.
// The caller closes it.
func (i *Instance) Dial(ctx context.Context) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient("passthrough:///speaker",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithPerRPCCredentials(token(i.token)),
		grpc.WithContextDialer(i.connect),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
	)
	if err != nil {
		return nil, fmt.Errorf("speaker: %w", err)
	}
	conn.Connect()
	for s := conn.GetState(); s != connectivity.Ready; s = conn.GetState() {
		select {
		case <-i.died:
			conn.Close()
			return nil, i.death.Err
		default:
		}
		if !conn.WaitForStateChange(ctx, s) {
			conn.Close()
			return nil, fmt.Errorf("speaker: connect: %w", ctx.Err())
		}
	}
	return conn, nil
}

// connect opens the child's socket. The child owns its folder and could put another program's
// socket there, so the agent talks only to a listener that is this very process.
func (i *Instance) connect(ctx context.Context, _ string) (net.Conn, error) {
	select {
	case <-i.died:
		return nil, i.death.Err
	default:
	}
	var d net.Dialer
	// Through the descriptor, so that the folder's path may be longer than a socket address.
	c, err := d.DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d/%s", i.dirFD, SocketName))
	if err != nil {
		return nil, err
	}
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		c.Close()
		return nil, err
	}
	var cred *unix.Ucred
	var sockErr error
	if err := raw.Control(func(fd uintptr) {
		cred, sockErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil || sockErr != nil {
		c.Close()
		return nil, fmt.Errorf("SO_PEERCRED: %v %w", err, sockErr)
	}
	if int(cred.Pid) != i.proc.Pid {
		c.Close()
		return nil, fmt.Errorf("the socket belongs to process %d, not to the speaker, %d", cred.Pid, i.proc.Pid)
	}
	return c, nil
}

// probe makes one call, so that the first caller need not wait.
func (i *Instance) probe(ctx context.Context) error {
	conn, err := i.Dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	// An empty request is a valid GetBgpRequest, and the answer's fields do not matter.
	if err := conn.Invoke(ctx, "/apipb.GobgpApi/GetBgp", &emptypb.Empty{}, &emptypb.Empty{}); err != nil {
		return fmt.Errorf("GetBgp: %w", err)
	}
	return nil
}

// token is the agent's right to write, sent with every call.
type token string

func (t token) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{TokenKey: string(t)}, nil
}

// RequireTransportSecurity is false: the socket is a local one, and its listener was checked.
func (t token) RequireTransportSecurity() bool { return false }
