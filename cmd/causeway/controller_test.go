package main

import (
	"strings"
	"testing"
)

func TestControllerOptions(t *testing.T) {
	for name, tc := range map[string]struct {
		args, environ []string
		want          string // in the error; empty: none
	}{
		"defaults":            {nil, nil, ""},
		"environment":         {nil, []string{"CAUSEWAY_NODE_GRACE=90s", "CAUSEWAY_IPV4_POOL=10.0.0.0/16", "CAUSEWAY_METRICS_ADDRESS=:9097"}, ""},
		"unknown environment": {nil, []string{"CAUSEWAY_IPV4_POOOL=x"}, "names no setting"},
		"grace":               {[]string{"--node-grace=0s"}, nil, "--node-grace"},
		"health":              {[]string{"--health-address=9098"}, nil, "--health-address"},
		"no health":           {[]string{"--health-address="}, nil, "--health-address"},
		"metrics":             {[]string{"--metrics-address=x"}, nil, "--metrics-address"},
		"namespace":           {[]string{"--namespace="}, nil, "--namespace"},
	} {
		o, cmd := newControllerCommand()
		err := cmd.ParseFlags(tc.args)
		if err == nil {
			err = fromEnvironment(cmd.Flags(), tc.environ)
		}
		if err == nil {
			err = o.check()
		}
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
	o, cmd := newControllerCommand()
	if err := fromEnvironment(cmd.Flags(), []string{"CAUSEWAY_IPV6_POOL_NAT_OUTGOING=true", "CAUSEWAY_IPV4_POOL_IPIP=CrossSubnet"}); err != nil {
		t.Fatal(err)
	}
	if d := o.defaults; !d.V4.NATOutgoing || !d.V6.NATOutgoing || d.V4.IPIP != "CrossSubnet" || d.V6.BlockSize != 122 || o.healthAddress != "127.0.0.1:9098" {
		t.Errorf("%+v", o)
	}
}
