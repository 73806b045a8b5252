package job

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	rt "github.com/yare-dev/yare/reconcile/reconciletest"
	"github.com/yare-dev/yare/run"
)

func ptr[T any](v T) *T { return &v }

func newJob(parallelism, completions int32, mods ...func(*batchv1.Job)) *batchv1.Job {
	l := map[string]string{batchv1.JobNameLabel: "j", batchv1.ControllerUidLabel: "u"}
	j := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "j"}, Spec: batchv1.JobSpec{
		Parallelism: &parallelism, Completions: &completions, BackoffLimit: ptr(int32(6)), Selector: &metav1.LabelSelector{MatchLabels: l},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: l}, Spec: corev1.PodSpec{
			RestartPolicy: corev1.RestartPolicyNever, Containers: []corev1.Container{{Name: "c"}}}}}}
	for _, m := range mods {
		m(j)
	}
	return j
}

func indexedJob(j *batchv1.Job) { j.Spec.CompletionMode = ptr(batchv1.IndexedCompletion) }
func perIndex(n int32) func(*batchv1.Job) {
	return func(j *batchv1.Job) {
		indexedJob(j)
		j.Spec.BackoffLimitPerIndex, j.Spec.BackoffLimit = &n, ptr(int32(1<<31-1))
	}
}

// outcome is how a pod ends: never, by success (0), or with an exit code.
type outcome func(p *corev1.Pod, nth int) (code int32, ends bool)

func succeeds(*corev1.Pod, int) (int32, bool) { return 0, true }
func fails(*corev1.Pod, int) (int32, bool)    { return 1, true }
func runs(*corev1.Pod, int) (int32, bool)     { return 0, false }

// start runs the controller on j with pods that end a second after they began.
func start(t *testing.T, j *batchv1.Job, how outcome) *rt.Cluster {
	c := rt.New(t)
	d := rt.Deps(t, c)
	nth := 0
	rt.Start(t, d, New(d), rt.Kubelet(c), run.Func("containers", func(ctx context.Context, ready func()) error {
		ready()
		seen := map[string]bool{}
		for e, err := range c.Watch(ctx, api.PodKind, client.Query{}, 0) {
			if err != nil {
				return err
			}
			p, ok := e.Object.(*corev1.Pod)
			if !ok || !api.PodActive(p) || p.Status.Phase != corev1.PodRunning || seen[p.Name] {
				continue
			}
			seen[p.Name] = true
			code, ends := how(p, nth)
			nth++
			if !ends {
				continue
			}
			time.AfterFunc(time.Second, func() {
				if ctx.Err() != nil {
					return
				}
				now, err := client.Get[*corev1.Pod](ctx, c, api.KeyOf(p))
				if err != nil || now.DeletionTimestamp != nil {
					return
				}
				phase := corev1.PodSucceeded
				if code != 0 {
					phase = corev1.PodFailed
				}
				_ = rt.Finish(ctx, c, now, phase, code)
			})
		}
		return nil
	}))
	rt.Create(t, c, j)
	synctest.Wait()
	return c
}

// show prints a status: counts, indexes, then conditions in their order.
func show(j *batchv1.Job) string {
	s := j.Status
	out := fmt.Sprintf("%d active, %d succeeded, %d failed", s.Active, s.Succeeded, s.Failed)
	if s.CompletedIndexes != "" {
		out += ", done " + s.CompletedIndexes
	}
	if s.FailedIndexes != nil && *s.FailedIndexes != "" {
		out += ", lost " + *s.FailedIndexes
	}
	for _, c := range s.Conditions {
		out += fmt.Sprintf("; %s %s %s", c.Type, c.Status, c.Reason)
	}
	return out
}

const (
	complete = "; SuccessCriteriaMet True CompletionsReached; Complete True CompletionsReached"
	backoff  = "; FailureTarget True BackoffLimitExceeded; Failed True BackoffLimitExceeded"
)

