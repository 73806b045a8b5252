package pod

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// view makes a View with one ready sandbox from "name=state" words: running, created, unknown, or an exit code. A word
// that begins with a dash is in an older sandbox.
func view(words string) *View {
	v := &View{Containers: map[string][]*Container{}}
	for _, w := range strings.Fields(words) {
		if w == "lost" || w == "sandbox" {
			state := runtimeapi.PodSandboxState_SANDBOX_READY
			if w == "lost" {
				state = runtimeapi.PodSandboxState_SANDBOX_NOTREADY
			}
			v.Sandboxes = append(v.Sandboxes, &runtimeapi.PodSandboxStatus{Id: "s", State: state, Metadata: &runtimeapi.PodSandboxMetadata{}})
			continue
		}
		name, state, _ := strings.Cut(w, "=")
		name, old := strings.CutPrefix(name, "-")
		c := &Container{&runtimeapi.ContainerStatus{Id: name, Metadata: &runtimeapi.ContainerMetadata{Name: name}}, "s"}
		if old {
			c.Sandbox = "older"
		}
		switch state {
		case "running":
			c.State = runtimeapi.ContainerState_CONTAINER_RUNNING
		case "created":
			c.State = runtimeapi.ContainerState_CONTAINER_CREATED
		case "unknown":
			c.State = runtimeapi.ContainerState_CONTAINER_UNKNOWN
		default:
			c.State = runtimeapi.ContainerState_CONTAINER_EXITED
			fmt.Sscan(state, &c.ExitCode)
		}
		v.Containers[name] = append(v.Containers[name], c)
	}
	return v
}

// text is a plan as words.
func (p Plan) text() string {
	var out []string
	if p.Done {
		out = append(out, "done")
	}
	if p.NewSandbox {
		out = append(out, fmt.Sprint("sandbox#", p.Attempt))
	}
	for _, d := range p.Discard {
		out = append(out, "discard "+d)
	}
	for _, s := range p.Stop {
		out = append(out, "stop "+s.Container.Id)
	}
	for _, s := range p.Start {
		out = append(out, fmt.Sprintf("start %s#%d", s.Container.Name, s.Attempt))
	}
	for name := range p.Waiting {
		out = append(out, "wait "+name)
	}
	return strings.Join(out, ", ")
}

