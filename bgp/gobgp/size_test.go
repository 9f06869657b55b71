//go:build !race

package gobgp

const fullTable = 100000
