package kubelet

import (
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/kubelet/eviction"
	"github.com/yare-dev/yare/kubelet/spec"
)

// appPod is a pod whose one container has the pod's name, so that the runtime's books can tell it from others; it requests memory unless that is
// "".
func appPod(name, memory string, priority int32) *corev1.Pod {
	p := newPod(name)
	p.Spec.Containers[0].Name, p.Spec.Priority = name, &priority
	if memory != "" {
		p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse(memory)}
	}
	return p
}

// pod returns the pod as the API has it, when nothing moves any more.
func (h *host) pod(name string) *corev1.Pod {
	h.t.Helper()
	synctest.Wait()
	p, err := client.Get[*corev1.Pod](h.t.Context(), h.api, api.Key{Namespace: "default", Name: name})
	if err != nil {
		h.t.Fatal(err)
	}
	return p
}

// phases are the pods' phases and reasons.
func (h *host) phases(names ...string) string {
	h.t.Helper()
	var out []string
	for _, n := range names {
		p := h.pod(n)
		out = append(out, strings.TrimSpace(n+" "+string(p.Status.Phase)+" "+p.Status.Reason))
	}
	return strings.Join(out, ", ")
}

func (h *host) want(what, got, want string) {
	h.t.Helper()
	if got != want {
		h.t.Errorf("%s: %q, want %q", what, got, want)
	}
}

// pressure are the Node's conditions of pressure.
func (h *host) pressure() string {
	h.t.Helper()
	synctest.Wait()
	var out []string
	for _, c := range h.node().Status.Conditions {
		if c.Type != corev1.NodeReady && c.Status == corev1.ConditionTrue {
			out = append(out, string(c.Type))
		}
	}
	return strings.Join(out, " ")
}

// Of three pods the one goes that uses more than it requested; the Node says so at once, takes no more of its kind, and forgets after a while.
func TestMemoryPressure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.runtime.Memories = map[string]uint64{"within": 300 << 20, "beyond": 60 << 20, "critical": 500 << 20}
		h.gauges.left(eviction.MemoryAvailable, 500)
		<-h.start()
		for _, p := range []*corev1.Pod{appPod("within", "400Mi", 0), appPod("beyond", "50Mi", 1000), appPod("critical", "1Mi", 2000000000)} {
			h.api.Put(p)
		}
		h.want("before", h.phases("within", "beyond", "critical")+h.pressure(), "within Running, beyond Running, critical Running")
		h.gauges.left(eviction.MemoryAvailable, 90)
		h.api.Events()
		time.Sleep(eviction.Interval)
		h.want("after a look", h.phases("within", "beyond", "critical")+" "+h.pressure(), "within Running, beyond Failed Evicted, critical Running MemoryPressure")
		h.gauges.left(eviction.MemoryAvailable, 150)
		p := h.pod("beyond")
		const message = "The node was low on resource: memory. Threshold quantity: 100Mi, available: 90Mi. " +
			"Container beyond was using 60Mi, request is 50Mi, has larger consumption of memory. "
		h.want("message", p.Status.Message, message)
		i := slices.IndexFunc(p.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == corev1.DisruptionTarget })
		if i < 0 || p.Status.Conditions[i].Status != corev1.ConditionTrue || p.Status.Conditions[i].Reason != "TerminationByKubelet" || p.Status.Conditions[i].Message != message {
			t.Error(p.Status.Conditions)
		}
		events := strings.Join(h.api.Events(), "\n")
		for _, want := range []string{"Warning n1 EvictionThresholdMet: Attempting to reclaim memory",
			"Warning beyond Evicted: " + message + " offending_containers=beyond offending_containers_usage=60Mi starved_resource=memory"} {
			if !strings.Contains(events, want) {
				t.Errorf("no %q in %s", want, events)
			}
		}
		// While it is short of memory, the node takes who has requested some, who bears it, and who must run.
		bears := appPod("bears", "", 0)
		bears.Spec.Tolerations = []corev1.Toleration{{Key: corev1.TaintNodeMemoryPressure, Operator: corev1.TolerationOpExists}}
		for _, p := range []*corev1.Pod{appPod("plain", "", 0), appPod("burstable", "1Mi", 0), bears, appPod("must", "", 2000000000)} {
			h.api.Put(p)
		}
		h.want("under pressure", h.phases("plain", "burstable", "bears", "must"), "plain Failed Evicted, burstable Running, bears Running, must Running")
		h.want("message", h.pod("plain").Status.Message, "Pod was rejected: The node had condition: [MemoryPressure]. ")
		time.Sleep(4 * time.Minute)
		h.want("for a while", h.pressure(), "MemoryPressure")
		time.Sleep(2 * time.Minute)
		h.want("after", h.pressure(), "")
		h.api.Put(appPod("again", "", 0))
		h.want("after", h.phases("again", "within", "bears"), "again Running, within Running, bears Running")
	})
}

