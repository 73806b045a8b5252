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

// references watches exactly the objects that pods of this node name, each once, keeps the newest, and wakes the pods when one
// changes. So containers start again while the API is away.
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
	pods   map[types.UID]bool // by which it is named, and whether they were given what is at least as new as they are
	known  bool               // the watch has told whether there is an object
	object api.Object         // the newest, nil where there is none
	rev    api.Revision       // as of which
}

// learn notes an object, nil for none, unless a newer one is known.
func (r *reading) learn(o api.Object, rev api.Revision) {
	if rev >= r.rev {
		r.object, r.rev = o, rev
	}
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
			r.wg.Go(func() { r.watch(ctx, ref, have) })
		}
		if _, named := have.pods[uid]; !named {
			have.pods[uid] = false
		}
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
func (r *references) watch(ctx context.Context, ref reference, have *reading) {
	for ctx.Err() == nil {
		synced, seen := false, false
		for e, err := range r.client.Watch(ctx, ref.kind, ref.query(), 0) {
			if err != nil {
				break
			}
			seen = seen || e.Op == client.Added
			if ref.node == "" { // requests for certificates are read by those who made them
				r.take(have, e, seen)
			}
			// What existed at the start may have been read before it was as it is.
			if synced = synced || e.Op == client.Synced; synced {
				r.notify(ref)
			}
		}
		r.lose(have)
		if run.Pause(ctx, time.Second) == nil {
			r.notify(ref)
		}
	}
}

// take notes what the watch tells; seen says that it has told of an object.
func (r *references) take(have *reading, e client.Event, seen bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch e.Op {
	case client.Synced:
		if have.known = true; !seen {
			have.learn(nil, e.Revision)
		}
	case client.Deleted:
		have.learn(nil, e.Revision)
	default:
		have.learn(e.Object, api.RevisionOf(e.Object))
	}
}

// lose notes that the watch was refused, or has ended.
func (r *references) lose(have *reading) {
	r.mu.Lock()
	defer r.mu.Unlock()
	have.known = false
}

// firstReadWithin bounds the pod's first read of an object that is known already.
const firstReadWithin = 2 * time.Second

// get returns the object that the pod refers to. The pod's first read asks the API, as the watch may be behind what the pod was made
// for; an API that does not answer is done without.
func (r *references) get(ctx context.Context, uid types.UID, ref reference) (api.Object, error) {
	o, known, served := r.have(uid, ref)
	if !served {
		if known {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, firstReadWithin)
			defer cancel()
		}
		got, err := r.client.Get(ctx, ref.kind, ref.key)
		if !known || err == nil || apierrors.IsNotFound(err) || apierrors.IsForbidden(err) {
			r.read(uid, ref, got, err)
			return got, err
		}
	}
	if o == nil {
		return nil, apierrors.NewNotFound(ref.kind.GroupResource(), ref.key.Name)
	}
	return o, nil
}

// have returns the newest object that is known, if it is known whether there is one, and whether the pod can be served with it.
func (r *references) have(uid types.UID, ref reference) (o api.Object, known, served bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	have := r.watched[ref]
	if have == nil || !have.known {
		return nil, false, false
	}
	return have.object, true, have.pods[uid]
}

// read notes what the API answered the pod.
func (r *references) read(uid types.UID, ref reference, got api.Object, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	have := r.watched[ref]
	if have == nil {
		return
	}
	if _, named := have.pods[uid]; !named {
		return
	}
	if err == nil {
		have.learn(got, api.RevisionOf(got))
		have.pods[uid] = true
	} else if apierrors.IsNotFound(err) && have.known && have.object == nil {
		have.pods[uid] = true
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

// retryToken is the rest after a token could not be renewed.
const retryToken = 30 * time.Second

// get returns a token, a new one when the last has lived four fifths of its life or a day. One that cannot be renewed is good to its end.
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
	switch {
	case err == nil:
		status := got.(*authenticationv1.TokenRequest).Status
		life := status.ExpirationTimestamp.Sub(now)
		have = token{status, now.Add(min(life*4/5, 24*time.Hour))}
	case ok && now.Before(have.status.ExpirationTimestamp.Time):
		have.renew = now.Add(min(have.status.ExpirationTimestamp.Sub(now), retryToken))
	default:
		return authenticationv1.TokenRequestStatus{}, time.Time{}, err
	}
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
	var none T
	o, err := s.refs.get(s.ctx, s.pod.UID, reference{kind: api.KindFor[T](), key: api.Key{Namespace: s.pod.Namespace, Name: name}})
	if apierrors.IsNotFound(err) {
		err = apierrors.NewNotFound(corev1.Resource(what), name)
	}
	if err != nil {
		return none, err
	}
	return o.(T), nil
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
