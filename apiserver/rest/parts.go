package rest

import (
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/yare-dev/yare/api"
)

// parts is how the pipeline takes the objects of a kind apart. Built-in kinds are structs with the fields Spec and Status; custom
// resources are maps, of which all but the metadata and the status is the spec.
type parts interface {
	clearStatus(o api.Object)
	// copyStatus gives dst a copy of src's status that shares nothing with it.
	copyStatus(dst, src api.Object)
	sameSpec(a, b api.Object) bool
	// restoreAllButStatus takes back in now what a write of the status may not change since old.
	restoreAllButStatus(now, old api.Object)
}

type structParts struct{}

func (structParts) clearStatus(o api.Object) { part(o, "Status").SetZero() }

func (structParts) copyStatus(dst, src api.Object) { copyPart(dst, src, "Status") }

func (structParts) sameSpec(a, b api.Object) bool { return samePart(a, b, "Spec") }

func (structParts) restoreAllButStatus(now, old api.Object) { restoreAllButStatus(now, old) }

type mapParts struct{}

func content(o api.Object) map[string]any {
	if u, ok := o.(*unstructured.Unstructured); ok {
		return u.Object
	}
	return nil
}

func (mapParts) clearStatus(o api.Object) { delete(content(o), status) }

func (mapParts) copyStatus(dst, src api.Object) {
	to := content(dst)
	delete(to, status)
	if has, ok := content(src)[status]; ok {
		to[status] = api.CopyJSON(has)
	}
}

func (mapParts) sameSpec(a, b api.Object) bool {
	return equality.Semantic.DeepEqual(spec(a), spec(b))
}

// spec is all of o but its metadata.
func spec(o api.Object) map[string]any {
	out := make(map[string]any, len(content(o)))
	for k, v := range content(o) {
		if k != "metadata" {
			out[k] = v
		}
	}
	return out
}

func (mapParts) restoreAllButStatus(now, old api.Object) {
	next := old.DeepCopyObject().(api.Object)
	delete(content(next), status)
	if has, ok := content(now)[status]; ok {
		content(next)[status] = has
	}
	next.SetManagedFields(now.GetManagedFields())
	assign(now, next)
}
