package report

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/yare-dev/yare/test/conformance/suite"
)

// Ratchet is the set of tests that have passed. A test never leaves it by itself.
type Ratchet struct {
	path  string
	names []string // sorted
}

// ratchetHead explains the file to who opens it.
const ratchetHead = `# The tests of upstream's conformance suite that have passed. A run that includes one of them and does not pass it is
# red. "make conformance-accept" adds the newly passing ones of the last run; lines are taken out by hand only, with the
# reason in the commit.
`

// ReadRatchet reads the file at path; one that does not exist is empty.
func ReadRatchet(path string) (*Ratchet, error) {
	names, err := suite.ReadLines(path)
	if err != nil && !os.IsNotExist(err) {
		return nil, fmt.Errorf("read ratchet: %w", err)
	}
	slices.Sort(names)
	return &Ratchet{path: path, names: slices.Compact(names)}, nil
}

// Has tells whether the test has passed before.
func (r *Ratchet) Has(name string) bool {
	_, ok := slices.BinarySearch(r.names, name)
	return ok
}

// Lost returns the results that turn a run red: tests that have passed before and did not in this run, in their order.
func (r *Ratchet) Lost(rs []suite.Result) []suite.Result {
	return slices.DeleteFunc(slices.Clone(rs), func(x suite.Result) bool {
		return x.Outcome == suite.Passed || !r.Has(x.Name)
	})
}

// New returns the tests that passed for the first time, in their order.
func (r *Ratchet) New(rs []suite.Result) []string {
	var names []string
	for _, x := range rs {
		if x.Outcome == suite.Passed && !r.Has(x.Name) {
			names = append(names, x.Name)
		}
	}
	return names
}

// Add takes up names and writes the file.
func (r *Ratchet) Add(names []string) error {
	r.names = append(r.names, names...)
	slices.Sort(r.names)
	r.names = slices.Compact(r.names)
	text := ratchetHead + strings.Join(r.names, "\n") + "\n"
	if err := os.WriteFile(r.path, []byte(text), 0o644); err != nil {
		return fmt.Errorf("write ratchet: %w", err)
	}
	return nil
}
