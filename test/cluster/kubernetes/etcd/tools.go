//go:build tools

// Package etcd names what is built out of this module's requirements.
package etcd

import _ "go.etcd.io/etcd/server/v3"
