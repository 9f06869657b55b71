//go:build race

package gobgp

// fullTable is smaller where the speaker is instrumented, and ten times as slow.
const fullTable = 10000
