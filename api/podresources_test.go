package api

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// TestCompleteResources has resources as "requests/limits", each a list such as "cpu=1 memory=1Gi".
func TestCompleteResources(t *testing.T) {
	t.Parallel()
	list := func(text string) corev1.ResourceList {
		var l corev1.ResourceList
		for _, f := range strings.Fields(text) {
			name, q, _ := strings.Cut(f, "=")
			if l == nil {
				l = corev1.ResourceList{}
			}
			l[corev1.ResourceName(name)] = resource.MustParse(q)
		}
		return l
	}
	both := func(text string) corev1.ResourceRequirements {
		requests, limits, _ := strings.Cut(text, "/")
		return corev1.ResourceRequirements{Requests: list(requests), Limits: list(limits)}
	}
	shown := func(l corev1.ResourceList) string {
		var out []string
		for _, name := range []corev1.ResourceName{"cpu", "memory", "hugepages-2Mi", "ephemeral-storage"} {
			if q, ok := l[name]; ok {
				out = append(out, fmt.Sprintf("%s=%s", name, q.String()))
			}
		}
		return strings.Join(out, " ")
	}
	always := corev1.ContainerRestartPolicyAlways
	for name, tc := range map[string]struct {
		whole, init, main, want string // "": nothing said; containers are separated by ", "
	}{
		"nothing":      {"/", "", "cpu=1/cpu=1", "/"},
		"limits alone": {"/cpu=100m memory=100Mi", "", "/, /", "cpu=100m memory=100Mi/cpu=100m memory=100Mi"},
		"limits, and requests of containers": {"/cpu=100m memory=100Mi", "", "cpu=50m/, cpu=30m memory=30Mi/",
			"cpu=80m memory=30Mi/cpu=100m memory=100Mi"},
		"requests alone":                  {"cpu=100m/", "", "/, /", "cpu=100m/"},
		"requests, and limits of some":    {"cpu=100m/", "", "cpu=50m/cpu=50m, /", "cpu=100m/"},
		"requests, and limits of all":     {"cpu=100m/", "", "cpu=50m/cpu=50m, cpu=70m/cpu=70m", "cpu=100m/cpu=120m"},
		"requests above the limits":       {"cpu=200m/", "", "cpu=50m/cpu=50m, cpu=70m/cpu=70m", "cpu=200m/cpu=200m"},
		"an init container without limit": {"cpu=100m/", "/", "cpu=50m/cpu=50m", "cpu=100m/"},
		"a sidecar counts beside":         {"memory=1Mi/", "cpu=1/cpu=1", "cpu=2/cpu=2", "cpu=3 memory=1Mi/cpu=3"},
		"huge pages of containers":        {"cpu=1/", "", "/hugepages-2Mi=2Mi, /hugepages-2Mi=4Mi", "cpu=1 hugepages-2Mi=6Mi/hugepages-2Mi=6Mi"},
		"huge pages of one":               {"cpu=1/", "", "/hugepages-2Mi=2Mi, /", "cpu=1 hugepages-2Mi=2Mi/hugepages-2Mi=2Mi"},
		"huge pages shared":               {"/cpu=1 hugepages-2Mi=8Mi", "", "/hugepages-2Mi=2Mi, /", "cpu=1 hugepages-2Mi=8Mi/cpu=1 hugepages-2Mi=8Mi"},
		"what only containers can have":   {"cpu=1/", "", "ephemeral-storage=1Gi/ephemeral-storage=1Gi", "cpu=1/"},
	} {
		whole := both(tc.whole)
		s := &corev1.PodSpec{Resources: &whole}
		if tc.init != "" {
			s.InitContainers = []corev1.Container{{Resources: both(tc.init), RestartPolicy: &always}}
		}
		for c := range strings.SplitSeq(tc.main, ", ") {
			s.Containers = append(s.Containers, corev1.Container{Resources: both(c)})
		}
		for range 2 { // a second time changes nothing
			CompleteResources(s)
			if got := shown(s.Resources.Requests) + "/" + shown(s.Resources.Limits); got != tc.want {
				t.Errorf("%s: got %s, want %s", name, got, tc.want)
			}
		}
	}
	CompleteResources(&corev1.PodSpec{})
}