func TestDecide(t *testing.T) {
	two := func(p *corev1.Pod) {
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: "b", Image: "b"})
	}
	rule := func(p *corev1.Pod) {
		p.Spec.RestartPolicy = corev1.RestartPolicyNever
		p.Spec.Containers[0].RestartPolicyRules = []corev1.ContainerRestartRule{{Action: corev1.ContainerRestartRuleActionRestart,
			ExitCodes: &corev1.ContainerRestartRuleOnExitCodes{Operator: corev1.ContainerRestartRuleOnExitCodesOpIn, Values: []int32{42}}}}
	}
	never, onFailure := policy(corev1.RestartPolicyNever), policy(corev1.RestartPolicyOnFailure)
	one, side := initContainer("one", false), initContainer("side", true)
	for _, c := range []struct {
		name   string
		change []func(*corev1.Pod)
		view   string
		health map[string]Health
		backs  string // who has to wait before it runs again
		want   string
	}{
		{name: "a new pod", want: "sandbox#0"},
		{name: "the sandbox is there", view: "sandbox", want: "start app#0"},
		{name: "all at once", change: []func(*corev1.Pod){two}, view: "sandbox", want: "start app#0, start b#0"},
		{name: "running", view: "sandbox app=running", want: ""},
		{name: "never started", view: "sandbox app=created", want: "discard app, start app#0"},
		{name: "lost track", view: "sandbox app=unknown", want: "stop app"},
		{name: "crashed", view: "sandbox app=1", want: "start app#1"},
		{name: "crashed again", view: "sandbox app=1", backs: "app", want: "wait app"},
		{name: "done", change: []func(*corev1.Pod){never}, view: "sandbox app=1", want: "done"},
		{name: "done in part", change: []func(*corev1.Pod){never, two}, view: "sandbox app=1 b=running", want: ""},
		{name: "success is not repeated", change: []func(*corev1.Pod){onFailure, two}, view: "sandbox app=0 b=1", want: "start b#1"},
		{name: "a rule restarts", change: []func(*corev1.Pod){rule}, view: "sandbox app=42", want: "start app#1"},
		{name: "a rule does not fit", change: []func(*corev1.Pod){rule}, view: "sandbox app=1", want: "done"},
		{name: "sandbox lost", view: "lost app=running", want: "sandbox#1, stop app"},
		{name: "sandbox lost after the end", change: []func(*corev1.Pod){never}, view: "lost app=0", want: "done"},
		{name: "what ended stays ended in a new sandbox", change: []func(*corev1.Pod){onFailure, two}, view: "sandbox -app=0 -b=137", want: "start b#1"},
		{name: "unwell", view: "sandbox app=running", health: map[string]Health{"app": {Unwell: "liveness"}}, want: "stop app"},
		{name: "hook failed", view: "sandbox app=running", health: map[string]Health{"app": {Failed: "x"}}, want: "stop app"},
		{name: "hook holds the next", change: []func(*corev1.Pod){two}, view: "sandbox app=running", health: map[string]Health{"app": {Starting: true}}, want: ""},
		{name: "init first", change: []func(*corev1.Pod){one}, view: "sandbox", want: "start one#0"},
		{name: "init runs", change: []func(*corev1.Pod){one}, view: "sandbox one=running", want: ""},
		{name: "init done", change: []func(*corev1.Pod){one}, view: "sandbox one=0", want: "start app#0"},
		{name: "init failed", change: []func(*corev1.Pod){one}, view: "sandbox one=1", backs: "one", want: "wait one"},
		{name: "init failed for good", change: []func(*corev1.Pod){one, never}, view: "sandbox one=1", want: "done"},
		{name: "init again in a new sandbox", change: []func(*corev1.Pod){one}, view: "sandbox -one=0 -app=137", want: "start one#1"},
		{name: "init does not matter any more", change: []func(*corev1.Pod){one}, view: "sandbox one=1 app=running", want: ""},
		{name: "sidecar must have started", change: []func(*corev1.Pod){side, one}, view: "sandbox side=running", health: map[string]Health{"side": {}}, want: ""},
		{name: "sidecar has started", change: []func(*corev1.Pod){side, one}, view: "sandbox side=running", want: "start one#0"},
		{name: "sidecar died early", change: []func(*corev1.Pod){side, one}, view: "sandbox side=0", want: "start side#1"},
		{name: "sidecar died late", change: []func(*corev1.Pod){side}, view: "sandbox side=0 app=running", want: "start side#1"},
		{name: "sidecar does not keep a job", change: []func(*corev1.Pod){side, never}, view: "sandbox side=running app=0", want: "done"},
	} {
		t.Run(c.name, func(t *testing.T) {
			now := time.Unix(1000, 0)
			got := Decide(Facts{Pod: newPod("p", c.change...), View: view(c.view), Now: now,
				Health: func(id string) Health {
					if h, ok := c.health[id]; ok {
						return h
					}
					return Health{Ready: true, Started: true}
				},
				Until: func(of *corev1.Container, _ *Container) time.Time {
					if of.Name == c.backs {
						return now.Add(time.Minute)
					}
					return now
				}})
			if got.text() != c.want {
				t.Errorf("%q, want %q", got.text(), c.want)
			}
		})
	}
}

