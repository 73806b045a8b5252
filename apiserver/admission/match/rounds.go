package match

import (
	"k8s.io/apimachinery/pkg/api/equality"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/rest"
)

// Rounds is what a mutating plug-in keeps of the first round of asking for the second, in which those are asked again who may be, and have
// not seen the object as it has become. K names who is asked.
type Rounds[K comparable] struct {
	asked map[K]bool // who may be asked again, since the last change of the object
	again map[K]bool // who is to be
	left  api.Object // as the plug-in left it; nil where nobody may be asked again
}

// RoundsOf returns what the plug-in has noted of the request. Plug-ins that were asked in between may have changed the object.
func RoundsOf[K comparable](a *rest.Admitting, plugin string) *Rounds[K] {
	n, ok := a.Notes[plugin].(*Rounds[K])
	if !ok {
		n = &Rounds[K]{asked: map[K]bool{}, again: map[K]bool{}}
		if a.Notes == nil {
			a.Notes = map[string]any{}
		}
		a.Notes[plugin] = n
	}
	if a.Again && n.left != nil && !equality.Semantic.DeepEqual(n.left, a.Object) {
		n.Changed()
	}
	return n
}

// Changed says that the object is another than those who were asked have seen.
func (n *Rounds[K]) Changed() {
	for k := range n.asked {
		n.again[k] = true
	}
	clear(n.asked)
}

// Asked says that k, who may be asked again, has seen the object as it is.
func (n *Rounds[K]) Asked(k K) { n.asked[k] = true }

// Again says that k is to be asked in the second round.
func (n *Rounds[K]) Again(k K) bool { return n.again[k] }

// Leave notes the object at the end of a round.
func (n *Rounds[K]) Leave(a *rest.Admitting) {
	if n.left = nil; a.Object != nil && len(n.asked) > 0 {
		n.left = a.Object.DeepCopyObject().(api.Object)
	}
}
