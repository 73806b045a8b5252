package cronjob

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	rt "github.com/yare-dev/yare/reconcile/reconciletest"
)

func at(text string) time.Time {
	t, err := time.Parse("2006-01-02 15:04:05", text)
	if err != nil {
		panic(err)
	}
	return t
}

func ptr[T any](v T) *T { return &v }

func cronJob(schedule string, change ...func(*batchv1.CronJob)) *batchv1.CronJob {
	cj := &batchv1.CronJob{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "c", UID: "cj", CreationTimestamp: metav1.NewTime(at("2026-01-01 00:00:30"))},
		Spec: batchv1.CronJobSpec{Schedule: schedule}}
	for _, f := range change {
		f(cj)
	}
	return cj
}

func last(text string) func(*batchv1.CronJob) {
	return func(c *batchv1.CronJob) { c.Status.LastScheduleTime = ptr(metav1.NewTime(at(text))) }
}

func deadline(n int64) func(*batchv1.CronJob) {
	return func(c *batchv1.CronJob) { c.Spec.StartingDeadlineSeconds = &n }
}

func policy(p batchv1.ConcurrencyPolicy) func(*batchv1.CronJob) {
	return func(c *batchv1.CronJob) { c.Spec.ConcurrencyPolicy = p }
}

func zone(z string) func(*batchv1.CronJob) {
	return func(c *batchv1.CronJob) { c.Spec.TimeZone = &z }
}

func active(names ...string) func(*batchv1.CronJob) {
	return func(c *batchv1.CronJob) {
		for _, n := range names {
			c.Status.Active = append(c.Status.Active, corev1.ObjectReference{Name: n, UID: job(n, "").UID})
		}
	}
}

func job(name, how string) *batchv1.Job {
	j := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID("uid-" + name)}}
	if how != "" {
		j.Status.Conditions = []batchv1.JobCondition{{Type: batchv1.JobConditionType(how), Status: corev1.ConditionTrue}}
		j.Status.StartTime = ptr(metav1.NewTime(at("2026-01-01 00:00:00").Add(time.Duration(len(name)) * time.Minute)))
		j.Status.CompletionTime = ptr(metav1.NewTime(at("2026-01-01 09:00:00")))
	}
	return j
}

// started is the Job of a run.
func started(run, how string) *batchv1.Job {
	cj := cronJob("")
	j := job(jobName(cj, at(run)), how)
	j.Annotations = map[string]string{batchv1.CronJobScheduledTimestampAnnotation: at(run).Format(time.RFC3339)}
	return j
}

func keeps(n int32) func(*batchv1.CronJob) {
	return func(c *batchv1.CronJob) { c.Spec.SuccessfulJobsHistoryLimit = &n }
}

func (p plan) String() string {
	var parts []string
	for _, j := range p.remove {
		parts = append(parts, "-"+j.Name)
	}
	if p.create != nil {
		parts = append(parts, "+"+p.create.Annotations[batchv1.CronJobScheduledTimestampAnnotation])
	}
	for _, n := range p.notes {
		parts = append(parts, n.reason)
	}
	for _, r := range p.status.Active {
		parts = append(parts, "active "+r.Name)
	}
	return strings.Join(append(parts, "after "+p.after.Truncate(time.Second).String()), ", ")
}