func TestPhase(t *testing.T) {
	never, onFailure := policy(corev1.RestartPolicyNever), policy(corev1.RestartPolicyOnFailure)
	one, side := initContainer("one", false), initContainer("side", true)
	two := func(p *corev1.Pod) {
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: "b", Image: "b"})
	}
	for _, c := range []struct {
		name    string
		change  []func(*corev1.Pod)
		view    string
		waiting string
		ended   bool
		verdict *Condition
		want    corev1.PodPhase
	}{
		{name: "nothing yet", want: corev1.PodPending},
		{name: "one of two", change: []func(*corev1.Pod){two}, view: "sandbox app=running", want: corev1.PodPending},
		{name: "all", view: "sandbox app=running", want: corev1.PodRunning},
		{name: "restarting", view: "sandbox app=1", want: corev1.PodRunning},
		{name: "backing off", view: "sandbox app=1", waiting: "app", want: corev1.PodRunning},
		{name: "succeeded", change: []func(*corev1.Pod){never}, view: "sandbox app=0", ended: true, want: corev1.PodSucceeded},
		{name: "failed", change: []func(*corev1.Pod){never}, view: "sandbox app=1", ended: true, want: corev1.PodFailed},
		{name: "failed, other still runs", change: []func(*corev1.Pod){never, two}, view: "sandbox app=1 b=running", want: corev1.PodRunning},
		{name: "retry on failure", change: []func(*corev1.Pod){onFailure}, view: "sandbox app=1", want: corev1.PodRunning},
		{name: "initializing", change: []func(*corev1.Pod){one}, view: "sandbox one=running", want: corev1.PodPending},
		{name: "init failed for good", change: []func(*corev1.Pod){one, never}, view: "sandbox one=1", ended: true, want: corev1.PodFailed},
		{name: "init retries", change: []func(*corev1.Pod){one}, view: "sandbox one=1", want: corev1.PodPending},
		{name: "job done, sidecar runs", change: []func(*corev1.Pod){side, never}, view: "sandbox side=running app=0", want: corev1.PodRunning},
		{name: "job done, sidecar too", change: []func(*corev1.Pod){side, never}, view: "sandbox side=143 app=0", ended: true, want: corev1.PodSucceeded},
		{name: "refused", ended: true, verdict: &Condition{"OutOfcpu", "no"}, want: corev1.PodFailed},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := Situation{Pod: newPod("p", c.change...), View: view(c.view), Ended: c.ended, Verdict: c.verdict, Waiting: map[string]Condition{},
				Health: func(string) Health { return Health{Ready: true, Started: true} }, Message: func(*Container) string { return "" }, Now: time.Unix(1000, 0)}
			if c.waiting != "" {
				s.Waiting[c.waiting] = Condition{"CrashLoopBackOff", ""}
			}
			st := Status(s)
			if st.Phase != c.want {
				t.Errorf("%s, want %s", st.Phase, c.want)
			}
			// The same situation a moment later changes nothing.
			s.Pod = s.Pod.DeepCopy()
			s.Pod.Status, s.Now = st, s.Now.Add(time.Hour)
			if again := Status(s); again.String() != st.String() {
				t.Errorf("not stable:\n%s\n%s", st.String(), again.String())
			}
		})
	}
}

func TestConditions(t *testing.T) {
	p := newPod("p", initContainer("one", false))
	p.Spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: "gate"}}
	s := Situation{Pod: p, View: view("sandbox one=0 app=running"), Waiting: map[string]Condition{}, Now: time.Unix(1000, 0),
		Health: func(string) Health { return Health{Ready: true, Started: true} }, Message: func(*Container) string { return "" }}
	text := func() string {
		var out []string
		for _, c := range Status(s).Conditions {
			out = append(out, strings.TrimSpace(fmt.Sprintf("%s=%s %s", c.Type, c.Status, c.Reason)))
		}
		return strings.Join(out, "; ")
	}
	want := "PodReadyToStartContainers=False; Initialized=True; Ready=False ReadinessGatesNotReady; ContainersReady=True"
	if got := text(); got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	p.Status.Conditions = []corev1.PodCondition{{Type: "gate", Status: corev1.ConditionTrue}, {Type: corev1.PodScheduled, Status: corev1.ConditionTrue}}
	s.View = view("sandbox one=0 app=1")
	s.View.Sandboxes[0].Network = &runtimeapi.PodSandboxNetworkStatus{Ip: "10.0.0.1"}
	want = "PodReadyToStartContainers=True; Initialized=True; Ready=False ContainersNotReady; ContainersReady=False ContainersNotReady; PodScheduled=True; gate=True"
	if got := text(); got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
}

