package child_test

import (
	"bufio"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	api "github.com/osrg/gobgp/v3/api"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/causeway-net/causeway/bgp/child"
)

// cli runs Debian's gobgp.
func (r *running) cli(args ...string) (string, error) {
	target := "unix://" + filepath.Join(r.run, "gobgp.sock")
	out, err := exec.Command("gobgp", append([]string{"--target", target}, args...)...).CombinedOutput()
	return string(out), err
}

const password = "s3cr3t-of-the-session"

// TestCLI runs what operators run, against a session with an MD5 password.
func TestCLI(t *testing.T) {
	hosts := subnet(t, 1)
	h := hosts[0]
	h.password = password
	h.bird(t)
	r := startSpeaker(t, nil)
	r.startBGP(t, func(p *api.Peer) { p.Conf.AuthPassword = password }, hosts...)
	r.awaitEstablished(t, hosts...)

	await(t, "BIRD's route in `gobgp global rib`", func() bool {
		out, err := r.cli("global", "rib")
		return err == nil && strings.Contains(out, "10.20.1.0/24")
	})
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"global"}, fmt.Sprint(ourAS)},
		{[]string{"neighbor"}, "Establ"},
		{[]string{"neighbor", h.ip}, "BGP neighbor is " + h.ip},
		{[]string{"neighbor", h.ip, "adj-in"}, "10.20.1.0/24"},
		{[]string{"neighbor", h.ip, "-j"}, "neighbor_address"},
		{[]string{"policy"}, ""},
	} {
		out, err := r.cli(c.args...)
		if err != nil || !strings.Contains(out, c.want) {
			t.Errorf("gobgp %v: %v, lacks %q:\n%s", c.args, err, c.want, out)
		}
		if strings.Contains(out, password) {
			t.Errorf("gobgp %v shows the password:\n%s", c.args, out)
		}
	}

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	mon := exec.CommandContext(ctx, "gobgp", "--target", "unix://"+filepath.Join(r.run, "gobgp.sock"), "monitor", "global", "rib", "--current")
	out, err := mon.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := mon.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || !strings.Contains(line, "10.20.1.0/24") {
		t.Errorf("monitor global rib: %q %v", line, err)
	}
	cancel()
	_ = mon.Wait()

	for _, args := range [][]string{
		{"global", "rib", "add", "10.66.0.0/24"},
		{"neighbor", h.ip, "reset"},
		{"neighbor", h.ip, "shutdown"},
		{"neighbor", "del", h.ip},
		{"global", "del", "all"},
	} {
		out, err := r.cli(args...)
		if err == nil || !strings.Contains(out, "--gobgp-allow-writes") {
			t.Errorf("gobgp %v: %v:\n%s", args, err, out)
		}
	}
	if strings.Contains(r.log.String(), password) {
		t.Error("the log shows the password")
	}
	if !strings.Contains(r.log.String(), "refused a call") {
		t.Error("the log does not tell of the refusals")
	}
	for _, bad := range []string{"cannot set TTL", "md5"} {
		if strings.Contains(r.log.String(), bad) {
			t.Errorf("the log says %q", bad)
		}
	}
}

func TestAllowedWrites(t *testing.T) {
	subnet(t, 0)
	r := startSpeaker(t, func(c *child.Config) { c.AllowWrites = true })
	r.startBGP(t, nil)
	if out, err := r.cli("global", "rib", "add", "10.66.0.0/24"); err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	if out, err := r.cli("global", "rib"); err != nil || !strings.Contains(out, "10.66.0.0/24") {
		t.Errorf("%v:\n%s", err, out)
	}
}

// TestToken: over loopback TCP, which the operator asked for, everyone reads and only the agent
// writes.
func TestToken(t *testing.T) {
	subnet(t, 0)
	r := startSpeaker(t, func(c *child.Config) { c.TCPAddr = "127.0.0.1:50061" })
	r.startBGP(t, nil)
	conn, err := grpc.NewClient("127.0.0.1:50061", grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	stranger := api.NewGobgpApiClient(conn)
	if _, err := stranger.GetBgp(t.Context(), &api.GetBgpRequest{}); err != nil {
		t.Error(err)
	}
	for _, ctx := range []context.Context{
		t.Context(),
		metadata.AppendToOutgoingContext(t.Context(), child.TokenKey, ""),
		metadata.AppendToOutgoingContext(t.Context(), child.TokenKey, "ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
	} {
		if _, err := stranger.StopBgp(ctx, &api.StopBgpRequest{}); status.Code(err) != codes.PermissionDenied {
			t.Errorf("StopBgp: %v", err)
		}
		s, err := stranger.AddPathStream(ctx)
		if err == nil {
			_, err = s.CloseAndRecv()
		}
		if status.Code(err) != codes.PermissionDenied {
			t.Errorf("AddPathStream: %v", err)
		}
	}
	got, err := stranger.GetBgp(t.Context(), &api.GetBgpRequest{})
	if err != nil || got.Global.Asn != ourAS {
		t.Errorf("%v %v", got, err)
	}
}

// TestPasswordsBlank reads every answer that could show one, with the agent's token.
func TestPasswordsBlank(t *testing.T) {
	hosts := subnet(t, 1)
	r := startSpeaker(t, nil)
	events, err := r.api.WatchEvent(t.Context(), &api.WatchEventRequest{Peer: &api.WatchEventRequest_Peer{}})
	if err != nil {
		t.Fatal(err)
	}
	r.startBGP(t, func(p *api.Peer) { p.Conf.AuthPassword = password }, hosts...)
	if _, err := r.api.AddPeerGroup(t.Context(), &api.AddPeerGroupRequest{PeerGroup: &api.PeerGroup{
		Conf: &api.PeerGroupConf{PeerGroupName: "g", AuthPassword: password, PeerAsn: 65009},
	}}); err != nil {
		t.Fatal(err)
	}
	var seen []fmt.Stringer
	for {
		e, err := events.Recv()
		if err != nil {
			t.Fatal(err)
		}
		seen = append(seen, e)
		if e.GetPeer().GetPeer().GetConf().GetNeighborAddress() == hosts[0].ip {
			break
		}
	}
	p := r.peers(t)[hosts[0].ip]
	if p == nil {
		t.Fatal("no peer")
	}
	groups, err := r.api.ListPeerGroup(t.Context(), &api.ListPeerGroupRequest{})
	if err != nil {
		t.Fatal(err)
	}
	g, err := groups.Recv()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range append(seen, p, g) {
		if strings.Contains(m.String(), password) {
			t.Errorf("%s", m)
		}
	}
	if g.PeerGroup.Conf.PeerGroupName != "g" {
		t.Errorf("blanked too much: %s", g)
	}
	// The session is still protected: blanking touched the answer, not the configuration.
	h := hosts[0]
	h.password = password
	h.bird(t)
	r.awaitEstablished(t, h)
}
