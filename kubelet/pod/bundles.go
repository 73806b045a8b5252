package pod

import (
	"context"
	"sync"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/run"
)

// bundles are the ClusterTrustBundles, watched from when the first pod wants one: a pod may name hundreds, and a signer's are
// not known by name. Pods are woken when one changes that they want.
type bundles struct {
	client client.Reader
	wake   func(types.UID)

	mu      sync.Mutex
	ctx     context.Context
	started bool
	all     map[string]*certificatesv1.ClusterTrustBundle // nil until they have been read once
	wants   map[types.UID]map[want]bool

	wg sync.WaitGroup
}

// want is a bundle by its name, or those of a signer.
type want struct{ name, signer string }

func newBundles(c client.Reader, wake func(types.UID)) *bundles {
	return &bundles{client: c, wake: wake, wants: map[types.UID]map[want]bool{}}
}

func (b *bundles) open(ctx context.Context) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ctx = ctx
}

func (b *bundles) close() { b.wg.Wait() }

// use notes what the pod wants.
func (b *bundles) use(uid types.UID, w want) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.wants[uid] == nil {
		b.wants[uid] = map[want]bool{}
	}
	b.wants[uid][w] = true
	if !b.started {
		b.started = true
		ctx := b.ctx
		b.wg.Go(func() { b.watch(ctx) })
	}
}

func (b *bundles) forget(uid types.UID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.wants, uid)
}

func (b *bundles) watch(ctx context.Context) {
	for ctx.Err() == nil {
		fresh := map[string]*certificatesv1.ClusterTrustBundle{}
		for e, err := range b.client.Watch(ctx, api.ClusterTrustBundleKind, client.Query{}, 0) {
			if err != nil {
				break
			}
			b.take(e, fresh)
		}
		_ = run.Pause(ctx, time.Second)
	}
}

// take notes a change; until all have been seen it is one of fresh.
func (b *bundles) take(e client.Event, fresh map[string]*certificatesv1.ClusterTrustBundle) {
	b.mu.Lock()
	switch e.Op {
	case client.Synced:
		b.all = fresh
	case client.Deleted:
		delete(fresh, e.Object.GetName())
	default:
		fresh[e.Object.GetName()] = e.Object.(*certificatesv1.ClusterTrustBundle)
	}
	var pods []types.UID
	for uid, wants := range b.wants {
		if e.Op == client.Synced || b.all != nil && changes(e.Object.(*certificatesv1.ClusterTrustBundle), wants) {
			pods = append(pods, uid)
		}
	}
	b.mu.Unlock()
	for _, uid := range pods {
		b.wake(uid)
	}
}

// changes says that a bundle is among those wanted.
func changes(o *certificatesv1.ClusterTrustBundle, wants map[want]bool) bool {
	return wants[want{name: o.Name}] || o.Spec.SignerName != "" && wants[want{signer: o.Spec.SignerName}]
}

// get returns the bundle of that name, from the API as long as they have not been read.
func (b *bundles) get(ctx context.Context, name string) (*certificatesv1.ClusterTrustBundle, error) {
	b.mu.Lock()
	have := b.all[name]
	b.mu.Unlock()
	if have != nil {
		return have, nil
	}
	return client.Get[*certificatesv1.ClusterTrustBundle](ctx, b.client, api.Key{Name: name})
}

// of returns the signer's bundles that the selector matches.
func (b *bundles) of(ctx context.Context, signer string, selector labels.Selector) (out []*certificatesv1.ClusterTrustBundle, err error) {
	b.mu.Lock()
	all, known := []*certificatesv1.ClusterTrustBundle(nil), b.all != nil
	for _, one := range b.all {
		all = append(all, one)
	}
	b.mu.Unlock()
	if !known {
		if all, err = client.List[*certificatesv1.ClusterTrustBundle](ctx, b.client, client.Query{}); err != nil {
			return nil, err
		}
	}
	for _, one := range all {
		if one.Spec.SignerName == signer && selector.Matches(labels.Set(one.Labels)) {
			out = append(out, one)
		}
	}
	return out, nil
}