func TestOutcomes(t *testing.T) {
	exit := func(action batchv1.PodFailurePolicyAction, code int32) func(*batchv1.Job) {
		return func(j *batchv1.Job) {
			j.Spec.PodFailurePolicy = &batchv1.PodFailurePolicy{Rules: []batchv1.PodFailurePolicyRule{{Action: action,
				OnExitCodes: &batchv1.PodFailurePolicyOnExitCodesRequirement{Operator: "In", Values: []int32{code}}}}}
		}
	}
	firstFail := func(n int) outcome {
		return func(_ *corev1.Pod, nth int) (int32, bool) {
			if nth < n {
				return 1, true
			}
			return 0, true
		}
	}
	index := func(bad string) outcome {
		return func(p *corev1.Pod, _ int) (int32, bool) {
			if p.Annotations[batchv1.JobCompletionIndexAnnotation] == bad {
				return 1, true
			}
			return 0, true
		}
	}
	tests := []struct {
		name string
		job  *batchv1.Job
		how  outcome
		want string
		pods int // made in all
	}{
		{"one", newJob(1, 1), succeeds, "0 active, 1 succeeded, 0 failed" + complete, 1},
		{"parallel", newJob(3, 7), succeeds, "0 active, 7 succeeded, 0 failed" + complete, 7},
		{"none", newJob(3, 0), succeeds, "0 active, 0 succeeded, 0 failed" + complete, 0},
		{"work queue", newJob(3, 0, func(j *batchv1.Job) { j.Spec.Completions = nil }), succeeds, "0 active, 3 succeeded, 0 failed" + complete, 3},
		{"retries", newJob(1, 2), firstFail(3), "0 active, 2 succeeded, 3 failed" + complete, 5},
		{"gives up", newJob(1, 1, func(j *batchv1.Job) { j.Spec.BackoffLimit = ptr(int32(2)) }), fails, "0 active, 0 succeeded, 3 failed" + backoff, 3},
		{"indexed", newJob(2, 5, indexedJob), succeeds, "0 active, 5 succeeded, 0 failed, done 0-4" + complete, 5},
		{"indexed with retry", newJob(5, 5, indexedJob), firstFail(2), "0 active, 5 succeeded, 2 failed, done 0-4" + complete, 7},
		{"per index", newJob(5, 5, perIndex(1)), index("2"), "0 active, 4 succeeded, 2 failed, done 0,1,3,4, lost 2" +
			"; FailureTarget True FailedIndexes; Failed True FailedIndexes", 6},
		{"too many failed indexes", newJob(1, 5, perIndex(0), func(j *batchv1.Job) { j.Spec.MaxFailedIndexes = ptr(int32(1)) }), fails,
			"0 active, 0 succeeded, 2 failed, lost 0,1; FailureTarget True MaxFailedIndexesExceeded; Failed True MaxFailedIndexesExceeded", 2},
		{"fail job", newJob(1, 1, exit(batchv1.PodFailurePolicyActionFailJob, 1)), fails,
			"0 active, 0 succeeded, 1 failed; FailureTarget True PodFailurePolicy; Failed True PodFailurePolicy", 1},
		{"ignored failures", newJob(1, 1, exit(batchv1.PodFailurePolicyActionIgnore, 1)), firstFail(9), "0 active, 1 succeeded, 0 failed" + complete, 10},
		{"fail index", newJob(3, 3, perIndex(5), exit(batchv1.PodFailurePolicyActionFailIndex, 1)), index("1"),
			"0 active, 2 succeeded, 1 failed, done 0,2, lost 1; FailureTarget True FailedIndexes; Failed True FailedIndexes", 3},
		{"success policy", newJob(3, 3, indexedJob, func(j *batchv1.Job) {
			j.Spec.SuccessPolicy = &batchv1.SuccessPolicy{Rules: []batchv1.SuccessPolicyRule{{SucceededIndexes: ptr("1")}}}
		}), func(p *corev1.Pod, _ int) (int32, bool) {
			return 0, p.Annotations[batchv1.JobCompletionIndexAnnotation] == "1"
		},
			"0 active, 1 succeeded, 0 failed, done 1; SuccessCriteriaMet True SuccessPolicy; Complete True SuccessPolicy", 3},
		{"deadline", newJob(2, 2, func(j *batchv1.Job) { j.Spec.ActiveDeadlineSeconds = ptr(int64(60)) }), runs,
			"0 active, 0 succeeded, 2 failed; FailureTarget True DeadlineExceeded; Failed True DeadlineExceeded", 2},
		{"managed by another", newJob(1, 1, func(j *batchv1.Job) { j.Spec.ManagedBy = ptr("x.io/y") }), succeeds, "0 active, 0 succeeded, 0 failed", 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := start(t, tt.job, tt.how)
				time.Sleep(24 * time.Hour)
				if d := cmp.Diff(tt.want, show(rt.Get[*batchv1.Job](t, c, "ns", "j"))); d != "" {
					t.Error(d)
				}
				if n := c.Writes("create pods"); n != tt.pods {
					t.Errorf("%d pods were made, want %d", n, tt.pods)
				}
				for _, p := range rt.List[*corev1.Pod](t, c) {
					if tracked(p) {
						t.Errorf("%s keeps its finalizer", p.Name)
					}
				}
			})
		})
	}
}

