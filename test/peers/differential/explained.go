package differential

import (
	"fmt"
	"os"
	"regexp"
	"strings"
)

// Explained is a difference that is known, with its reason.
type Explained struct {
	Request, Line *regexp.Regexp
	Reason        string

	used bool
}

// readExplained reads the file of explained differences. An entry is a reason over one or more lines that open with "# ", and
// under it lines "REQUEST => DIFFERENCE", both regular expressions that must match from the beginning.
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
		request, difference, ok := strings.Cut(line, " => ")
		if !ok || len(reason) == 0 {
			return nil, fmt.Errorf("%s:%d: not a request and a difference under a reason", file, n+1)
		}
		e := &Explained{Reason: strings.Join(reason, " ")}
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
