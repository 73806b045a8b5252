package suite

import (
	"cmp"
	"fmt"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/onsi/ginkgo/v2/types"
)

// A test that fails outside of its own goroutine takes its process with it, and ginkgo then writes no report for any.
// What it printed for each test as that ended is still there:
//
//   - [FAILED] [0.067 seconds]
//     [sig-apps] CronJob [It] should be scheduled [Conformance] [sig-apps, Conformance]
//     ...
//     << Timeline
//
//     [FAILED] the message
//     In [It] at: ...
//     ------------------------------
var (
	endLine  = regexp.MustCompile(`(?m)^(?:•|S|P) (?:\[([A-Z]+)\] )?\[([0-9.]+) seconds\]\n(.*)\n`)
	nodeText = regexp.MustCompile(` \[(It|BeforeEach|JustBeforeEach|AfterEach|JustAfterEach|DeferCleanup \(Each\))\]`)
)

const endBlock = "\n------------------------------"

// readLog adds the results of the given tests that ginkgo's output in the file at path tells.
func readLog(path string, tests []string, found map[string]Result) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read output: %w", err)
	}
	text := string(raw)
	for _, at := range endLine.FindAllStringSubmatchIndex(text, -1) {
		state := ""
		if at[2] >= 0 {
			state = text[at[2]:at[3]]
		}
		name := nameIn(text[at[6]:at[7]], tests)
		if name == "" {
			continue
		}
		block, _, _ := strings.Cut(text[at[1]:], endBlock)
		var seconds float64
		if _, err := fmt.Sscanf(text[at[4]:at[5]], "%g", &seconds); err != nil {
			return fmt.Errorf("read time of %s: %w", name, err)
		}
		message := messageIn(block, state)
		found[name] = Result{Name: name, Outcome: logged(state, message), Time: time.Duration(seconds * float64(time.Second)), Message: message}
	}
	return nil
}

// nameIn is the test that a heading speaks of, or empty. The longest name counts: some begin like others.
func nameIn(heading string, tests []string) string {
	heading = nodeText.ReplaceAllString(heading, "")
	var found string
	for _, t := range tests {
		if strings.HasPrefix(heading, t) && len(t) > len(found) {
			found = t
		}
	}
	return found
}

// logged is the outcome for what ginkgo prints of a state, nothing for a test that passed.
func logged(state, message string) Outcome {
	if state == "" {
		return Passed
	}
	for _, s := range []types.SpecState{
		types.SpecStatePending, types.SpecStateSkipped, types.SpecStateInterrupted, types.SpecStateAborted, types.SpecStateTimedout,
	} {
		if strings.EqualFold(s.String(), state) {
			return outcome(s, message)
		}
	}
	return outcome(types.SpecStateFailed, message)
}

// messageIn is the failure that a block ends with.
func messageIn(block, state string) string {
	if state == "" {
		return ""
	}
	if _, after, ok := strings.Cut(block, "<< Timeline\n"); ok {
		block = after
	}
	message, _, _ := strings.Cut(block, "\n  In [")
	message = strings.TrimSpace(message)
	return cmp.Or(strings.TrimSpace(strings.TrimPrefix(message, "["+state+"]")), "no message")
}