func TestSuspend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, newJob(3, 3), runs)
		expect := func(want string) {
			t.Helper()
			synctest.Wait()
			if got := show(rt.Get[*batchv1.Job](t, c, "ns", "j")); got != want {
				t.Errorf("got %s\nwant %s", got, want)
			}
		}
		expect("3 active, 0 succeeded, 0 failed")
		rt.Mutate(t, c, newJob(0, 0), "", func(j *batchv1.Job) { j.Spec.Suspend = ptr(true) })
		expect("0 active, 0 succeeded, 0 failed; Suspended True JobSuspended")
		time.Sleep(time.Hour)
		if n := len(rt.List[*corev1.Pod](t, c)); n != 0 {
			t.Errorf("%d pods of a suspended job", n)
		}
		rt.Mutate(t, c, newJob(0, 0), "", func(j *batchv1.Job) { j.Spec.Suspend = ptr(false) })
		expect("3 active, 0 succeeded, 0 failed; Suspended False JobResumed")
		if s := rt.Get[*batchv1.Job](t, c, "ns", "j").Status.StartTime; !s.Equal(ptr(metav1.Now().Rfc3339Copy())) {
			t.Errorf("started at %v", s)
		}
	})
}

func TestScaleDownIsNoFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, newJob(5, 5, indexedJob), runs)
		rt.Mutate(t, c, newJob(0, 0), "", func(j *batchv1.Job) { j.Spec.Parallelism = ptr(int32(2)) })
		synctest.Wait()
		if got := show(rt.Get[*batchv1.Job](t, c, "ns", "j")); got != "2 active, 0 succeeded, 0 failed" {
			t.Error(got)
		}
	})
}

// A Job that is deleted, in whichever way, leaves no pod that cannot go.
func TestDeletedJobLetsPodsGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, newJob(2, 2), runs)
		rt.Delete(t, c, newJob(0, 0), client.DeleteOptions{})
		synctest.Wait()
		ps := rt.List[*corev1.Pod](t, c)
		if len(ps) != 2 {
			t.Fatalf("%d pods", len(ps))
		}
		for _, p := range ps {
			if tracked(p) {
				t.Errorf("%s keeps its finalizer", p.Name)
			}
		}
	})
}

// A pod whose labels are taken away is not the Job's any more, and can go.
func TestReleasedPodCanGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, newJob(2, 2), runs)
		synctest.Wait()
		pod := rt.List[*corev1.Pod](t, c)[0]
		rt.Mutate(t, c, pod, "", func(p *corev1.Pod) { p.Labels = nil })
		synctest.Wait()
		pod = rt.Get[*corev1.Pod](t, c, pod.Namespace, pod.Name)
		if metav1.GetControllerOf(pod) != nil || tracked(pod) {
			t.Errorf("released pod has owners %v and finalizers %v", pod.OwnerReferences, pod.Finalizers)
		}
		if got := show(rt.Get[*batchv1.Job](t, c, "ns", "j")); got != "2 active, 0 succeeded, 0 failed" {
			t.Error(got)
		}
	})
}

// The controller is stopped after each write in turn; every pod is counted once nevertheless.
func TestCountsOnceWhateverFails(t *testing.T) {
	for fail := range 40 {
		synctest.Test(t, func(t *testing.T) {
			c := rt.New(t)
			d := rt.Deps(t, c)
			n := 0
			c.Refuse = func(verb string, k *api.Kind, _ api.Key) error {
				if verb == "update/status" && k == api.JobKind || verb == "patch" || verb == "create" && k == api.PodKind {
					if n++; n == fail {
						return fmt.Errorf("write %d is lost", n)
					}
				}
				return nil
			}
			rt.Create(t, c, newJob(3, 6))
			rt.Start(t, d, New(d), run.Func("containers", func(ctx context.Context, ready func()) error {
				ready()
				for e := range c.Watch(ctx, api.PodKind, client.Query{}, 0) {
					if p, ok := e.Object.(*corev1.Pod); ok && e.Op == client.Added {
						_ = rt.Finish(ctx, c, p, corev1.PodSucceeded, 0)
					}
				}
				return nil
			}))
			time.Sleep(time.Hour)
			if got := show(rt.Get[*batchv1.Job](t, c, "ns", "j")); got != "0 active, 6 succeeded, 0 failed"+complete {
				t.Errorf("with write %d lost: %s", fail, got)
			}
		})
	}
}

func TestIndexes(t *testing.T) {
	for _, s := range []string{"", "0", "0,1", "0-2", "0,2-4,7", "1,3,5-9"} {
		if got := parseIndexes(s, 100).String(); got != s {
			t.Errorf("%q became %q", s, got)
		}
	}
	if got := parseIndexes("0-9,x,-,20", 5).String(); got != "0-4" {
		t.Error(got)
	}
}

