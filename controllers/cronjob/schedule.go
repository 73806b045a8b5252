package cronjob

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/robfig/cron/v3"
	batchv1 "k8s.io/api/batch/v1"
)

// tooMany is the number of missed runs from which on they are told about.
const tooMany = 100

// parse returns a CronJob's schedule and the time zone that it names.
func parse(cj *batchv1.CronJob) (s cron.Schedule, zone *time.Location, err error) {
	text := cj.Spec.Schedule
	if z := cj.Spec.TimeZone; z != nil {
		if zone, err = time.LoadLocation(*z); err != nil {
			return nil, nil, problem{"UnknownTimeZone", fmt.Sprintf("invalid timeZone: %q: %v", *z, err)}
		}
		if !strings.Contains(text, "TZ") { // a zone in the schedule itself goes first, as it did before there was the field
			text = "TZ=" + *z + " " + text
		}
	}
	if s, err = cron.ParseStandard(text); err != nil {
		return nil, nil, problem{"UnparseableSchedule", fmt.Sprintf("unparseable schedule: %q : %v", cj.Spec.Schedule, err)}
	}
	return s, zone, nil
}

// problem is something about a CronJob that only its user can change: an event's reason and message.
type problem struct{ reason, message string }

func (p problem) Error() string { return p.message }

// times says which run of a schedule is due and when the next one will be.
type times struct {
	due    time.Time // zero: none
	next   time.Time // zero: never
	missed int64     // runs up to now, due among them
}

// look returns the latest time of s after last and not after now. Of several that were missed only the latest is due.
// What is older than deadline (zero: none) was missed for good.
func look(s cron.Schedule, last, now time.Time, deadline time.Duration) (times, error) {
	since := last
	if oldest := now.Add(-deadline); deadline > 0 && oldest.After(since) {
		since = oldest
	}
	first := s.Next(since)
	if first.IsZero() {
		return times{}, nil // February has no 31st
	}
	if first.After(now) {
		return times{next: first}, nil
	}
	second := s.Next(first)
	if second.IsZero() || second.After(now) {
		return times{due: first, next: second, missed: 1}, nil
	}
	interval := second.Sub(first).Round(time.Second)
	if interval < time.Second {
		return times{}, errors.New("time difference between two schedules is less than 1 second")
	}
	t := times{missed: int64(now.Sub(first)/interval) + 1}
	// From one interval before the estimate on, since intervals may differ.
	at := s.Next(first.Add(time.Duration(t.missed-2) * interval))
	for ; !at.IsZero() && !at.After(now); at = s.Next(at) {
		t.due = at
	}
	t.next = at
	return t, nil
}
