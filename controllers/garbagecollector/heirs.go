package garbagecollector

import (
	"context"
	"slices"
	"sync"

	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/api"
)

// heirs remembers, by the UID of an owner, the kinds of which objects were seen that depend on it: at least the kinds of
// those that do. A UID is forgotten when its object is found to be gone, by the first dependent that looks for it or by
// the news of its end, whichever comes first; that wakes all dependents. One that is seen later looks for itself.
type heirs struct {
	mu    sync.Mutex
	kinds map[types.UID][]*api.Kind
}

// depends notes that o, which is of kind k, depends on its owners. Only owners whose end would be seen are remembered.
func (c *controller) depends(k *api.Kind, o api.Object) {
	refs := o.GetOwnerReferences()
	if len(refs) == 0 {
		return
	}
	c.heirs.mu.Lock()
	defer c.heirs.mu.Unlock()
	for i := range refs {
		uid := refs[i].UID
		if _, _, ok := c.locate(o, &refs[i]); !ok || slices.Contains(c.heirs.kinds[uid], k) {
			continue
		}
		if c.heirs.kinds == nil {
			c.heirs.kinds = map[types.UID][]*api.Kind{}
		}
		c.heirs.kinds[uid] = append(c.heirs.kinds[uid], k)
	}
}

// bereaved forgets an owner that is gone, and returns the keys of what depended on it. Namespace is the owner's.
func (c *controller) bereaved(ctx context.Context, namespace string, owner types.UID) []api.Key {
	c.heirs.mu.Lock()
	kinds := c.heirs.kinds[owner]
	delete(c.heirs.kinds, owner)
	c.heirs.mu.Unlock()
	deps, err := c.owned(ctx, kinds, namespace, owner)
	if err != nil {
		c.Log.Warn("list dependents", "owner", owner, "err", err)
	}
	keys := make([]api.Key, len(deps))
	for i, o := range deps {
		keys[i] = o.key()
	}
	return keys
}
