package pod

import "time"

// delays are growing waits, by name. Not for concurrent use.
type delays struct {
	first, most time.Duration
	forget      time.Duration // a name that was not used for so long starts again with first
	byName      map[string]delay
}

type delay struct {
	last  time.Duration
	since time.Time
}

func newDelays(first, most, forget time.Duration) *delays {
	return &delays{first: first, most: most, forget: forget, byName: map[string]delay{}}
}

// grow notes a failure of the name at a time and returns until when to wait.
func (d *delays) grow(name string, now time.Time) time.Time {
	have, ok := d.byName[name]
	switch {
	case !ok, d.forget > 0 && now.Sub(have.since) > have.last+d.forget:
		have.last = min(d.first, d.most)
	default:
		have.last = min(2*have.last, d.most)
	}
	have.since = now
	d.byName[name] = have
	return now.Add(have.last)
}

// until returns until when the name has to wait; zero when it has not failed.
func (d *delays) until(name string) time.Time {
	if have, ok := d.byName[name]; ok {
		return have.since.Add(have.last)
	}
	return time.Time{}
}

// wait returns the name's current delay.
func (d *delays) wait(name string) time.Duration { return d.byName[name].last }

func (d *delays) reset(name string) { delete(d.byName, name) }

// crashes decides when a container that has ended may run again: at once the first time, then after 10 s, 20 s, and so
// on; anew after it ran long enough.
type crashes struct {
	delays *delays
	seen   map[string]string // name -> ID of the run that was last counted
	until  map[string]time.Time
}

// steady is how long a container must have run for its past to be forgotten.
const steady = 10 * time.Minute

func newCrashes(first, most time.Duration) *crashes {
	return &crashes{delays: newDelays(first, most, steady), seen: map[string]string{}, until: map[string]time.Time{}}
}

// next returns when the container that has ended may start again. The end of each run is counted once.
func (c *crashes) next(name string, ended *Container) time.Time {
	if c.seen[name] == ended.Id {
		return c.until[name]
	}
	at := time.Unix(0, ended.FinishedAt)
	until := at
	if _, again := c.seen[name]; again {
		if ended.FinishedAt-ended.StartedAt > int64(steady) {
			c.delays.reset(name)
		} else {
			until = c.delays.grow(name, at)
		}
	}
	c.seen[name], c.until[name] = ended.Id, until
	return until
}

// wait returns the current delay of the container.
func (c *crashes) wait(name string) time.Duration { return c.delays.wait(name) }
