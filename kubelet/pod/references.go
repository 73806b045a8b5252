package pod

import (
	"context"
	"slices"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/kubelet/spec"
	"github.com/yare-dev/yare/kubelet/volume"
	"github.com/yare-dev/yare/run"
)

// reference names an object that a pod's volumes or environment are made of, or, with a node, the PodCertificateRequests of
// the pod that key names.
type reference struct {
	kind *api.Kind
	key  api.Key
	node string
}

func (r reference) query() client.Query {
	q := client.Query{Namespace: r.key.Namespace, Fields: fields.OneTermEqualSelector("metadata.name", r.key.Name)}
	if r.node != "" { // without which a kubelet may not watch them
		q.Fields = fields.AndSelectors(fields.OneTermEqualSelector("spec.nodeName", r.node), fields.OneTermEqualSelector("spec.podName", r.key.Name))
	}
	return q
}

// references watches exactly the objects that pods of this node name, each once, and wakes the pods when one changes.
type references struct {
	client client.Reader
	wake   func(types.UID)

	mu      sync.Mutex
	ctx     context.Context
	watched map[reference]*reading
	byPod   map[types.UID][]reference

	wg sync.WaitGroup
}

type reading struct {
	cancel context.CancelFunc
	pods   map[types.UID]bool
}

func newReferences(c client.Reader, wake func(types.UID)) *references {
	return &references{client: c, wake: wake, watched: map[reference]*reading{}, byPod: map[types.UID][]reference{}}
}

func (r *references) open(ctx context.Context) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ctx = ctx
}

func (r *references) close() { r.wg.Wait() }

// set makes refs what the pod depends on.
func (r *references) set(uid types.UID, refs []reference) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, ref := range refs {
		have := r.watched[ref]
		if have == nil {
			ctx, cancel := context.WithCancel(r.ctx)
			have = &reading{cancel: cancel, pods: map[types.UID]bool{}}
			r.watched[ref] = have
			r.wg.Go(func() { r.watch(ctx, ref) })
		}
		have.pods[uid] = true
	}
	for _, old := range r.byPod[uid] {
		if slices.Contains(refs, old) {
			continue
		}
		if have := r.watched[old]; have != nil {
			delete(have.pods, uid)
			if len(have.pods) == 0 {
				have.cancel()
				delete(r.watched, old)
			}
		}
	}
	if len(refs) == 0 {
		delete(r.byPod, uid)
	} else {
		r.byPod[uid] = refs
	}
}

// watch wakes the object's pods at each change, until ctx ends. A refusal (the node authorizer may not know the pod
// yet) is tried again.
func (r *references) watch(ctx context.Context, ref reference) {
	for ctx.Err() == nil {
		synced := false
		for e, err := range r.client.Watch(ctx, ref.kind, ref.query(), 0) {
			if err != nil {
				break
			}
			// What existed at the start may have been read before it was as it is.
			if synced = synced || e.Op == client.Synced; synced {
				r.notify(ref)
			}
		}
		if run.Pause(ctx, time.Second) == nil {
			r.notify(ref)
		}
	}
}

func (r *references) notify(ref reference) {
	r.mu.Lock()
	var pods []types.UID
	if have := r.watched[ref]; have != nil {
		for uid := range have.pods {
			pods = append(pods, uid)
		}
	}
	r.mu.Unlock()
	for _, uid := range pods {
		r.wake(uid)
	}
}

// referencesOf lists what the pod names, each once, and the requests for its certificates on the node.
func referencesOf(pod *corev1.Pod, node string) (refs []reference) {
	add := func(kind *api.Kind, name string) {
		ref := reference{kind: kind, key: api.Key{Namespace: pod.Namespace, Name: name}}
		if kind == api.PodCertificateRequestKind {
			ref.node = node
		}
		if name != "" && !slices.Contains(refs, ref) {
			refs = append(refs, ref)
		}
	}
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		switch {
		case v.ConfigMap != nil:
			add(api.ConfigMapKind, v.ConfigMap.Name)
		case v.Secret != nil:
			add(api.SecretKind, v.Secret.SecretName)
		case v.Projected != nil:
			for _, s := range v.Projected.Sources {
				if s.ConfigMap != nil {
					add(api.ConfigMapKind, s.ConfigMap.Name)
				}
				if s.Secret != nil {
					add(api.SecretKind, s.Secret.Name)
				}
				if s.PodCertificate != nil {
					add(api.PodCertificateRequestKind, pod.Name)
				}
			}
		}
	}
	spec.Each(pod, func(c *corev1.Container, _ spec.Kind) {
		for _, f := range c.EnvFrom {
			if f.ConfigMapRef != nil {
				add(api.ConfigMapKind, f.ConfigMapRef.Name)
			}
			if f.SecretRef != nil {
				add(api.SecretKind, f.SecretRef.Name)
			}
		}
		for _, e := range c.Env {
			if e.ValueFrom != nil && e.ValueFrom.ConfigMapKeyRef != nil {
				add(api.ConfigMapKind, e.ValueFrom.ConfigMapKeyRef.Name)
			}
			if e.ValueFrom != nil && e.ValueFrom.SecretKeyRef != nil {
				add(api.SecretKind, e.ValueFrom.SecretKeyRef.Name)
			}
		}
	})
	for _, s := range pod.Spec.ImagePullSecrets {
		add(api.SecretKind, s.Name)
	}
	return refs
}

