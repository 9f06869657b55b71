package onesubnet

import (
	"strings"
	"testing"
)

func contains(err error, word string) bool { return err != nil && strings.Contains(err.Error(), word) }

// indexOfDocument is where the YAML document that holds word begins.
func indexOfDocument(t *testing.T, text, word string) int {
	t.Helper()
	at := strings.Index(text, word)
	if at < 0 {
		t.Fatalf("no %q in\n%s", word, text)
	}
	return strings.LastIndex(text[:at], "---\n")
}