// Under other pressure none but critical pods is taken. What is left of pods that have ended, and images that nobody has, goes before any pod.
func TestDiskPressure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.gauges.left(eviction.NodeFsAvailable, 500)
		<-h.start()
		ended := appPod("ended", "", 0)
		ended.Spec.RestartPolicy = corev1.RestartPolicyNever
		h.api.Put(ended)
		h.api.Put(appPod("runs", "", 0))
		h.want("before", h.phases("ended", "runs"), "ended Running, runs Running")
		logs := spec.LogDirectory(h.config.LogDir, h.pod("ended"))
		h.runtime.Exit("ended", 3)
		h.want("ended", h.phases("ended"), "ended Failed")
		left := len(h.runtime.Left())
		time.Sleep(3*time.Minute + time.Second) // between two looks
		h.gauges.left(eviction.NodeFsAvailable, 90)
		time.Sleep(eviction.Interval)
		h.want("after a look", h.phases("ended", "runs")+" "+h.pressure(), "ended Failed, runs Failed Evicted DiskPressure")
		if got := h.pod("ended").Status; len(got.ContainerStatuses) != 1 || got.ContainerStatuses[0].State.Terminated == nil || got.ContainerStatuses[0].State.Terminated.ExitCode != 3 {
			t.Error("the status does not say what is left of the pod:", got)
		}
		if now := len(h.runtime.Left()); now != left-2 {
			t.Errorf("%d sandboxes and containers, of %d", now, left)
		}
		if _, err := os.Stat(logs); !os.IsNotExist(err) {
			t.Error("logs of a pod that has ended stay:", err)
		}
		burstable := appPod("burstable", "1Mi", 0)
		h.api.Put(burstable)
		h.api.Put(appPod("must", "", 2000000000))
		h.want("under pressure", h.phases("burstable", "must"), "burstable Failed Evicted, must Running")
		h.want("message", h.pod("burstable").Status.Message, "Pod was rejected: The node had condition: [DiskPressure]. ")
		// The pod that had ended, and whose traces are gone, is as it was for a kubelet that starts now.
		h.stop()
		<-h.start()
		h.want("another kubelet", h.phases("ended", "runs", "must")+" "+h.pressure(), "ended Failed, runs Failed Evicted, must Running DiskPressure")
	})
}

// Images that no container has go before any pod, and that is enough where it frees enough.
func TestUnusedImagesGoFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.gauges.left(eviction.NodeFsAvailable, 500)
		h.runtime.Removed = func(string) { h.gauges.left(eviction.NodeFsAvailable, 110) }
		if _, err := h.runtime.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: "unused"}}); err != nil {
			t.Fatal(err)
		}
		<-h.start()
		h.api.Put(newPod("a"))
		time.Sleep(time.Second) // between two looks
		if _, err := h.runtime.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: "new"}}); err != nil {
			t.Fatal(err)
		}
		h.gauges.left(eviction.NodeFsAvailable, 90)
		h.runtime.Calls()
		time.Sleep(eviction.Interval)
		h.want("after a look", h.phases("a")+" "+h.pressure(), "a Running DiskPressure")
		if calls := strings.Join(h.runtime.Calls(), ", "); !strings.Contains(calls, "remove image sha256:unused") || strings.Contains(calls, "sha256:app") || strings.Contains(calls, "sha256:new") {
			t.Error(calls)
		}
	})
}

// A kubelet that is replaced while a pod ends does not start it again, and while memory is short says so from the first on.
func TestRestartUnderPressure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, func(c *Config) {
			c.EvictionHard, c.EvictionSoft = map[string]string{}, map[string]string{"memory.available": "100Mi"}
			c.EvictionSoftGracePeriod, c.EvictionMaxPodGracePeriod = map[string]string{"memory.available": "10s"}, 100
		})
		h.runtime.Linger = map[string]time.Duration{"slow": time.Minute}
		h.runtime.Memories = map[string]uint64{"slow": 500 << 20}
		grace := int64(200)
		slow := appPod("slow", "", 0)
		slow.Spec.TerminationGracePeriodSeconds = &grace
		h.gauges.left(eviction.MemoryAvailable, 50)
		<-h.start()
		h.want("from the first on", h.pressure(), "MemoryPressure")
		slow.Spec.Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists}}
		h.api.Put(slow)
		h.api.Put(appPod("other", "1Mi", 0))
		time.Sleep(15 * time.Second)
		h.want("ending", h.phases("slow", "other"), "slow Running Evicted, other Running")
		h.stop()
		h.api.Events()
		<-h.start()
		h.want("another kubelet", h.pressure()+" "+h.phases("slow", "other"), "MemoryPressure slow Running Evicted, other Running")
		h.gauges.left(eviction.MemoryAvailable, 500)
		time.Sleep(70 * time.Second)
		h.want("later", h.phases("slow", "other"), "slow Failed Evicted, other Running")
		if p := h.pod("slow"); !strings.HasPrefix(p.Status.Message, "The node was low on resource: memory. ") ||
			!slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == corev1.DisruptionTarget }) {
			t.Error(p.Status)
		}
		if events := strings.Join(h.api.Events(), "\n"); strings.Contains(events, "Evicted") {
			t.Error("told twice:", events)
		}
		h.stop()
		<-h.start()
		h.want("a kubelet of quieter days", h.pressure(), "")
	})
}

