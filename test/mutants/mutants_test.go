package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A change of the source that takes a mutant's text away is noticed before the mutants are run, which takes long.
func TestTexts(t *testing.T) {
	const root = "../.."
	for _, m := range mutants {
		text, err := os.ReadFile(filepath.Join(root, m.file))
		if err != nil || strings.Count(string(text), m.old) != 1 {
			t.Errorf("%s: %s has the text %d times, %v", m.class, m.file, strings.Count(string(text), m.old), err)
		}
		tests, err := filepath.Glob(filepath.Join(root, m.packages, "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, file := range tests {
			text, err := os.ReadFile(file)
			found = found || err == nil && strings.Contains(string(text), "func "+m.test+"(")
		}
		if !found {
			t.Errorf("%s: %s has no %s", m.class, m.packages, m.test)
		}
	}
}
