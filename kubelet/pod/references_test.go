package pod

import (
	"context"
	"iter"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/kubelet/kubelettest"
)

func configMapOf(value string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "c"}, Data: map[string]string{"K": value}}
}

// refers has the pod name a ConfigMap and a Secret, by volumes and by environment, and a token.
func refers(p *corev1.Pod) {
	seconds := int64(3600)
	p.Spec.ServiceAccountName = "default"
	p.Spec.Volumes = []corev1.Volume{
		{Name: "c", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "c"}}}},
		{Name: "s", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "s"}}},
		{Name: "t", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
			{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token", ExpirationSeconds: &seconds}}}}}},
	}
	p.Spec.Containers[0].EnvFrom = []corev1.EnvFromSource{
		{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "c"}}},
		{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "s"}}}}
	links := false
	p.Spec.EnableServiceLinks = &links
}

func newReferringBed(t *testing.T) *bed {
	return newBed(t, configMapOf("v"), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "s"}, Data: map[string][]byte{"S": []byte("x")}})
}

// While the API is away, what crashes is started again, with what was known last.
func TestRestartWithoutTheAPI(t *testing.T) {
	for _, after := range []time.Duration{
		time.Minute,
		55 * time.Minute, // the token should have been renewed
		2 * time.Hour,    // it has expired
	} {
		synctest.Test(t, func(t *testing.T) {
			b := newReferringBed(t)
			b.api.Put(newPod("a", refers))
			b.wantRunning("app")
			b.api.Away(true)
			time.Sleep(after)
			b.runtime.Exit("app", 1)
			b.settle()
			app := b.runtime.Running()["app"]
			if app == nil {
				t.Fatal("after", after, "without an API it is not started")
			}
			if !slices.ContainsFunc(app.Envs, func(e *runtimeapi.KeyValue) bool { return e.Key == "K" && string(e.Value) == "v" }) {
				t.Error("environment", app.Envs)
			}
			b.api.Away(false)
			b.api.Put(configMapOf("w"))
			b.runtime.Exit("app", 1)
			time.Sleep(time.Minute)
			b.wantStatus("a", "Running ready app=running#2")
		})
	}
}

// A sync asks the API for nothing that is watched.
func TestWhatIsWatchedIsNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newReferringBed(t)
		b.api.Put(newPod("a", refers))
		b.wantRunning("app")
		b.settle()
		b.api.Reads()
		for range 5 {
			b.pods.WakeAll()
			b.settle()
		}
		if reads := b.api.Reads(); len(reads) > 0 {
			t.Error("read:", reads)
		}
		b.api.Put(configMapOf("w"))
		b.settle()
		b.runtime.Exit("app", 1)
		b.wantRunning("app")
		if !slices.ContainsFunc(b.runtime.Running()["app"].Envs, func(e *runtimeapi.KeyValue) bool { return e.Key == "K" && string(e.Value) == "w" }) {
			t.Error("environment", b.runtime.Running()["app"].Envs)
		}
	})
}

// lateWatch is an API whose watches tell of what there was at first alone.
type lateWatch struct{ *kubelettest.API }

func (l lateWatch) Watch(ctx context.Context, k *api.Kind, q client.Query, from api.Revision) iter.Seq2[client.Event, error] {
	return func(yield func(client.Event, error) bool) {
		for e, err := range l.API.Watch(ctx, k, q, from) {
			if !yield(e, err) {
				return
			}
			if e.Op == client.Synced {
				<-ctx.Done()
				return
			}
		}
	}
}

// A pod is not given what is older than itself, although another one's watch has not told of the newest yet. What the API says is not
// undone by the watch.
func TestFirstReadIsFresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := kubelettest.NewAPI(configMapOf("v"))
		r := newReferences(lateWatch{a}, func(types.UID) {})
		ctx, cancel := context.WithCancel(t.Context())
		defer r.close()
		defer cancel()
		r.open(ctx)
		ref := reference{kind: api.ConfigMapKind, key: api.Key{Namespace: "default", Name: "c"}}
		want := func(pod types.UID, value string) {
			t.Helper()
			r.set(pod, []reference{ref})
			synctest.Wait()
			o, err := r.get(ctx, pod, ref)
			if err != nil && value != "" || err == nil && o.(*corev1.ConfigMap).Data["K"] != value {
				t.Error(pod, o, err)
			}
		}
		want("first", "v")
		a.Put(configMapOf("w"))
		want("second", "w")
		want("first", "w")
		if err := a.Delete(ctx, configMapOf(""), client.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		want("third", "")
		a.Away(true)
		want("fourth", "w") // the last that is known
		if _, err := r.get(ctx, "stranger", reference{kind: api.ConfigMapKind, key: api.Key{Namespace: "default", Name: "d"}}); !apierrors.IsServiceUnavailable(err) {
			t.Error(err)
		}
	})
}