// A pod that is being deleted takes its time; under pressure that is cut short.
func TestEvictionCutsDeletionShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.runtime.Linger = map[string]time.Duration{"slow": time.Hour}
		h.gauges.left(eviction.MemoryAvailable, 500)
		<-h.start()
		h.api.Put(appPod("slow", "", 0))
		h.want("before", h.phases("slow"), "slow Running")
		h.api.DeletePod(api.Key{Namespace: "default", Name: "slow"}, 600)
		time.Sleep(time.Minute)
		h.gauges.left(eviction.MemoryAvailable, 50)
		time.Sleep(eviction.Interval + 5*time.Second)
		synctest.Wait()
		if left := h.runtime.Left(); len(left) != 0 {
			t.Error("left:", left)
		}
	})
}

// What hard thresholds keep free is not given away, and settings are checked by name.
func TestEvictionSettings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, func(c *Config) { c.EvictionHard = map[string]string{"memory.available": "1Gi"} })
		<-h.start()
		synctest.Wait()
		st := h.node().Status
		got, want := st.Allocatable.Memory().Value(), st.Capacity.Memory().Value()-1<<30
		for name, q := range st.Capacity {
			if strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix) {
				want -= q.Value()
			}
		}
		if got != want {
			t.Errorf("allocatable memory %d, want %d", got, want)
		}
	})
	bad := Defaults()
	bad.NodeName, bad.NodeIPs = "n1", []string{"10.0.0.1"}
	bad.EvictionHard, bad.EvictionSoft = map[string]string{"memory": "1Gi"}, map[string]string{"pid.available": "x"}
	for _, field := range []string{"evictionHard.memory: ", "evictionSoft.pid.available: ", "evictionSoftGracePeriod: "} {
		if err := bad.Validate(); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s is not reported in %v", field, err)
		}
	}
}

// Real pods are measured in all parts that they have on this machine, are evicted, and leave nothing on the disk when that is short.
func TestRealUsage(t *testing.T) {
	m := newMachine(t)
	p := realPod("a", "sh", "-c", "dd if=/dev/zero of=/junk bs=1M count=2; dd if=/dev/zero of=/data/junk bs=1M count=3; sync; echo done; echo > /ready; exec sleep 1000")
	p.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
	p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "data", MountPath: "/data"}}
	p.Spec.Containers[0].ReadinessProbe = &corev1.Probe{PeriodSeconds: 1, FailureThreshold: 1, SuccessThreshold: 1, TimeoutSeconds: 1,
		ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"sh", "-c", "[ -e /ready ]"}}}}
	m.api.Put(p)
	p = m.await("a", isReady)
	k := m.runs
	got, err := k.measure(t.Context(), k.pods.Evictable(), eviction.Parts{Layers: true, Logs: true, Volumes: true})
	if err != nil || len(got) != 1 || got[0].Usage == nil {
		t.Fatal(got, err)
	}
	u := got[0].Usage
	c := u.Containers["app"]
	if u.Memory <= 0 || u.PIDs < 1 || c.Memory <= 0 || c.Layer.Bytes < 2<<20 || c.Layer.Inodes < 1 || c.Logs.Bytes <= 0 || c.Logs.Inodes < 1 || u.Volumes.Bytes < 3<<20 || u.Volumes.Inodes < 2 {
		t.Errorf("%+v", u)
	}
	<-k.evict(p, eviction.Order{Message: "It must go. ", Grace: time.Second})
	m.await("a", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed && p.Status.Reason == "Evicted" })
	if err := k.pods.RemoveDead(t.Context()); err != nil {
		t.Error(err)
	}
	if list, err := m.cri.Runtime.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{}); err != nil || len(list.Containers) > 0 {
		t.Error(list, err)
	}
	if entries, err := os.ReadDir(m.config.LogDir); err != nil || len(entries) > 0 {
		t.Error(entries, err)
	}
	if images, layers, err := k.imageFolders(t.Context()); err != nil || images == "" || layers == "" {
		t.Errorf("images are in %q, layers in %q: %v", images, layers, err)
	}
}