func TestDecide(t *testing.T) {
	for _, tt := range []struct {
		name string
		cj   *batchv1.CronJob
		jobs []*batchv1.Job
		now  string
		want string
	}{
		{"not yet", cronJob("0 * * * *"), nil, "2026-01-01 00:59:00", "after 1m0s"},
		{"due", cronJob("0 * * * *"), nil, "2026-01-01 01:00:00", "+2026-01-01T01:00:00Z, after 1h0m0s"},
		{"done", cronJob("0 * * * *", last("2026-01-01 01:00:00")), nil, "2026-01-01 01:00:10", "after 59m50s"},
		{"the latest of what was missed", cronJob("0 * * * *"), nil, "2026-01-01 05:30:00", "+2026-01-01T05:00:00Z, after 30m0s"},
		{"very many were missed", cronJob("* * * * *"), nil, "2026-01-01 05:30:30", "+2026-01-01T05:30:00Z, TooManyMissedTimes, after 30s"},
		{"unequal intervals", cronJob("30 6-16/4 * * 1-5"), nil, "2026-01-02 11:00:00", "+2026-01-02T10:30:00Z, after 3h30m0s"},
		{"at intervals", cronJob("@every 90m", last("2026-01-01 01:00:00")), nil, "2026-01-01 02:31:00", "+2026-01-01T02:30:00Z, after 1h29m0s"},
		{"within the deadline", cronJob("0 * * * *", deadline(600)), nil, "2026-01-01 05:05:00", "+2026-01-01T05:00:00Z, after 55m0s"},
		{"too late", cronJob("0 * * * *", deadline(60)), nil, "2026-01-01 05:05:00", "after 55m0s"},
		{"in another zone", cronJob("0 9 * * *", zone("Asia/Tokyo")), nil, "2026-01-01 00:01:00", "after 23h59m0s"},
		{"in another zone, due", cronJob("2 9 * * *", zone("Asia/Tokyo")), nil, "2026-01-01 00:02:00", "+2026-01-01T09:02:00+09:00, after 24h0m0s"},
		{"in no zone", cronJob("0 9 * * *", zone("Atlantis")), nil, "2026-01-01 09:00:00", "UnknownTimeZone, after 0s"},
		{"not to be read", cronJob("every day"), nil, "2026-01-01 09:00:00", "UnparseableSchedule, after 0s"},
		{"never", cronJob("0 0 31 2 *"), nil, "2026-01-01 09:00:00", "after 0s"},
		{"suspended", cronJob("0 * * * *", func(c *batchv1.CronJob) { c.Spec.Suspend = ptr(true) }), nil, "2026-01-01 01:00:00", "after 0s"},
		{"being deleted", cronJob("0 * * * *", func(c *batchv1.CronJob) { c.DeletionTimestamp = &c.CreationTimestamp }), nil, "2026-01-01 01:00:00", "after 0s"},
		{"beside another", cronJob("0 * * * *", active("a")), []*batchv1.Job{job("a", "")}, "2026-01-01 01:00:00", "+2026-01-01T01:00:00Z, active a, after 1h0m0s"},
		{"not beside another", cronJob("0 * * * *", active("a"), policy(batchv1.ForbidConcurrent)), []*batchv1.Job{job("a", "")}, "2026-01-01 01:00:00",
			"JobAlreadyActive, active a, after 1h0m0s"},
		{"in place of another", cronJob("0 * * * *", active("a"), policy(batchv1.ReplaceConcurrent)), []*batchv1.Job{job("a", "")}, "2026-01-01 01:00:00",
			"-a, +2026-01-01T01:00:00Z, after 1h0m0s"},
		{"one ended", cronJob("0 * * * *", active("a", "b")), []*batchv1.Job{job("a", "Complete"), job("b", "")}, "2026-01-01 00:30:00",
			"SawCompletedJob, active b, after 30m0s"},
		{"one is gone", cronJob("0 * * * *", active("a")), nil, "2026-01-01 00:30:00", "MissingJob, after 30m0s"},
		{"one is somebody's", cronJob("0 * * * *"), []*batchv1.Job{job("x", "")}, "2026-01-01 00:30:00", "UnexpectedJob, after 30m0s"},
		{"history", cronJob("0 * * * *", func(c *batchv1.CronJob) {
			c.Spec.SuccessfulJobsHistoryLimit, c.Spec.FailedJobsHistoryLimit = ptr(int32(1)), ptr(int32(0))
		}),
			[]*batchv1.Job{job("aaa", "Complete"), job("bb", "Complete"), job("c", "Failed")}, "2026-01-01 00:30:00", "-bb, -c, after 30m0s"},
		{"started, and not noted", cronJob("0 * * * *"), []*batchv1.Job{started("2026-01-01 01:00:00", "Failed")}, "2026-01-01 01:00:10", "after 59m50s"},
		{"started, and one before was noted", cronJob("0 * * * *", last("2026-01-01 01:00:00")),
			[]*batchv1.Job{started("2026-01-01 02:00:00", "Complete"), started("2026-01-01 01:00:00", "Complete")}, "2026-01-01 02:00:10", "after 59m50s"},
		{"the one that is noted is not the last", cronJob("0 * * * *", last("2026-01-01 01:00:00")), []*batchv1.Job{started("2026-01-01 01:00:00", "Complete")},
			"2026-01-01 02:00:00", "+2026-01-01T02:00:00Z, after 1h0m0s"},
		{"history stays until it is noted", cronJob("0 * * * *", keeps(0)), []*batchv1.Job{started("2026-01-01 01:00:00", "Complete")},
			"2026-01-01 01:00:10", "after 59m50s"},
		{"history that is noted", cronJob("0 * * * *", keeps(0), last("2026-01-01 01:00:00")), []*batchv1.Job{started("2026-01-01 01:00:00", "Complete")},
			"2026-01-01 01:00:10", "-c-29453820, after 59m50s"},
	} {
		if got := decide(tt.cj, tt.jobs, at(tt.now)).String(); got != tt.want {
			t.Errorf("%s:\ngot  %s\nwant %s", tt.name, got, tt.want)
		}
	}
}