// Sets that were changed index by index are those that a map would hold.
func TestIndexesChange(t *testing.T) {
	var set indexes
	want := map[int]bool{}
	for n := range 2000 {
		i := n * n * 7 % 61
		if n%3 == 0 {
			set.remove(i)
			delete(want, i)
		} else {
			set.add(i)
			want[i] = true
		}
		text := set.String()
		if parsed := parseIndexes(text, 100); !slices.Equal(parsed, set) || set.count() != len(want) {
			t.Fatalf("%v became %v, of %d", set, parsed, len(want))
		}
		for i := range 62 {
			if set.has(i) != want[i] || want[set.free(i)] {
				t.Fatalf("%s has %d: %v", text, i, set.has(i))
			}
		}
	}
	if n := parseIndexes("0-4,9,11-20", 100).common(parseIndexes("3-12,20", 100)); n != 6 {
		t.Errorf("%d in common", n)
	}
}

// What a few characters can name costs no more than they do.
func TestManyIndexes(t *testing.T) {
	job := newJob(3, math.MaxInt32, perIndex(0), func(j *batchv1.Job) {
		j.Spec.SuccessPolicy = &batchv1.SuccessPolicy{Rules: []batchv1.SuccessPolicyRule{{SucceededIndexes: ptr("0-2147483645")}}}
		j.Status.CompletedIndexes, j.Status.FailedIndexes = "0-1000000000", ptr("1000000002-2147483640")
	})
	if n := testing.AllocsPerRun(1, func() {
		v := look(job, nil, time.Now())
		if end := v.outcome(); end != nil {
			t.Errorf("ended: %v", *end)
		}
		var got []int
		for _, b := range v.want().create {
			got = append(got, b.index)
		}
		if !slices.Equal(got, []int{1000000001, 2147483641, 2147483642}) {
			t.Errorf("%v are next", got)
		}
	}); n > 100 {
		t.Errorf("%.0f allocations", n)
	}
}

func FuzzIndexes(f *testing.F) {
	f.Add("0,2-4,7")
	f.Fuzz(func(t *testing.T, s string) {
		set := parseIndexes(s, 1000)
		if again := parseIndexes(set.String(), 1000); again.String() != set.String() {
			t.Errorf("%q: %q became %q", s, set, again)
		}
	})
}

func TestNewPod(t *testing.T) {
	p := newPod(newJob(1, 3, perIndex(2)), birth{index: 2, failures: 1})
	got := []string{p.GenerateName, p.Spec.Hostname, p.Annotations[batchv1.JobCompletionIndexAnnotation], p.Labels[batchv1.JobCompletionIndexAnnotation],
		p.Annotations[batchv1.JobIndexFailureCountAnnotation], p.Spec.Containers[0].Env[0].Name, p.Spec.Containers[0].Env[0].ValueFrom.FieldRef.FieldPath,
		strings.Join(p.Finalizers, " ")}
	want := []string{"j-2-", "j-2", "2", "2", "1", "JOB_COMPLETION_INDEX", "metadata.labels['batch.kubernetes.io/job-completion-index']", batchv1.JobTrackingFinalizer}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

func TestSuccessRule(t *testing.T) {
	job := func(rules ...batchv1.SuccessPolicyRule) *batchv1.Job {
		return newJob(1, 10, func(j *batchv1.Job) { j.Spec.SuccessPolicy = &batchv1.SuccessPolicy{Rules: rules} })
	}
	tests := []struct {
		name string
		job  *batchv1.Job
		done string
		want string
	}{
		{"count", job(batchv1.SuccessPolicyRule{SucceededCount: ptr(int32(2))}), "3,7", "Matched rules at index 0"},
		{"too few", job(batchv1.SuccessPolicyRule{SucceededCount: ptr(int32(3))}), "3,7", ""},
		{"all of", job(batchv1.SuccessPolicyRule{SucceededIndexes: ptr("1-2")}), "1,2", "Matched rules at index 0"},
		{"not all of", job(batchv1.SuccessPolicyRule{SucceededIndexes: ptr("1-3")}), "1,2,5", ""},
		{"some of", job(batchv1.SuccessPolicyRule{SucceededIndexes: ptr("1-3"), SucceededCount: ptr(int32(2))}), "1,2,5", "Matched rules at index 0"},
		{"second", job(batchv1.SuccessPolicyRule{SucceededIndexes: ptr("9")}, batchv1.SuccessPolicyRule{SucceededCount: ptr(int32(1))}), "0",
			"Matched rules at index 1"},
		{"none", newJob(1, 10), "0-9", ""},
	}
	for _, tt := range tests {
		if got := successRule(tt.job, parseIndexes(tt.done, 10)); got != tt.want {
			t.Errorf("%s: %q", tt.name, got)
		}
	}
}