// On a host without AppArmor, what asks for a profile is refused, and nothing else.
func TestAdmitWithoutAppArmor(t *testing.T) {
	profile := func(kind corev1.AppArmorProfileType) *corev1.AppArmorProfile {
		return &corev1.AppArmorProfile{Type: kind}
	}
	ofPod := func(kind corev1.AppArmorProfileType) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Spec.SecurityContext = &corev1.PodSecurityContext{AppArmorProfile: profile(kind)}
		}
	}
	ofContainer := func(kind corev1.AppArmorProfileType) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{AppArmorProfile: profile(kind)}
		}
	}
	annotated := func(text string) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Annotations = map[string]string{corev1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix + p.Spec.Containers[0].Name: text}
		}
	}
	for name, c := range map[string]struct {
		pod     *corev1.Pod
		refused bool
	}{
		"nothing":               {newPod("p"), false},
		"unconfined pod":        {newPod("p", ofPod(corev1.AppArmorProfileTypeUnconfined)), false},
		"default of the pod":    {newPod("p", ofPod(corev1.AppArmorProfileTypeRuntimeDefault)), true},
		"profile":               {newPod("p", ofContainer(corev1.AppArmorProfileTypeLocalhost)), true},
		"unconfined container":  {newPod("p", ofContainer(corev1.AppArmorProfileTypeUnconfined)), false},
		"annotation":            {newPod("p", annotated("localhost/x")), true},
		"unconfined annotation": {newPod("p", annotated("unconfined")), false},
		"it runs":               {newPod("p", ofContainer(corev1.AppArmorProfileTypeLocalhost), func(p *corev1.Pod) { p.Status.Phase = corev1.PodRunning }), false},
	} {
		if got := admitWithoutAppArmor(c.pod); (got != nil) != c.refused || got != nil && got.Reason != "AppArmor" {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestAdmit(t *testing.T) {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: map[string]string{"zone": "a"}},
		Spec: corev1.NodeSpec{Taints: []corev1.Taint{{Key: "gone", Effect: corev1.TaintEffectNoExecute}, {Key: "full", Effect: corev1.TaintEffectNoSchedule}}},
		Status: corev1.NodeStatus{Allocatable: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1"), corev1.ResourceMemory: resource.MustParse("1Gi"), corev1.ResourcePods: resource.MustParse("2"),
			"example.com/gpu": resource.MustParse("0"), "example.com/owned": resource.MustParse("0"), "example.com/one": resource.MustParse("1")}}}
	claimed := func(name string) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Status.ExtendedResourceClaimStatus = &corev1.PodExtendedResourceClaimStatus{ResourceClaimName: "c",
				RequestMappings: []corev1.ContainerExtendedResourceRequest{{ContainerName: p.Spec.Containers[0].Name, ResourceName: name, RequestName: "r"}}}
		}
	}
	ok := func(p *corev1.Pod) {
		p.Spec.Tolerations = []corev1.Toleration{{Key: "gone", Operator: corev1.TolerationOpExists}}
	}
	port := func(p *corev1.Pod) {
		p.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 80, HostPort: 80}}
	}
	sysctl := func(name string) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Spec.SecurityContext = &corev1.PodSecurityContext{Sysctls: []corev1.Sysctl{{Name: name, Value: "1"}}}
		}
	}
	device := func(name corev1.ResourceName) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{name: resource.MustParse("1")}
		}
	}
	owns := func(name corev1.ResourceName) bool { return name == "example.com/owned" }
	for _, c := range []struct {
		name   string
		pod    *corev1.Pod
		others []*corev1.Pod
		want   string
	}{
		{"device of a claim", newPod("p", ok, device("example.com/gpu"), claimed("example.com/gpu")), nil, ""},
		{"device of a claim, another from the node", newPod("p", ok, device("example.com/gpu"), claimed("example.com/other")), nil, "OutOfexample.com/gpu"},
		{"device beside one of a claim", newPod("p", ok, device("example.com/one")), []*corev1.Pod{newPod("q", device("example.com/one"), claimed("example.com/one"))}, ""},
		{"device beside one from the node", newPod("p", ok, device("example.com/one")), []*corev1.Pod{newPod("q", device("example.com/one"))}, "OutOfexample.com/one"},
		{"fits", newPod("p", ok), nil, ""},
		{"taint", newPod("p"), nil, "TaintToleration"},
		{"selector", newPod("p", ok, func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"zone": "b"} }), nil, "NodeAffinity"},
		{"too many pods", newPod("p", ok), []*corev1.Pod{newPod("x"), newPod("y")}, "OutOfpods"},
		{"device", newPod("p", ok, device("example.com/gpu")), nil, "OutOfexample.com/gpu"},
		{"device of a plugin", newPod("p", ok, device("example.com/owned")), nil, ""},
		{"resource of the cluster", newPod("p", ok, device("example.com/licence")), nil, ""},
		{"port", newPod("p", ok, port), []*corev1.Pod{newPod("x", port)}, "NodePorts"},
		{"port free", newPod("p", ok, port), []*corev1.Pod{newPod("x")}, ""},
		{"safe sysctl", newPod("p", ok, sysctl("net/ipv4/tcp_syncookies")), nil, ""},
		{"allowed sysctl", newPod("p", ok, sysctl("net.core.somaxconn")), nil, ""},
		{"unsafe sysctl", newPod("p", ok, sysctl("vm.swappiness")), nil, "SysctlForbidden"},
		{"the host's sysctl", newPod("p", ok, sysctl("net.ipv4.tcp_syncookies"), func(p *corev1.Pod) { p.Spec.HostNetwork = true }), nil, "SysctlForbidden"},
		{"another system", newPod("p", ok, func(p *corev1.Pod) { p.Spec.OS = &corev1.PodOS{Name: corev1.Windows} }), nil, "PodOSNotSupported"},
	} {
		got := ""
		if refused := Admit(c.pod, node, c.others, []string{"net.core.*"}, owns); refused != nil {
			got = refused.Reason
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}
