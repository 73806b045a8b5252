package differential

import (
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
)

// Explained is a difference that is known, with its reason.
type Explained struct {
	Request, Line *regexp.Regexp
	Reason        string
	Sometimes     bool // it depends on who is faster

	used bool
}

// readExplained reads the file of explained differences. An entry is a reason over one or more lines that open with "# ", and
// under it lines "REQUEST => DIFFERENCE", both regular expressions that must match from the beginning. After "? " stands one that
// is not met in each run.
func readExplained(file string) (all []*Explained, err error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var reason []string
	inReason := false
	for n, line := range strings.Split(string(text), "\n") {
		if words, ok := strings.CutPrefix(line, "# "); ok {
			if !inReason {
				reason = nil
			}
			reason, inReason = append(reason, words), true
			continue
		}
		inReason = false
		if strings.TrimSpace(line) == "" {
			reason = nil
			continue
		}
		line, sometimes := strings.CutPrefix(line, "? ")
		request, difference, ok := strings.Cut(line, " => ")
		if !ok || len(reason) == 0 {
			return nil, fmt.Errorf("%s:%d: not a request and a difference under a reason", file, n+1)
		}
		e := &Explained{Reason: strings.Join(reason, " "), Sometimes: sometimes, used: sometimes}
		if e.Request, err = regexp.Compile("^(?:" + request + ")"); err != nil {
			return nil, fmt.Errorf("%s:%d: %w", file, n+1, err)
		}
		if e.Line, err = regexp.Compile("^(?:" + difference + ")"); err != nil {
			return nil, fmt.Errorf("%s:%d: %w", file, n+1, err)
		}
		all = append(all, e)
	}
	return all, nil
}

// explain reports whether a difference is explained.
func explain(all []*Explained, request, line string) bool {
	for _, e := range all {
		if e.Request.MatchString(request) && e.Line.MatchString(line) {
			e.used = true
			return true
		}
	}
	return false
}

// open are the differences that are neither mended nor explained yet, by request and path: the test tells of others, and of those
// that are mended. It is a list to make empty.
type open map[string]bool // whether it was met

func readOpen(file string) (open, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	o := open{}
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimRight(line, "\n"); line != "" && !strings.HasPrefix(line, "#") {
			o[line] = false
		}
	}
	return o, nil
}

// openKey is a difference without the values.
func openKey(difference string) string {
	request, line, _ := strings.Cut(difference, " => ")
	path, _, _ := strings.Cut(line, ": ")
	return request + " => " + path
}

// fresh returns the differences that are not open.
func (o open) fresh(differences []string) (fresh []string) {
	for _, d := range differences {
		key := openKey(d)
		if _, known := o[key]; !known {
			fresh = append(fresh, d)
			continue
		}
		o[key] = true
	}
	return fresh
}

// mended returns what is open and was not met.
func (o open) mended() (keys []string) {
	for key, met := range o {
		if !met {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}

func writeOpen(file string, differences []string) error {
	keys := map[string]bool{}
	for _, d := range differences {
		keys[openKey(d)] = true
	}
	head := "# Differences that are neither mended nor explained yet. The test rewrites this file with -accept; it is to become empty.\n"
	return os.WriteFile(file, []byte(head+strings.Join(slices.Sorted(maps.Keys(keys)), "\n")+"\n"), 0o644)
}
