package pod

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/kubelet/logs"
	"github.com/yare-dev/yare/kubelet/probe"
	"github.com/yare-dev/yare/kubelet/resources"
	"github.com/yare-dev/yare/kubelet/spec"
)

// worker brings one pod to what its spec says, and keeps it there.
type worker struct {
	*Pods
	uid    types.UID
	log    *slog.Logger
	static bool
	wake   chan struct{}

	mu       sync.Mutex
	pod      *corev1.Pod // what the source said last
	mirror   *corev1.Pod // of a static pod
	gone     bool        // the source has it no more
	evicted  *eviction   // nil: it may go on
	admitted bool
	given    allocation // what its containers may use; nil before it is admitted
	deferred *Condition // why the node does not give what the spec wants now
	fresh    bool       // what the pod refers to has changed: earlier failures do not count
	over     bool       // nothing of it runs any more, and never will
	anew     bool       // the runtime had nothing of this static pod: what its mirror says is of an earlier life
	written  *corev1.Pod

	// The rest belongs to the worker's goroutine.

	viewer     *viewer
	jobs       *jobs
	probes     *probe.Set
	ending     *ending
	verdict    *Condition
	disrupted  *Condition // why the node ended it for its own sake
	noticed    bool       // that it is evicted
	refused    bool       // the verdict came before anything of it was made
	started    time.Time
	waiting    map[string]*Condition
	crashes    *crashes
	retries    *delays // of what failed without a word of the pod's: sandbox, volumes, containers
	pulls      *delays
	pullErrors map[string]string
	backedOff  map[string]time.Time // when it was told last that a pull waits after a failure, by its job's key
	hooks      map[string]string    // containers whose postStart hook failed, and how
	messages   map[string]string
	born       map[string]bool // containers that this worker has started
	unprobed   map[string]bool // containers whose hook had not ended when probes were looked after: they are starting for that long
	timer      time.Time
	rewrite    time.Time // when the status may be written again after that has failed
	moved      bool      // the runtime was changed: look again
	looked     bool      // the runtime was asked what it has
	settled    bool      // nothing is left of a pod that has ended but its containers' logs
	cgroup     string
	limits     resources.Limits // of the pod's cgroup
	resizing   *Condition       // set while containers follow a new allocation; its reason and message tell of failures
	again      map[string]bool  // containers, by ID, that are restarted to be resized
	exposed    map[string]bool  // resolver warnings that were given
	// certificates are those of the pod's volumes.
	certificates map[projection]*certificate
}

func newWorker(p *Pods, pod *corev1.Pod, static bool) *worker {
	w := &worker{
		Pods: p, uid: pod.UID, wake: make(chan struct{}, 1), pod: pod,
		log:    p.log.With("pod", pod.Namespace+"/"+pod.Name, "uid", pod.UID),
		static: static,
		viewer: newViewer(p.cri, pod.UID), waiting: map[string]*Condition{},
		crashes:    newCrashes(10*time.Second, p.config.MaxRestartDelay),
		retries:    newRetries(),
		pulls:      newDelays(10*time.Second, 5*time.Minute, 10*time.Minute),
		pullErrors: map[string]string{}, backedOff: map[string]time.Time{}, hooks: map[string]string{}, messages: map[string]string{},
		born: map[string]bool{}, exposed: map[string]bool{}, again: map[string]bool{}, certificates: map[projection]*certificate{},
	}
	w.evicted = evictedBefore(pod)
	w.jobs = newJobs(w.poke)
	w.probes = probe.NewSet(p.runner, p.ProbeMetrics.Of(pod), w.poke, w.probeFailed)
	return w
}

// isStatic reports whether the pod is from a file, not from the API.
func isStatic(pod *corev1.Pod) bool {
	source := pod.Annotations[spec.ConfigSourceAnnotation]
	return source != "" && source != "api"
}

func (w *worker) set(pod *corev1.Pod) {
	w.mu.Lock()
	w.pod = pod
	w.mu.Unlock()
	w.poke()
}

func (w *worker) setMirror(m *corev1.Pod) {
	w.mu.Lock()
	w.mirror = m
	w.mu.Unlock()
	w.poke()
}

func (w *worker) setGone() {
	w.mu.Lock()
	w.gone = true
	w.mu.Unlock()
	w.poke()
}

func (w *worker) noteAdmitted(given allocation) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.admitted, w.given = true, given
}

func (w *worker) refresh() {
	w.mu.Lock()
	w.fresh = true
	w.mu.Unlock()
	w.poke()
}

