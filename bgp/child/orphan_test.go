package child_test

import (
	"bufio"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	api "github.com/osrg/gobgp/v3/api"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// TestAgentDies: the speaker goes with it, without a word to the peers, and a peer with graceful
// restart keeps the routes.
func TestAgentDies(t *testing.T) {
	hosts := subnet(t, 1)
	h := hosts[0]
	h.bird(t)
	run := t.TempDir()
	agent := exec.Command(self(t), "agent", run)
	out, err := agent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	agent.Stderr = t.Output()
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { agent.Process.Kill(); agent.Wait() }()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("unix://"+filepath.Join(run, "gobgp.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	r := &running{api: api.NewGobgpApiClient(conn), run: run}
	r.startBGP(t, nil, h)
	if out, err := r.cli("global", "rib", "add", "10.66.0.0/24"); err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	r.awaitEstablished(t, h)
	await(t, "our route at BIRD", func() bool { return strings.Contains(h.birdc(t, "show", "route"), "10.66.0.0/24") })

	if err := agent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	await(t, "the speaker's end", func() bool { return syscall.Kill(pid, 0) == syscall.ESRCH || zombie(pid) })
	await(t, "BIRD to notice", func() bool { return strings.Contains(h.log(t), "Neighbor graceful restart detected") })
	if routes := h.birdc(t, "show", "route"); !strings.Contains(routes, "10.66.0.0/24") {
		t.Errorf("BIRD dropped our route:\n%s", routes)
	}
	if strings.Contains(h.log(t), "Got NOTIFICATION") || strings.Contains(h.log(t), "Received: ") {
		t.Errorf("the speaker said goodbye:\n%s", h.log(t))
	}
}

// TestGoodbyeIsHeard shows that the check above can fail.
func TestGoodbyeIsHeard(t *testing.T) {
	hosts := subnet(t, 1)
	h := hosts[0]
	h.bird(t)
	r := startSpeaker(t, nil)
	r.startBGP(t, nil, h)
	r.awaitEstablished(t, h)
	if err := r.Stop(context.Background(), true); err != nil {
		t.Fatal(err)
	}
	await(t, "CEASE at BIRD", func() bool {
		return strings.Contains(h.log(t), "Got NOTIFICATION") || strings.Contains(h.log(t), "Received: ")
	})
}

// zombie says whether the process has ended and nobody has asked how.
func zombie(pid int) bool {
	out, err := exec.Command("ps", "-o", "stat=", "-p", fmt.Sprint(pid)).Output()
	return err != nil || strings.HasPrefix(string(out), "Z")
}
