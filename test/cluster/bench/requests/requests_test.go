package requests

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const (
	agentUpdate = `{"stage":"ResponseComplete","requestURI":"/apis/projectcalico.org/v3/ipamblocks/10-0-0-0-26","verb":"update","user":{"username":"system:serviceaccount:kube-system:causeway-agent"},"objectRef":{"resource":"ipamblocks","name":"10-0-0-0-26"},"responseStatus":{"code":409}}`
	agentCreate = `{"stage":"ResponseComplete","requestURI":"/apis/projectcalico.org/v3/ipamblocks","verb":"create","user":{"username":"system:serviceaccount:kube-system:causeway-agent"},"objectRef":{"resource":"ipamblocks"},"responseStatus":{"code":201}}`
	agentClaim  = `{"stage":"ResponseComplete","requestURI":"/apis/projectcalico.org/v3/ipamblocks?labelSelector=a%21%3D6%2Cb%21%3D26&resourceVersion=7&resourceVersionMatch=NotOlderThan","verb":"list","user":{"username":"system:serviceaccount:kube-system:causeway-agent"},"objectRef":{"resource":"ipamblocks"},"responseStatus":{"code":200}}`
	agentResync = `{"stage":"ResponseComplete","requestURI":"/apis/projectcalico.org/v3/ipamblocks?fieldSelector=spec.affinity%3Dhost%3Anode1&limit=100","verb":"list","user":{"username":"system:serviceaccount:kube-system:causeway-agent"},"objectRef":{"resource":"ipamblocks"},"responseStatus":{"code":200}}`
	agentGet    = `{"stage":"ResponseComplete","requestURI":"/api/v1/namespaces/x/pods/y","verb":"get","user":{"username":"system:serviceaccount:kube-system:causeway-agent"},"objectRef":{"resource":"pods"},"responseStatus":{"code":200}}`
	agentStatus = `{"stage":"ResponseComplete","requestURI":"/api/v1/nodes/n/status","verb":"patch","user":{"username":"system:serviceaccount:kube-system:causeway-agent"},"objectRef":{"resource":"nodes","subresource":"status"},"responseStatus":{"code":200}}`
	watchBegins = `{"stage":"ResponseStarted","requestURI":"/api/v1/pods?watch=true","verb":"watch","user":{"username":"system:serviceaccount:kube-system:causeway-agent"},"objectRef":{"resource":"pods"},"responseStatus":{"code":200}}`
	watchEnds   = `{"stage":"ResponseComplete","requestURI":"/api/v1/pods?watch=true","verb":"watch","user":{"username":"system:serviceaccount:kube-system:causeway-agent"},"objectRef":{"resource":"pods"},"responseStatus":{"code":200}}`
	kubelets    = `{"stage":"ResponseComplete","requestURI":"/api/v1/nodes/n","verb":"get","user":{"username":"system:node:n"},"objectRef":{"resource":"nodes"},"responseStatus":{"code":200}}`
)

// TestLog: a log that grows, its last line half written at first, is counted once.
func TestLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	write := func(text string) {
		f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err == nil {
			_, err = f.WriteString(text)
			f.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	write(agentGet + "\n")
	l, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	next := func(want Cost) {
		t.Helper()
		all, err := l.Next()
		if err != nil {
			t.Fatal(err)
		}
		got := CostOf(all)
		if got.Writes != want.Writes || got.Claims != want.Claims || got.Refused != want.Refused || got.Reads != want.Reads || got.ClaimReads != want.ClaimReads || got.Resyncs != want.Resyncs {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	next(Cost{})
	write(strings.Join([]string{agentUpdate, agentCreate, agentClaim, agentResync, watchBegins, watchEnds, kubelets, agentStatus, agentGet[:40]}, "\n"))
	next(Cost{Writes: 2, Claims: 1, Refused: 1, ClaimReads: 1, Resyncs: 1})
	write(agentGet[40:] + "\n")
	next(Cost{Reads: 1})
	write("no JSON\n")
	if _, err := l.Next(); err == nil {
		t.Error("a line that is no event is no error")
	}
}