// A run whose start was not noted at once is not started again when its Job is gone.
func TestStartsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := rt.New(t)
		d := rt.Deps(t, c)
		lost := false
		c.Refuse = func(verb string, k *api.Kind, _ api.Key) error {
			if verb == "update/status" && k == api.CronJobKind && !lost {
				lost = true
				return errors.New("the write is lost")
			}
			return nil
		}
		cj := cronJob("0 0 1 * *")
		cj.UID = ""
		rt.Create(t, c, cj)
		rt.Start(t, d, New(d))
		for len(rt.List[*batchv1.Job](t, c)) == 0 {
			time.Sleep(time.Minute)
		}
		time.Sleep(time.Minute)
		rt.Delete(t, c, rt.List[*batchv1.Job](t, c)[0], client.DeleteOptions{})
		time.Sleep(24 * time.Hour)
		if n := c.Writes("create jobs.batch"); n != 1 || !lost {
			t.Errorf("started %d times", n)
		}
	})
}

// A CronJob runs every hour for a day, keeps its history short and tells of its last success.
func TestConverges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := rt.New(t)
		d := rt.Deps(t, c)
		cj := cronJob("0 * * * *", policy(batchv1.ForbidConcurrent))
		cj.UID, cj.Spec.SuccessfulJobsHistoryLimit = "", ptr(int32(3))
		rt.Create(t, c, cj)
		rt.Start(t, d, New(d))
		finish := func(how batchv1.JobConditionType) (names []string) {
			for _, j := range rt.List[*batchv1.Job](t, c) {
				if over, _ := ended(j); over {
					continue
				}
				names = append(names, j.Name)
				rt.Mutate(t, c, j, "status", func(j *batchv1.Job) {
					j.Status.StartTime, j.Status.CompletionTime = ptr(metav1.Now()), ptr(metav1.Now())
					j.Status.Conditions = []batchv1.JobCondition{{Type: how, Status: corev1.ConditionTrue}}
				})
			}
			return names
		}
		time.Sleep(time.Minute) // away from the hour
		begin := time.Now().Truncate(time.Hour)
		var ran []string
		for range 24 {
			time.Sleep(time.Hour)
			ran = append(ran, finish(batchv1.JobComplete)...)
		}
		var want []string
		for h := range ran {
			want = append(want, fmt.Sprintf("c-%d", begin.Add(time.Duration(h+1)*time.Hour).Unix()/60))
		}
		if len(ran) < 23 || !slices.Equal(ran, want) {
			t.Errorf("ran %v, want %v", ran, want)
		}
		synctest.Wait()
		got := rt.Get[*batchv1.CronJob](t, c, "ns", "c").Status
		if n := len(rt.List[*batchv1.Job](t, c)); n != 3 || len(got.Active) != 0 || got.LastSuccessfulTime == nil {
			t.Errorf("%d jobs are kept, status %+v", n, got)
		}
		time.Sleep(2 * time.Hour) // the second is forbidden while the first runs
		if got := rt.Get[*batchv1.CronJob](t, c, "ns", "c").Status; len(got.Active) != 1 {
			t.Errorf("status %+v", got)
		}
		rt.Delete(t, c, rt.Get[*batchv1.CronJob](t, c, "ns", "c"), client.DeleteOptions{})
		time.Sleep(2 * time.Hour)
		if n := len(rt.List[*batchv1.Job](t, c)); n != 4 {
			t.Errorf("%d jobs after the end", n)
		}
	})
}
