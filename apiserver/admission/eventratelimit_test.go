package admission_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/admission"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/apiserver/rest"
)

func configure(t *testing.T, text string, more map[string]string) ([]rest.Admission, error) {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "admission.yaml")
	write := func(file, text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(file, "apiVersion: apiserver.config.k8s.io/v1\nkind: AdmissionConfiguration\n"+text)
	for name, text := range more {
		write(filepath.Join(dir, name), text)
	}
	return admission.Configured(file)
}

const eventLimits = "apiVersion: eventratelimit.admission.k8s.io/v1alpha1\nkind: Configuration\n"

func TestEventRateLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all, err := configure(t, "plugins: [{name: EventRateLimit, path: limits.yaml}]", map[string]string{
			"limits.yaml": eventLimits + "limits: [{type: Server, qps: 5, burst: 6}, {type: Namespace, qps: 1, burst: 3}, {type: User, qps: 100, burst: 100, cacheSize: 2}, {type: SourceAndObject, qps: 1, burst: 2}]"})
		if err != nil || len(all) != 1 {
			t.Fatal(all, err)
		}
		ask := func(namespace, object string, change ...func(*rest.Admitting)) error {
			e := &corev1.Event{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "e"}, InvolvedObject: corev1.ObjectReference{Name: object}}
			a := &rest.Admitting{User: &authn.User{Name: "u"}, Operation: rest.OpCreate, Kind: api.EventKind, Key: api.Key{Namespace: namespace, Name: "e"}, Object: e}
			for _, f := range change {
				f(a)
			}
			return all[0].Validate(t.Context(), a)
		}
		want := func(err error, text string) {
			t.Helper()
			if text == "" && err != nil || text != "" && (!apierrors.IsTooManyRequests(err) || !strings.Contains(err.Error(), text)) {
				t.Errorf("got %v, want %q", err, text)
			}
		}
		want(ask("a", "x"), "")
		want(ask("a", "x"), "")
		want(ask("a", "x"), "limit reached on type SourceAndObject for key x")
		want(ask("a", "y"), "limit reached on type Namespace for key a")
		want(ask("b", "z", func(a *rest.Admitting) { a.DryRun = true }), "")
		want(ask("b", "z", func(a *rest.Admitting) { a.Operation = rest.OpDelete }), "")
		want(ask("b", "z", func(a *rest.Admitting) { a.Kind, a.Object = api.KindOf(&eventsv1.Event{}), &eventsv1.Event{} }), "")
		want(ask("b", "z"), "")
		want(ask("b", "z", func(a *rest.Admitting) { a.Operation = rest.OpUpdate }), "")
		want(ask("b", "v"), "limit reached on type Server for key")
		time.Sleep(3 * time.Second)
		want(ask("a", "x"), "")
		want(ask("b", "v"), "")
	})
}

func TestAdmissionConfiguration(t *testing.T) {
	t.Parallel()
	if all, err := configure(t, "plugins:\n- name: EventRateLimit\n  configuration:\n    apiVersion: eventratelimit.admission.k8s.io/v1alpha1\n    kind: Configuration\n    limits: [{type: Server, qps: 1, burst: 1}]\n", nil); err != nil || len(all) != 1 {
		t.Error(all, err)
	}
	for text, want := range map[string]string{
		"plugins: [{name: Odd}]":                                                            `plugins[0].name: Unsupported value: "Odd"`,
		"plugins: [{name: EventRateLimit, path: none}]":                                     "plugins[0]: open",
		"plugins: [{name: EventRateLimit, path: bad}]":                                      "limits[0].type: Unsupported value",
		"plugins: [{name: EventRateLimit, path: good}, {name: EventRateLimit, path: good}]": "plugins[1].name: Duplicate value",
		"plugins: [{name: EventRateLimit}]":                                                 "apiVersion: Unsupported value",
		"plugin: []":                                                                        "unknown field",
	} {
		_, err := configure(t, text, map[string]string{
			"good": eventLimits + "limits: [{type: Server, qps: 1, burst: 1}]",
			"bad":  eventLimits + "limits: [{type: Odd, qps: 0, burst: -1, cacheSize: -1}]",
		})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}