// tokens keeps service account tokens until they should be replaced.
type tokens struct {
	client client.Writer

	mu    sync.Mutex
	byPod map[types.UID]map[tokenKey]token
}

type tokenKey struct {
	account, audience string
	seconds           int64
}

type token struct {
	status authenticationv1.TokenRequestStatus
	renew  time.Time
}

func newTokens(c client.Writer) *tokens {
	return &tokens{client: c, byPod: map[types.UID]map[tokenKey]token{}}
}

// get returns a token, a new one when the last has lived four fifths of its life or a day.
func (t *tokens) get(ctx context.Context, pod *corev1.Pod, req authenticationv1.TokenRequestSpec) (authenticationv1.TokenRequestStatus, time.Time, error) {
	key := tokenKey{account: pod.Spec.ServiceAccountName, seconds: *req.ExpirationSeconds}
	if key.account == "" {
		key.account = "default"
	}
	if len(req.Audiences) > 0 {
		key.audience = req.Audiences[0]
	}
	t.mu.Lock()
	have, ok := t.byPod[pod.UID][key]
	t.mu.Unlock()
	now := time.Now()
	if ok && now.Before(have.renew) {
		return have.status, have.renew, nil
	}
	body := api.TokenRequestKind.New().(*authenticationv1.TokenRequest)
	body.Spec = req
	got, err := t.client.Post(ctx, api.ServiceAccountKind, api.Key{Namespace: pod.Namespace, Name: key.account}, "token", body)
	if err != nil {
		return authenticationv1.TokenRequestStatus{}, time.Time{}, err
	}
	status := got.(*authenticationv1.TokenRequest).Status
	life := status.ExpirationTimestamp.Sub(now)
	have = token{status, now.Add(min(life*4/5, 24*time.Hour))}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byPod[pod.UID] == nil {
		t.byPod[pod.UID] = map[tokenKey]token{}
	}
	t.byPod[pod.UID][key] = have
	return have.status, have.renew, nil
}

func (t *tokens) forget(uid types.UID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.byPod, uid)
}

// source is where a pod's volumes and environment get their contents.
type source struct {
	*worker
	ctx context.Context // of the one sync that made it
	pod *corev1.Pod
}

func (w *worker) source(ctx context.Context, pod *corev1.Pod) source { return source{w, ctx, pod} }

func (s source) ConfigMap(name string) (*corev1.ConfigMap, error) {
	return referred[*corev1.ConfigMap](s, "configmap", name)
}

func (s source) Secret(name string) (*corev1.Secret, error) {
	return referred[*corev1.Secret](s, "secret", name)
}

// referred reads an object that the pod refers to. One that is missing is called what upstream's kubelet calls it, and users look
// for: `configmap "c" not found`.
func referred[T api.Object](s source, what, name string) (T, error) {
	o, err := client.Get[T](s.ctx, s.Client, api.Key{Namespace: s.pod.Namespace, Name: name})
	if apierrors.IsNotFound(err) {
		err = apierrors.NewNotFound(corev1.Resource(what), name)
	}
	return o, err
}

func (s source) Token(ctx context.Context, pod *corev1.Pod, req authenticationv1.TokenRequestSpec) (authenticationv1.TokenRequestStatus, time.Time, error) {
	return s.tokens.get(ctx, pod, req)
}

func (s source) Bundle(name string) (*certificatesv1.ClusterTrustBundle, error) {
	s.bundles.use(s.pod.UID, want{name: name})
	return s.bundles.get(s.ctx, name)
}

func (s source) Bundles(signer string, selector labels.Selector) ([]*certificatesv1.ClusterTrustBundle, error) {
	s.bundles.use(s.pod.UID, want{signer: signer})
	return s.bundles.of(s.ctx, signer, selector)
}

func (s source) Certificate(ctx context.Context, pod *corev1.Pod, vol string, index int) (*volume.Certificate, time.Time, error) {
	return s.certificate(ctx, pod, projection{vol, index})
}

func (s source) Claim(name string) (*corev1.PersistentVolumeClaim, error) {
	return referred[*corev1.PersistentVolumeClaim](s, "persistentvolumeclaim", name)
}

func (s source) Volume(name string) (*corev1.PersistentVolume, error) {
	return client.Get[*corev1.PersistentVolume](s.ctx, s.Client, api.Key{Name: name})
}

func (s source) CSIDriver(name string) (*storagev1.CSIDriver, error) {
	return client.Get[*storagev1.CSIDriver](s.ctx, s.Client, api.Key{Name: name})
}

func (s source) Attachment(name string) (*storagev1.VolumeAttachment, error) {
	return client.Get[*storagev1.VolumeAttachment](s.ctx, s.Client, api.Key{Name: name})
}

func (s source) SecretIn(namespace, name string) (*corev1.Secret, error) {
	return client.Get[*corev1.Secret](s.ctx, s.Client, api.Key{Namespace: namespace, Name: name})
}

func (s source) Node() *corev1.Node { return s.worker.Node() }

func (s source) SetClaim(c *corev1.PersistentVolumeClaim, change func(*corev1.PersistentVolumeClaimStatus)) (*corev1.PersistentVolumeClaim, error) {
	return client.Mutate(s.ctx, s.Client, c, "status", func(c *corev1.PersistentVolumeClaim) { change(&c.Status) })
}

func (s source) Say(o api.Object, kind, reason, message string) {
	s.Events.EventAt(o, "", kind, reason, message)
}
