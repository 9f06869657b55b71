package iptables

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRelease(t *testing.T) {
	for version, want := range map[string]string{
		"iptables v1.8.9 (nf_tables)": "",
		"iptables v1.6.2":             "",
		"iptables v1.6.1":             "release 1.6.1 is too old; 1.6.2 or later",
		"iptables v1.4.21":            "release 1.4.21 is too old",
		"no such thing":               "cannot be told",
	} {
		name := filepath.Join(t.TempDir(), "iptables-nft")
		if err := os.WriteFile(name, fmt.Appendf(nil, "#!/bin/sh\necho '%s'\n", version), 0o755); err != nil {
			t.Fatal(err)
		}
		err := programs{save: name + "-save"}.recentEnough()
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", version, err)
		}
	}
}
