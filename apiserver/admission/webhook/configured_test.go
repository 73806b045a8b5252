package webhook_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	admissionv1 "k8s.io/api/admission/v1"
	admissionregv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/admission/webhook"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/apiserver/rest"
	"github.com/yare-dev/yare/apiserver/servertest"
)

// What is counted, by upstream's names and labels.
func TestMetrics(t *testing.T) {
	b := newBench(t)
	b.replies["/v"], b.replies["/m"] = deny("no", 700), allow
	b.mutating("c", "m", rule("configmaps", "*"), nil)
	b.mutating("d", "broken", rule("configmaps", "*"), func(h *admissionregv1.MutatingWebhook) { h.FailurePolicy = ptr(admissionregv1.Ignore) })
	b.mutating("e", "skipped", rule("configmaps", "*"), func(h *admissionregv1.MutatingWebhook) {
		h.MatchConditions = []admissionregv1.MatchCondition{{Name: "n", Expression: "object.data.none == 'x'"}, {Name: "f", Expression: "false"}}
	})
	b.validating("c", "v", rule("configmaps", "*"), nil)
	_, err := b.create(configMaps, configMap("x"))
	b.want(err, 700, "no")
	all, err := b.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, family := range all {
		for _, m := range family.GetMetric() {
			line := strings.TrimPrefix(family.GetName(), "apiserver_admission_")
			for _, l := range m.GetLabel() {
				line += " " + l.GetName() + "=" + l.GetValue()
			}
			got = append(got, fmt.Sprint(line, " ", m.GetCounter().GetValue()+float64(m.GetHistogram().GetSampleCount())))
		}
	}
	want := []string{
		"match_condition_evaluation_errors_total kind=webhook name=skipped.example.com operation=CREATE type=admit 1",
		"match_condition_evaluation_seconds kind=webhook name=skipped.example.com operation=CREATE type=admit 1",
		"match_condition_exclusions_total kind=webhook name=skipped.example.com operation=CREATE type=admit 1",
		"webhook_admission_duration_seconds name=broken.example.com operation=CREATE rejected=false type=admit 1",
		"webhook_admission_duration_seconds name=m.example.com operation=CREATE rejected=false type=admit 1",
		"webhook_admission_duration_seconds name=v.example.com operation=CREATE rejected=true type=validating 1",
		"webhook_fail_open_count name=broken.example.com type=admit 1",
		"webhook_rejection_count error_type=no_error name=v.example.com operation=CREATE rejection_code=600 type=validating 1",
		"webhook_request_total code=200 name=m.example.com operation=CREATE rejected=false type=admit 1",
		"webhook_request_total code=404 name=broken.example.com operation=CREATE rejected=false type=admit 1",
		"webhook_request_total code=600 name=v.example.com operation=CREATE rejected=true type=validating 1",
	}
	if !slices.Equal(got, want) {
		t.Errorf("counted\n%s", strings.Join(got, "\n"))
	}
}

// The objects of a collection are deleted together, and what webhooks say of each is heard.
func TestCollection(t *testing.T) {
	b := newBench(t)
	for i := range 20 {
		if _, err := b.create(configMaps, configMap(fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
	}
	b.validating("c", "v", rule("configmaps", admissionregv1.Delete), nil)
	b.replies["/v"] = func(q *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		return &admissionv1.AdmissionResponse{Allowed: true, Warnings: []string{"gone " + q.Name}}
	}
	r := b.request(configMaps, "")
	r.Audit = nil
	if _, err := b.pipe.DeleteCollection(b.ctx, r, &metav1.DeleteOptions{}, rest.ListOptions{}); err != nil {
		t.Fatal(err)
	}
	if len(b.warned) != 20 || b.s.Snapshot(api.ConfigMapKind).Len() != 0 {
		t.Errorf("%d warnings, %d left", len(b.warned), b.s.Snapshot(api.ConfigMapKind).Len())
	}
}

// A configuration counts from its write on, until it is deleted.
func TestFollowed(t *testing.T) {
	b := newBench(t)
	b.replies["/v"] = deny("no", 0)
	for range 20 {
		b.validating("c", "v", rule("configmaps", "*"), nil)
		if _, err := b.create(configMaps, configMap("x")); err == nil {
			t.Fatal("not asked after it was configured")
		}
		servertest.Remove(t, b.s, &admissionregv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "c"}})
		if _, err := b.create(configMaps, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "g-"}}); err != nil {
			t.Fatalf("asked after it was removed: %v", err)
		}
	}
}

// Where nothing is configured, requests pass at no cost.
func TestIdle(t *testing.T) {
	s := servertest.Store(t)
	w := webhook.New(webhook.Deps{Store: s, Access: nobody{}, Metrics: prometheus.NewRegistry()})
	a := &rest.Admitting{User: &authn.User{Name: "u"}, Operation: rest.OpCreate, Kind: api.ConfigMapKind, Key: api.Key{Namespace: "ns"}, Object: configMap("x")}
	mutate, validate := w.Mutating().Mutate, w.Validating().Validate
	if n := testing.AllocsPerRun(100, func() {
		if mutate(t.Context(), a) != nil || validate(t.Context(), a) != nil {
			t.Error("refused")
		}
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