// forgive forgets earlier failures when there is reason to hope.
func (w *worker) forgive() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fresh {
		w.fresh, w.retries = false, newRetries()
	}
}

func newRetries() *delays { return newDelays(time.Second, 30*time.Second, 0) }

// takesRoom reports whether the pod was admitted, by this kubelet or the one before, and has not ended. What the API has deleted by force has
// given its room away, although it may run for a while.
func (w *worker) takesRoom() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return (w.admitted || admittedBefore(w.pod)) && !w.over && (w.static || !w.gone)
}

// admittedBefore reports whether the kubelet that ran before this one had taken the pod, which has not ended since.
func admittedBefore(pod *corev1.Pod) bool {
	return pod.Status.StartTime != nil && pod.Status.Phase != corev1.PodSucceeded && pod.Status.Phase != corev1.PodFailed
}

// poke wakes the worker; many pokes are one.
func (w *worker) poke() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// current returns the pod with the newest status that is known: what was written may not have come back yet. Its resources are
// those it was given.
func (w *worker) current() *corev1.Pod {
	w.mu.Lock()
	defer w.mu.Unlock()
	shown := w.pod
	if w.static {
		shown = w.mirror
	}
	if w.anew && w.written == nil {
		shown = nil
	}
	if w.written != nil && (shown == nil || w.written.UID == shown.UID && api.RevisionOf(w.written) > api.RevisionOf(shown)) {
		shown = w.written
	}
	given := w.given
	if given == nil && admittedBefore(w.pod) {
		given = allocationShown(w.pod)
	}
	if shown == nil || shown == w.pod {
		return given.over(w.pod)
	}
	merged := *w.pod // what was written may lack a newer spec, and a mirror is no spec
	merged.Status = shown.Status
	return given.over(&merged)
}

func (w *worker) isGone() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.gone
}

// now is the time; in tests it is the bubble's.
func (w *worker) now() time.Time { return time.Now() }

// at asks for another look at a time.
func (w *worker) at(t time.Time) {
	if t.IsZero() {
		return
	}
	if w.timer.IsZero() || t.Before(w.timer) {
		w.timer = t
	}
}

func (w *worker) say(pod *corev1.Pod, type_, reason, format string, args ...any) {
	w.sayAt(pod, "", type_, reason, format, args...)
}

// sayAt says something of a part of the pod; spec.Path has its containers'.
func (w *worker) sayAt(pod *corev1.Pod, path, type_, reason, format string, args ...any) {
	w.Events.EventAt(pod, path, type_, reason, fmt.Sprintf(format, args...))
}

func (w *worker) probeFailed(c *corev1.Container, kind, text string) {
	pod := w.current()
	w.sayAt(pod, spec.Path(pod, c.Name), corev1.EventTypeWarning, "Unhealthy", "%s probe %s", kind, text)
}

// run is the worker's goroutine. It reports whether the worker's work is over.
func (w *worker) run(ctx context.Context) (finished bool) {
	defer w.jobs.close()
	defer w.probes.Close()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-w.wake:
		case <-timer.C:
		}
		if w.sync(ctx) {
			return true
		}
		if w.timer.IsZero() {
			timer.Reset(time.Hour)
		} else {
			timer.Reset(max(0, time.Until(w.timer)))
		}
	}
}

// maxRounds bounds how often one sync looks again at what it changed.
const maxRounds = 50

