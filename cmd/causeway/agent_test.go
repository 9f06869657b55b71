package main

import (
	"strings"
	"testing"
)

func TestFolder(t *testing.T) {
	for _, c := range []struct {
		datastore string
		dir       string
		shared    bool
		err       string
	}{
		{"file:///etc/causeway/manifests", "/etc/causeway/manifests", false, ""},
		{"file:///m?shared=true", "/m", true, ""},
		{"file:///m?shared=false", "/m", false, ""},
		{"file:///m?shared=yes", "", false, "shared=true or shared=false"},
		{"file:///m?share=true", "", false, "shared=true or shared=false"},
		{"file://m", "", false, "file:///DIR"},
		{"/m", "", false, "file:///DIR"},
		{"kube", "", false, "use kubernetes"},
	} {
		dir, shared, err := options{datastore: c.datastore}.folder()
		if dir != c.dir || shared != c.shared || (err == nil) != (c.err == "") {
			t.Errorf("%s: %q %v %v", c.datastore, dir, shared, err)
		}
		if err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: the error does not say what would be right: %v", c.datastore, err)
		}
	}
}

func TestFromEnvironment(t *testing.T) {
	flags := agentCommand().Flags()
	if err := flags.Parse([]string{"--run-dir", "/given"}); err != nil {
		t.Fatal(err)
	}
	err := fromEnvironment(flags, []string{"HOME=/root", "CAUSEWAY_NODE_NAME=n1", "CAUSEWAY_RUN_DIR=/ignored", "CAUSEWAY_GOBGP_ALLOW_WRITES=true",
		"IP_AUTODETECTION_METHOD=first-found", "CAUSEWAY_IP6_AUTODETECTION_METHOD=none", "IP6_AUTODETECTION_METHOD=first-found"})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"node-name": "n1", "run-dir": "/given", "gobgp-allow-writes": "true", "ip-autodetection-method": "first-found", "ip6-autodetection-method": "none"} {
		if got := flags.Lookup(name).Value.String(); got != want {
			t.Errorf("--%s is %q, want %q", name, got, want)
		}
	}
	for env, want := range map[string]string{
		"CAUSEWAY_NODENAME=x":         "names no setting",
		"CAUSEWAY_RESYNC=often":       "CAUSEWAY_RESYNC",
		"CAUSEWAY_SPEAKER_UID=nobody": "CAUSEWAY_SPEAKER_UID",
	} {
		if err := fromEnvironment(agentCommand().Flags(), []string{env}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", env, err)
		}
	}
}

// TestCheck: a setting that cannot work ends the agent at its start and says what would.
func TestCheck(t *testing.T) {
	for args, want := range map[string]string{
		"":                               "",
		"--node-name=":                   "--node-name",
		"--run-dir=run":                  "absolute path",
		"--state-dir=":                   "absolute path",
		"--secret-namespace=":            "--secret-namespace",
		"--resync=-1s":                   "1s or more",
		"--resync=1ms":                   "1s or more",
		"--resync=5s":                    "",
		"--ip-autodetection-method=eth0": "--ip-autodetection-method",
		"--ip6-autodetection-method=cidr=10.0.0.0/8": "--ip6-autodetection-method",
		"--ip-autodetection-method=interface=eth.*":  "",
		"--iptables-backend=nftables":                "auto, legacy or nft",
		"--iptables-backend=":                        "auto, legacy or nft",
		"--iptables-backend=nft":                     "",
		"--proc-sys=proc/sys":                        "absolute path",
		"--speaker-uid=0":                            "1 or more",
		"--speaker-uid=-7":                           "1 or more",
		"--gobgp-tcp=0.0.0.0:50051":                  "loopback",
		"--gobgp-tcp=127.0.0.1:50051":                "",
		"--gobgp-tcp=localhost:50051":                "loopback",
		"--gobgp-tcp=[::1]:50051":                    "",
		"--kubeconfig=/k":                            "--datastore kubernetes",
		"--kubeconfig=/k --datastore=kubernetes":     "",
		"--health-address=:9099":                     "loopback",
		"--health-address=127.0.0.1:9099":            "",
		"--metrics-address=9091":                     "HOST:PORT",
		"--metrics-address=:9091":                    "",
		"--cni-conf-dir=net.d":                       "absolute path",
		"--cni-bin-dir=/opt/cni/bin":                 "--cleanup",
		"--cni-bin-dir=/opt/cni/bin --cleanup":       "",
		"--log-level=debug":                          "",
		"--gobgp-allow-writes":                       "",
	} {
		o, cmd := newAgentCommand()
		if err := cmd.Flags().Parse(append([]string{"--node-name=n1"}, strings.Fields(args)...)); err != nil {
			t.Fatal(err)
		}
		switch err := o.check(); {
		case (err == nil) != (want == ""):
			t.Errorf("%q: %v", args, err)
		case err != nil && !strings.Contains(err.Error(), want):
			t.Errorf("%q: the error does not say what would be right: %v", args, err)
		}
	}
}
