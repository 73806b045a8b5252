package pod

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/api/claim"
	"github.com/yare-dev/yare/kubelet/spec"
)

func TestLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		b.api.Put(newPod("a"))
		b.wantStatus("a", "Running ready app=running")
		p := b.pod("a")
		if p.Status.PodIP == "" || p.Status.HostIP != "192.168.0.1" || p.Status.StartTime == nil || p.Status.QOSClass != corev1.PodQOSBestEffort {
			t.Error("incomplete status:", p.Status)
		}
		if w := b.api.Writes(); !slices.Equal(w, []string{"update pods default/a status"}) {
			t.Error("a pod that starts at once costs one write, not", w)
		}
		config := b.runtime.Running()["app"]
		if config.LogPath != "app/0.log" || config.Labels[spec.PodUIDLabel] != string(p.UID) {
			t.Error("container configuration:", config)
		}
		b.api.DeletePod(api.KeyOf(p), 30)
		b.settle()
		b.wantGone("a")
		if w := b.api.Writes(); !slices.Equal(w, []string{"update pods default/a status", "delete pods default/a"}) {
			t.Error("writes of the end:", w)
		}
	})
}

func TestCrashLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		b.api.Put(newPod("a"))
		b.wantRunning("app")
		b.runtime.Exit("app", 1)
		b.wantStatus("a", "Running ready app=running#1") // at once the first time
		for i, delay := range []time.Duration{10, 20, 40, 80, 160, 300, 300} {
			b.runtime.Exit("app", 1)
			b.settle()
			if got := short(b.pod("a")); !strings.HasPrefix(got, "Running app=CrashLoopBackOff#") {
				t.Fatal(i, got)
			}
			last := b.pod("a").Status.ContainerStatuses[0].LastTerminationState.Terminated
			if last == nil || last.ExitCode != 1 || last.Reason != "Error" {
				t.Fatal("last state", last)
			}
			time.Sleep(delay*time.Second - time.Millisecond)
			b.wantRunning()
			time.Sleep(time.Millisecond)
			b.wantRunning("app")
		}
		time.Sleep(11 * time.Minute) // long enough to be forgiven
		b.runtime.Exit("app", 1)
		b.wantRunning("app")
		if n := len(b.runtime.Left()); n != 3 {
			t.Error("all but two runs are removed, besides the sandbox; left:", n)
		}
	})
}

// What a pod's containers leave on disk is that of the runs that are shown, however often they are restarted.
func TestFilesOfEarlierRunsGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		b.api.Put(newPod("a"))
		b.wantRunning("app")
		dir := filepath.Join(spec.LogDirectory(filepath.Join(b.dir, "log"), b.pod("a")), "app")
		for i := range 4 {
			for _, name := range []string{".log", ".log.20260101-000000.000000", ".log.20250101-000000.000000.gz"} {
				if err := os.WriteFile(filepath.Join(dir, strconv.Itoa(i)+name), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			b.runtime.Exit("app", 1)
			time.Sleep(5 * time.Minute)
			b.settle()
		}
		for _, dir := range []string{dir, filepath.Join(b.dir, "pods", string(b.pod("a").UID), "containers", "app")} {
			entries, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				if run, _, _ := strings.Cut(e.Name(), "."); run != "3" && run != "4" {
					t.Error("left:", e.Name())
				}
			}
			if len(entries) < 2 {
				t.Error("of the last runs there are", entries)
			}
		}
	})
}

func TestRestartPolicies(t *testing.T) {
	for _, c := range []struct {
		policy corev1.RestartPolicy
		code   int32
		want   string
	}{
		{corev1.RestartPolicyNever, 0, "Succeeded app=Completed"},
		{corev1.RestartPolicyNever, 3, "Failed app=Error"},
		{corev1.RestartPolicyOnFailure, 0, "Succeeded app=Completed"},
		{corev1.RestartPolicyOnFailure, 3, "Running ready app=running#1"},
		{corev1.RestartPolicyAlways, 0, "Running ready app=running#1"},
	} {
		t.Run(string(c.policy)+" "+c.want, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBed(t)
				b.api.Put(newPod("a", policy(c.policy)))
				b.wantRunning("app")
				b.runtime.Exit("app", c.code)
				b.wantStatus("a", c.want)
				b.stop()
				b.start() // a new kubelet sees the same
				b.wantStatus("a", c.want)
			})
		})
	}
}

func TestTerminationMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		b.api.Put(newPod("a", policy(corev1.RestartPolicyNever)))
		b.wantRunning("app")
		for _, m := range b.runtime.Running()["app"].Mounts {
			if m.ContainerPath == spec.DefaultTerminationMessage {
				if err := os.WriteFile(m.HostPath, []byte("because"), 0); err != nil {
					t.Fatal(err)
				}
			}
		}
		b.runtime.Exit("app", 2)
		b.wantStatus("a", "Failed app=Error")
		if got := b.pod("a").Status.ContainerStatuses[0].State.Terminated.Message; got != "because" {
			t.Error("message", got)
		}
		b.stop()
		b.start()
		b.settle()
		if got := b.pod("a").Status.ContainerStatuses[0].State.Terminated.Message; got != "because" {
			t.Error("message after a restart of the kubelet", got)
		}
	})
}

func TestInitContainersInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		b.api.Put(newPod("a", initContainer("one", false), initContainer("side", true), initContainer("two", false)))
		b.wantRunning("one")
		b.wantStatus("a", "Pending one=running side=PodInitializing two=PodInitializing app=PodInitializing")
		b.runtime.Exit("one", 1)
		b.wantRunning("one") // again, by the pod's policy
		b.runtime.Exit("one", 0)
		b.wantRunning("side", "two")
		b.runtime.Exit("two", 0)
		b.wantStatus("a", "Running ready one=Completed#1 side=running two=Completed app=running")
		b.runtime.Exit("side", 1)
		b.wantStatus("a", "Running ready one=Completed#1 side=running#1 two=Completed app=running")
		b.runtime.Calls()

		// The sidecar outlives the main container, and dies with the pod.
		b.runtime.Linger = map[string]time.Duration{"app": 5 * time.Second}
		b.api.DeletePod(api.Key{Namespace: "default", Name: "a"}, 30)
		time.Sleep(4 * time.Second)
		b.wantRunning("app", "side")
		time.Sleep(2 * time.Second)
		b.settle()
		b.wantGone("a")
		calls := b.runtime.Calls()
		want := []string{"stop app 30", "stop side 25", "stop sandbox a", "remove sandbox a"}
		if !slices.Equal(calls, want) {
			t.Errorf("calls %q, want %q", calls, want)
		}
	})
}

func TestInitFailsForGood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		b.api.Put(newPod("a", policy(corev1.RestartPolicyNever), initContainer("one", false)))
		b.wantRunning("one")
		b.runtime.Exit("one", 1)
		b.wantStatus("a", "Failed one=Error app=PodInitializing")
	})
}

func TestJobWithSidecarEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		b.api.Put(newPod("a", policy(corev1.RestartPolicyNever), initContainer("side", true)))
		b.wantRunning("app", "side")
		b.runtime.Exit("app", 0)
		b.wantStatus("a", "Succeeded side=Completed app=Completed")
	})
}

func TestRestartOfKubeletDisturbsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		probed := func(p *corev1.Pod) {
			p.Spec.Containers[0].ReadinessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"ok"}}}, PeriodSeconds: 10}
		}
		b.api.Put(newPod("a", probed, initContainer("one", false)))
		b.settle()
		b.runtime.Exit("one", 0)
		time.Sleep(time.Second)
		b.wantStatus("a", "Running ready one=Completed app=running")
		ids := b.runtime.IDs()
		b.api.Writes()
		for range 3 {
			b.stop()
			b.start()
			b.wantStatus("a", "Running ready one=Completed app=running")
			time.Sleep(time.Minute)
		}
		if got := b.runtime.IDs(); got["app"] != ids["app"] {
			t.Error("the container was replaced:", ids, got)
		}
		if w := b.api.Writes(); len(w) > 0 {
			t.Error("writes:", w)
		}
		// What ended meanwhile is restarted with the right count.
		b.stop()
		b.runtime.Exit("app", 1)
		b.start()
		b.wantRunning("app")
		if got := b.pod("a").Status.ContainerStatuses[0].RestartCount; got != 1 {
			t.Error("restart count", got)
		}
	})
}

func TestSandboxLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		b.api.Put(newPod("a", initContainer("one", false)))
		b.settle()
		b.runtime.Exit("one", 0)
		b.wantRunning("app")
		b.runtime.LoseSandboxes()
		b.wantRunning("one") // the new sandbox begins at the beginning
		b.runtime.Exit("one", 0)
		b.wantRunning("app")
		if p := b.pod("a"); p.Status.ContainerStatuses[0].RestartCount != 1 || p.Status.Phase != corev1.PodRunning {
			t.Error(short(p))
		}
	})
}

func TestMissingConfigMapArrives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		b.api.Put(newPod("a", func(p *corev1.Pod) {
			p.Spec.Containers[0].EnvFrom = []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "c"}}}}
		}))
		time.Sleep(10 * time.Minute) // long tried in vain
		b.wantStatus("a", "Pending app=CreateContainerConfigError")
		// Each try is told of, so that the Event counts them.
		want := []string{`Normal a spec.containers{app} Pulled: Container image "app" already present on machine`, `Warning a spec.containers{app} Failed: Error: configmap "c" not found`}
		if got := b.api.Events(); len(got) < 20 || !slices.Equal(got, slices.Repeat(want, len(got)/2)) {
			t.Errorf("events %q", got)
		}
		b.api.Put(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "c"}, Data: map[string]string{"K": "v"}})
		b.wantStatus("a", "Running ready app=running")
		if env := spec.EnvMap(b.runtime.Running()["app"].Envs); env["K"] != "v" {
			t.Error(env)
		}
	})
}

func TestGraceIsUsedUpAndShortened(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		b.runtime.Linger["app"] = time.Hour
		b.api.Put(newPod("a"))
		b.wantRunning("app")
		key := api.Key{Namespace: "default", Name: "a"}
		began := time.Now()
		b.api.DeletePod(key, 30)
		time.Sleep(10 * time.Second)
		b.wantRunning("app")
		b.api.DeletePod(key, 5)
		time.Sleep(5*time.Second + time.Millisecond)
		b.settle()
		b.wantGone("a")
		if took := time.Since(began); took > 16*time.Second {
			t.Error("took", took)
		}
	})
}

func TestForcedDeletion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		b.runtime.Linger["app"] = time.Hour
		b.api.Put(newPod("a"))
		b.wantRunning("app")
		b.api.DeletePod(api.Key{Namespace: "default", Name: "a"}, 0)
		time.Sleep(31 * time.Second)
		b.settle()
		b.wantGone("a")
	})
}

func TestPreStopCountsAgainstGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		b.api.Put(newPod("a", func(p *corev1.Pod) {
			p.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: 12}}}
		}))
		b.wantRunning("app")
		b.runtime.Calls()
		b.api.DeletePod(api.Key{Namespace: "default", Name: "a"}, 30)
		time.Sleep(13 * time.Second)
		b.settle()
		b.wantGone("a")
		if calls := b.runtime.Calls(); calls[0] != "stop app 18" {
			t.Error(calls)
		}
	})
}

func TestPostStartHoldsTheNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		b.api.Put(newPod("a", func(p *corev1.Pod) {
			p.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PostStart: &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: 5}}}
			p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: "second", Image: "app", ImagePullPolicy: corev1.PullIfNotPresent})
		}))
		b.wantRunning("app")
		b.wantStatus("a", "Pending app=ContainerCreating second=ContainerCreating")
		time.Sleep(5 * time.Second)
		b.wantStatus("a", "Running ready app=running second=running")
	})
}

// As long as a container is not shown as running, as its hook runs, it is not probed.
func TestPostStartHoldsProbes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		b.runtime.OnExec = func(string, []string) (int32, string, error) { return 1, "", nil }
		b.api.Put(newPod("a", func(p *corev1.Pod) {
			c := &p.Spec.Containers[0]
			c.Lifecycle = &corev1.Lifecycle{PostStart: &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: 60}}}
			c.LivenessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"live"}}}, PeriodSeconds: 5, FailureThreshold: 2}
		}))
		b.wantRunning("app")
		time.Sleep(59 * time.Second)
		b.settle()
		if calls := b.runtime.Calls(); slices.Contains(calls, "exec app live") {
			t.Error("it is probed:", calls)
		}
		b.wantStatus("a", "Pending app=ContainerCreating")
		time.Sleep(2 * time.Second)
		b.wantStatus("a", "Running ready app=running")
		if calls := b.runtime.Calls(); !slices.Contains(calls, "exec app live") {
			t.Error("it is not probed:", calls)
		}
	})
}

func TestPostStartFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		b.runtime.OnExec = func(string, []string) (int32, string, error) { return 1, "no", nil }
		b.api.Put(newPod("a", func(p *corev1.Pod) {
			p.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PostStart: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"x"}}}}
		}))
		time.Sleep(time.Second)
		b.settle()
		if got := short(b.pod("a")); got != "Running app=CrashLoopBackOff#1" {
			t.Error(got)
		}
		if !slices.ContainsFunc(b.api.Events(), func(e string) bool { return strings.Contains(e, "FailedPostStartHook") }) {
			t.Error("no event")
		}
	})
}

// What a command prints without end is no reason to keep it all.
func TestLongOutputIsCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		b.runtime.OnExec = func(string, []string) (int32, string, error) { return 1, strings.Repeat("x", 1<<20), nil }
		command := corev1.ExecAction{Command: []string{"x"}}
		b.api.Put(newPod("hook", func(p *corev1.Pod) {
			p.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PostStart: &corev1.LifecycleHandler{Exec: &command}}
		}))
		b.api.Put(newPod("probe", func(p *corev1.Pod) {
			p.Spec.Containers[0].ReadinessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &command}}
		}))
		time.Sleep(time.Second)
		b.settle()
		events := b.api.Events()
		for _, reason := range []string{"FailedPostStartHook", "Unhealthy"} {
			i := slices.IndexFunc(events, func(e string) bool { return strings.Contains(e, reason) })
			if i < 0 {
				t.Error("no event:", reason)
			} else if n := strings.Count(events[i], "x"); n < 10<<10 || n > 11<<10 {
				t.Errorf("%s has %d bytes of output", reason, n)
			}
		}
	})
}

func TestProbes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		var mu sync.Mutex
		answers := map[string]int32{"startup": 1, "ready": 1, "live": 0}
		set := func(what string, code int32) { mu.Lock(); answers[what] = code; mu.Unlock() }
		b.runtime.OnExec = func(_ string, cmd []string) (int32, string, error) {
			mu.Lock()
			defer mu.Unlock()
			return answers[cmd[0]], "", nil
		}
		exec := func(cmd string) *corev1.Probe {
			return &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{cmd}}}, PeriodSeconds: 1, FailureThreshold: 3, SuccessThreshold: 1, TimeoutSeconds: 1}
		}
		b.api.Put(newPod("a", func(p *corev1.Pod) {
			c := &p.Spec.Containers[0]
			c.StartupProbe, c.ReadinessProbe, c.LivenessProbe = exec("startup"), exec("ready"), exec("live")
			c.StartupProbe.FailureThreshold = 100
		}))
		time.Sleep(5 * time.Second)
		b.wantStatus("a", "Running app=running")
		if s := b.pod("a").Status.ContainerStatuses[0].Started; s == nil || *s {
			t.Error("started before its startup probe said so")
		}
		set("startup", 0)
		time.Sleep(2 * time.Second)
		if s := b.pod("a").Status.ContainerStatuses[0].Started; s == nil || !*s {
			t.Error("not started")
		}
		set("ready", 0)
		time.Sleep(2 * time.Second)
		b.wantStatus("a", "Running ready app=running")
		set("ready", 1)
		time.Sleep(2 * time.Second)
		b.wantStatus("a", "Running ready app=running") // two failures are not three
		time.Sleep(2 * time.Second)
		b.wantStatus("a", "Running app=running")
		set("ready", 0)
		set("live", 1)
		time.Sleep(4 * time.Second)
		set("live", 0)
		time.Sleep(2 * time.Second)
		b.wantStatus("a", "Running ready app=running#1")
	})
}

func TestAdmissionRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		b.node = &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Status: corev1.NodeStatus{Allocatable: corev1.ResourceList{
			corev1.ResourceCPU: resource.MustParse("2"), corev1.ResourceMemory: resource.MustParse("1Gi"), corev1.ResourcePods: resource.MustParse("10")}}}
		cpu := func(n string) func(*corev1.Pod) {
			return func(p *corev1.Pod) {
				p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(n)}
			}
		}
		b.api.Put(newPod("a", cpu("1500m")))
		b.wantStatus("a", "Running ready app=running")
		b.api.Put(newPod("b", cpu("600m")))
		b.wantStatus("b", "Failed (OutOfcpu)")
		if got := b.pod("b").Status.Message; got != "Pod was rejected: Node didn't have enough resource: cpu, requested: 600, used: 1500, capacity: 2000" {
			t.Error(got)
		}
		b.api.DeletePod(api.Key{Namespace: "default", Name: "a"}, 0)
		b.settle()
		b.api.Put(newPod("c", cpu("2")))
		b.wantStatus("c", "Running ready app=running")
	})
}

func TestActiveDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		seconds := int64(60)
		b.api.Put(newPod("a", func(p *corev1.Pod) { p.Spec.ActiveDeadlineSeconds = &seconds }))
		b.wantRunning("app")
		time.Sleep(61 * time.Second)
		b.wantStatus("a", "Failed (DeadlineExceeded) app=Completed")
	})
}

func TestImageChangeRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		b.api.Put(newPod("a"))
		b.wantRunning("app")
		next := b.pod("a").DeepCopy()
		next.Spec.Containers[0].Image = "side"
		b.api.Put(next)
		time.Sleep(2 * time.Second)
		b.wantStatus("a", "Running ready app=running#1")
		if got := b.runtime.Running()["app"].Image.UserSpecifiedImage; got != "side" {
			t.Error(got)
		}
	})
}

func TestUnsupportedVolumeHoldsThePod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		b.api.Put(newPod("a", func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{NFS: &corev1.NFSVolumeSource{Server: "s"}}}}
		}))
		b.wantStatus("a", "Pending app=ContainerCreating")
		want := `Warning a FailedMount: MountVolume.SetUp failed for volume "v" : nfs volumes are not supported by this node`
		if events := b.api.Events(); !slices.Contains(events, want) {
			t.Error(events)
		}
		b.api.DeletePod(api.Key{Namespace: "default", Name: "a"}, 30)
		b.settle()
		b.wantGone("a")
	})
}

// A pod waits until its claim is bound, and has then the volume and its group.
func TestClaimHoldsThePodUntilItIsBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		b.node = &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}
		b.api.Put(newPod("a", func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "c"}}}}
			p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: "/data"}}
		}))
		held := func(why string) {
			t.Helper()
			b.wantStatus("a", "Pending app=ContainerCreating")
			want := `Warning a FailedMount: MountVolume.SetUp failed for volume "v" : error processing PVC default/c: ` + why
			if events := b.api.Events(); !slices.Contains(events, want) {
				t.Error(events)
			}
		}
		held(`persistentvolumeclaim "c" not found`)
		c := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "c", UID: "u"}}
		b.api.Put(c)
		time.Sleep(30 * time.Second)
		held("PVC is not bound")
		v := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv", Annotations: map[string]string{"pv.beta.kubernetes.io/gid": "1234"}}}
		v.Spec.HostPath = &corev1.HostPathVolumeSource{Path: b.dir}
		v.Spec.ClaimRef = &corev1.ObjectReference{Namespace: "default", Name: "c", UID: "u"}
		c.Annotations, c.Spec.VolumeName = map[string]string{claim.Completed: "yes"}, "pv"
		b.api.Put(v)
		b.api.Put(c)
		time.Sleep(30 * time.Second)
		b.wantRunning("app")
		config := b.runtime.Running()["app"]
		if m := config.Mounts[0]; m.ContainerPath != "/data" || m.HostPath != b.dir {
			t.Error(m)
		}
		if got := config.Linux.SecurityContext.SupplementalGroups; !slices.Equal(got, []int64{1234}) {
			t.Error("groups", got)
		}
	})
}

func TestEphemeralContainer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		b.api.Put(newPod("a"))
		b.wantRunning("app")
		next := b.pod("a").DeepCopy()
		next.Spec.EphemeralContainers = []corev1.EphemeralContainer{{TargetContainerName: "app",
			EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debug", Image: "side", ImagePullPolicy: corev1.PullIfNotPresent}}}
		b.api.Put(next)
		b.wantRunning("app", "debug")
		if ns := b.runtime.Running()["debug"].Linux.SecurityContext.NamespaceOptions; ns.TargetId != b.runtime.IDs()["app"] {
			t.Error(ns)
		}
		b.runtime.Exit("debug", 0)
		b.wantRunning("app") // once only
		if s := b.pod("a").Status.EphemeralContainerStatuses; len(s) != 1 || s[0].State.Terminated == nil {
			t.Error(s)
		}
	})
}