// sync does what is to be done now and reports whether the worker's work is over.
func (w *worker) sync(ctx context.Context) (finished bool) {
	w.timer = time.Time{}
	w.forgive()
	for range maxRounds {
		w.moved = false
		pod := w.current()
		view, err := w.viewer.read(ctx)
		if err != nil {
			if ctx.Err() == nil {
				w.log.Warn("runtime does not answer", "err", err)
				w.at(w.now().Add(time.Second))
			}
			return false
		}
		if !w.looked {
			pod = w.look(view)
		}
		full := view.withLost(pod)
		w.forgetRuns(full)
		w.readMessages(pod, full)
		w.readHooks(pod, full)
		w.decideEnding(pod, full)
		w.syncProbes(ctx, pod, view)
		if w.ending != nil {
			finished = w.end(ctx, pod, view, full)
		} else {
			w.up(ctx, pod, full)
		}
		if finished {
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		if !w.moved {
			w.publish(ctx, pod, full)
			return false
		}
	}
	w.at(w.now().Add(time.Second))
	return false
}

// look notes what the runtime has of the pod at first, and returns the pod in that light.
func (w *worker) look(v *View) *corev1.Pod {
	w.mu.Lock()
	w.looked, w.anew = true, w.static && v.Sandbox() == nil
	w.mu.Unlock()
	return w.current()
}

// health joins what probes and hooks say.
func (w *worker) health(id string) Health {
	h := Health{Ready: true, Started: true, Failed: w.hooks[id]}
	if p, ok := w.probes.Health(id); ok {
		h.Ready, h.Started, h.Unwell = p.Ready, p.Started, p.Unwell
	}
	h.Starting = w.unprobed[id] || w.starting(id)
	return h
}

// starting reports whether the container's postStart hook has not ended.
func (w *worker) starting(id string) bool {
	exists, done, _ := w.jobs.state("postStart " + id)
	return exists && !done
}

// syncProbes watches the containers that are shown as running.
func (w *worker) syncProbes(ctx context.Context, pod *corev1.Pod, v *View) {
	w.unprobed = map[string]bool{}
	var targets []probe.Target
	ips := v.IPs()
	if pod.Spec.HostNetwork {
		ips = w.HostIPs()
	}
	ip := ""
	if len(ips) > 0 {
		ip = ips[0]
	}
	spec.Each(pod, func(c *corev1.Container, k spec.Kind) {
		if k == spec.Ephemeral || c.LivenessProbe == nil && c.ReadinessProbe == nil && c.StartupProbe == nil {
			return
		}
		run := v.Latest(c.Name)
		if !run.Running() {
			return
		}
		if w.starting(run.Id) {
			w.unprobed[run.Id] = true
			return
		}
		t := probe.Target{Subject: probe.Subject{Container: c, ID: run.Id, IP: ip}, Since: time.Unix(0, run.StartedAt)}
		if !w.born[run.Id] {
			t.Adopted = true
			t.Ready, t.Started = shownAs(pod, c.Name)
		}
		targets = append(targets, t)
	})
	w.probes.Sync(ctx, targets, w.ending != nil)
}

// shownAs returns what the pod's status says of the container.
func shownAs(pod *corev1.Pod, name string) (ready, started bool) {
	for _, list := range [][]corev1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses} {
		for i := range list {
			if s := &list[i]; s.Name == name {
				return s.Ready, s.Started != nil && *s.Started
			}
		}
	}
	return false, false
}

// tidy removes runs of containers that are no longer shown (all but the last two of each name), with their files, and sandboxes
// without containers that are not the newest.
func (w *worker) tidy(ctx context.Context, pod *corev1.Pod, v *View) {
	used := map[string]bool{}
	for _, runs := range v.Containers {
		for i, c := range runs {
			if i < 2 || !c.Exited() || c.Sandbox == "" {
				used[c.Sandbox] = true
				continue
			}
			err := w.removeFiles(pod, c) // first: nobody looks for those of a container that is not there
			if err == nil {
				_, err = w.cri.Runtime.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: c.Id})
			}
			if err != nil {
				w.log.Warn("dead container stays", "id", c.Id, "err", err)
			}
		}
	}
	for i, s := range v.Sandboxes {
		if i > 0 && !used[s.Id] {
			if _, err := w.cri.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: s.Id}); err != nil {
				w.log.Warn("old sandbox stays", "sandbox", s.Id, "err", err)
			}
		}
	}
}

// forgetRuns forgets what is known of containers that are not there any more.
func (w *worker) forgetRuns(v *View) {
	there := map[string]bool{}
	for _, runs := range v.Containers {
		for _, c := range runs {
			there[c.Id] = true
		}
	}
	gone := func(id string) bool { return !there[id] }
	maps.DeleteFunc(w.messages, func(id, _ string) bool { return gone(id) })
	maps.DeleteFunc(w.hooks, func(id, _ string) bool { return gone(id) })
	maps.DeleteFunc(w.born, func(id string, _ bool) bool { return gone(id) })
	maps.DeleteFunc(w.again, func(id string, _ bool) bool { return gone(id) })
	w.jobs.forgetIf(func(key string) bool {
		what, id, _ := strings.Cut(key, " ")
		return (what == "postStart" || what == "stop" || what == "kill") && gone(id)
	})
}

// removeFiles removes a run's logs and termination message.
func (w *worker) removeFiles(pod *corev1.Pod, run *Container) error {
	name, attempt := run.Metadata.Name, run.Metadata.Attempt
	err := os.Remove(w.messageFile(pod, name, attempt))
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, logs.Remove(filepath.Join(w.logDirectory(pod), spec.LogPath(name, attempt))))
}
