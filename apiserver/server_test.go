package apiserver_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apimachinery/pkg/version"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/apiserver/authz"
	"github.com/yare-dev/yare/apiserver/rest"
	"github.com/yare-dev/yare/run"
	"github.com/yare-dev/yare/store"
	"github.com/yare-dev/yare/store/memory"
)

// The kinds that the tests serve: enough of each to meet every branch of the generic code.
var (
	configMaps = &rest.Resource[*corev1.ConfigMap]{
		Columns: []rest.Column[*corev1.ConfigMap]{
			{Name: "Data", Type: "string", Cell: func(o *corev1.ConfigMap) any { return int64(len(o.Data)) }},
			{Name: "Age", Type: "string"},
		},
		Validate: func(o *corev1.ConfigMap) (errs field.ErrorList) {
			if _, bad := o.Data["bad key"]; bad {
				errs = append(errs, field.Invalid(field.NewPath("data"), "bad key", "not a key"))
			}
			return errs
		},
		CreateOnUpdate: true,
	}
	pods = &rest.Resource[*corev1.Pod]{
		Default: func(o *corev1.Pod) {
			if o.Spec.RestartPolicy == "" {
				o.Spec.RestartPolicy = corev1.RestartPolicyAlways
			}
		},
		Prepare: func(o *corev1.Pod) { o.Status.Phase = corev1.PodPending },
		Fields: func(o *corev1.Pod) fields.Set {
			return fields.Set{"spec.nodeName": o.Spec.NodeName, "status.phase": string(o.Status.Phase)}
		},
		Grace: func(o *corev1.Pod, opts *metav1.DeleteOptions) int64 {
			switch {
			case opts.GracePeriodSeconds != nil:
				return *opts.GracePeriodSeconds
			case o.Spec.NodeName == "":
				return 0
			}
			return 30
		},
		AnswerDeleted: true,
	}
	deployments = &rest.Resource[*appsv1.Deployment]{
		Scale: &rest.Scale[*appsv1.Deployment]{
			Replicas: func(o *appsv1.Deployment) (int32, int32) {
				if o.Spec.Replicas == nil {
					return 1, o.Status.Replicas
				}
				return *o.Spec.Replicas, o.Status.Replicas
			},
			Set:      func(o *appsv1.Deployment, n int32) { o.Spec.Replicas = &n },
			Selector: func(o *appsv1.Deployment) string { return metav1.FormatLabelSelector(o.Spec.Selector) },
		},
	}
	namespaces = &rest.Resource[*corev1.Namespace]{
		Prepare:    func(o *corev1.Namespace) { o.Spec.Finalizers = []corev1.FinalizerName{corev1.FinalizerKubernetes} },
		Finalizing: func(o *corev1.Namespace) bool { return len(o.Spec.Finalizers) > 0 },
		Deleting:   func(o *corev1.Namespace) { o.Status.Phase = corev1.NamespaceTerminating },
		Sub: map[string]*rest.Subresource{"finalize": {
			Update: func(context.Context, api.Object, api.Object) field.ErrorList { return nil },
		}},
		NoGeneration: true,
	}
	reviews = &rest.Resource[*authenticationv1.SelfSubjectReview]{
		Answer: func(ctx context.Context, o *authenticationv1.SelfSubjectReview) (*authenticationv1.SelfSubjectReview, error) {
			o.Status.UserInfo.Username = authn.UserFrom(ctx).Name
			o.Status.UserInfo.Groups = authn.UserFrom(ctx).Groups
			return o, nil
		},
	}
)

// autoscalers and events are kinds with two forms.
var (
	autoscalers = rest.Register(api.HorizontalPodAutoscalerKind, &rest.Resource[*autoscalingv2.HorizontalPodAutoscaler]{})
	events      = rest.Register(api.EventKind, &rest.Resource[*corev1.Event]{
		Fields: func(o *corev1.Event) fields.Set {
			return fields.Set{"involvedObject.uid": string(o.InvolvedObject.UID)}
		},
	})
)

func resources() []rest.Any {
	return []rest.Any{
		events, autoscalers,
		rest.RegisterView(api.HorizontalPodAutoscalerV1Kind, autoscalers, &rest.View[*autoscalingv2.HorizontalPodAutoscaler]{}),
		rest.RegisterView(api.EventsEventKind, events, &rest.View[*corev1.Event]{Fields: func(o *corev1.Event) fields.Set {
			return fields.Set{"regarding.uid": string(o.InvolvedObject.UID), "reportingController": o.ReportingController}
		}}),
		rest.Register(api.NamespaceKind, namespaces),
		rest.Register(api.PodKind, pods),
		rest.Register(api.ConfigMapKind, configMaps),
		rest.Register(api.DeploymentKind, deployments),
		rest.Register(api.SelfSubjectReviewKind, reviews),
	}
}

// allow lets everybody but "nobody" do everything, "reader" only read.
type allow struct{}

func (allow) Authorize(_ context.Context, a *authz.Attributes) (bool, string, error) {
	switch a.User.Name {
	case "nobody":
		return false, "", nil
	case "reader":
		return a.Verb == "get" || a.Verb == "list" || a.Verb == "watch", "", nil
	}
	return true, "", nil
}

// byHeader authenticates by a header, so that tests choose the user.
type byHeader struct{}

func (byHeader) Authenticate(r *http.Request) (*authn.User, error) {
	switch name := r.Header.Get("X-User"); name {
	case "":
		return nil, nil
	case "broken":
		return nil, fmt.Errorf("bad credentials")
	case "master":
		return &authn.User{Name: name, Groups: []string{authn.Masters}}, nil
	default:
		return &authn.User{Name: name}, nil
	}
}

// serve returns a running server over a memory store.
func serve(t testing.TB, change ...func(*apiserver.Config, *apiserver.Deps)) *apiserver.Server {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	st := store.New(memory.New(true), api.Stored(), store.Options{Log: log, Indexes: rest.Indexes(), Detect: true})
	ctx, cancel := context.WithCancel(context.Background())
	up, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- st.Run(ctx, func() { close(up) }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil && ctx.Err() == nil {
			t.Error(err)
		}
	})
	<-up
	health := run.NewHealth()
	cfg := apiserver.Config{Version: version.Info{Major: "1", Minor: "37", GitVersion: "v1.37.2+yare"}}
	deps := apiserver.Deps{
		Store: st, Resources: resources(), Authenticators: []authn.Authenticator{byHeader{}}, Authorizer: allow{},
		Health: health, Log: log,
	}
	for _, f := range change {
		f(&cfg, &deps)
	}
	s, err := apiserver.New(cfg, deps)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// do sends one request to the server's handler.
func do(t testing.TB, h http.Handler, method, path, body string, header ...string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	if body == "" {
		r.Body = http.NoBody
	}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}
