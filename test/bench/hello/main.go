// Command hello is the least a static Go program can do as a CNI plugin: it answers every
// command with one fixed result. It is the floor under the benchmarks: what remains when
// a plugin does nothing.
package main

import "os"

func main() {
	const result = `{"cniVersion":"1.0.0","supportedVersions":["1.0.0"],"ips":[{"address":"192.0.2.1/32"}]}`
	if _, err := os.Stdout.WriteString(result); err != nil {
		os.Exit(1)
	}
}
