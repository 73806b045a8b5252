package fairness

import (
	"sync"
	"time"
)

// longest is what a refused client is told to wait at most, in seconds.
const longest = 32

// drops says when the clients of a level whose requests are refused are to come again: in one second, and later the longer it
// goes on, as upstream tells them. Queues come before refusals, so that few of these show that too much is asked. The zero
// value is ready.
type drops struct {
	mu     sync.Mutex
	counts [longest + 1]struct{ second, n int64 } // refusals by second, in the place of the second's remainder
	last   int64                                  // the second of the last refusal
	after  int64                                  // seconds
	raised int64                                  // the second in which after was made longer
}

// refuse counts a refusal and returns for how many seconds the client is to stay away: twice as many as before when in as
// many seconds three times as many were refused, and one less when fewer were.
func (d *drops) refuse(now time.Time) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.after = max(d.after, 1)
	second := now.Unix()
	if second > d.last {
		d.last = second
		switch n := d.since(second - d.after); {
		case n >= 3*d.after && second-d.raised >= d.after:
			d.after, d.raised = min(2*d.after, longest), second
		case n < d.after:
			d.after = max(d.after-1, 1)
		}
	}
	c := &d.counts[second%int64(len(d.counts))]
	if c.second != second {
		c.second, c.n = second, 0
	}
	c.n++
	return int(d.after)
}

// since is how many were refused from a second on.
func (d *drops) since(second int64) (n int64) {
	for _, c := range d.counts {
		if c.second >= second {
			n += c.n
		}
	}
	return n
}
