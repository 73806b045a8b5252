package pod

import (
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	corev1 "k8s.io/api/core/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/kubelet/probe"
)

// Metrics of a pod's probes last over restarts of its containers, and end with the pod: when it is deleted, and when it has ended by itself.
func TestProbeMetrics(t *testing.T) {
	for name, end := range map[string]func(*bed){
		"deleted":      func(b *bed) { b.api.DeletePod(api.Key{Namespace: "default", Name: "p"}, 1) },
		"ended itself": func(b *bed) { b.runtime.Exit("app", 0) },
	} {
		synctest.Test(t, func(t *testing.T) {
			m := probe.NewMetrics()
			b := newBed(t)
			b.stop()
			b.probes = m
			b.start()
			lines := func() (n int) {
				r := prometheus.NewRegistry()
				r.MustRegister(m.Collectors()...)
				w := httptest.NewRecorder()
				promhttp.HandlerFor(r, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
				return strings.Count(w.Body.String(), "prober_probe_total{")
			}
			b.api.Put(newPod("p", policy(corev1.RestartPolicyOnFailure), func(p *corev1.Pod) {
				exec := &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"x"}}}, PeriodSeconds: 1}
				p.Spec.Containers[0].LivenessProbe, p.Spec.Containers[0].ReadinessProbe = exec, exec
			}))
			time.Sleep(5 * time.Second)
			b.settle()
			if n := lines(); n != 2 {
				t.Errorf("%s: %d series while it runs", name, n)
			}
			b.runtime.Exit("app", 1)
			b.settle()
			if n := lines(); n != 2 {
				t.Errorf("%s: %d series while its container is started again", name, n)
			}
			time.Sleep(time.Minute)
			b.settle()
			end(b)
			time.Sleep(time.Minute)
			b.settle()
			if n := lines(); n != 0 {
				t.Errorf("%s: %d series afterwards", name, n)
			}
		})
	}
}
