package drivers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
)

// idAnnotation of a Node has what each driver calls it, a JSON object. Older attachers read it.
const idAnnotation = "csi.volume.kubernetes.io/nodeid"

var errNoNode = errors.New("this node is not registered yet")

// keep writes what is known of the drivers, where it differs.
func (s *Set) keep(ctx context.Context) error {
	s.mu.Lock()
	infos := map[string]*spec.NodeGetInfoResponse{}
	for name, d := range s.drivers {
		infos[name] = d.info
	}
	s.mu.Unlock()
	return s.write(ctx, infos)
}

// write writes what some drivers say, where it differs.
func (s *Set) write(ctx context.Context, infos map[string]*spec.NodeGetInfoResponse) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	node := s.object()
	if node == nil {
		return errNoNode
	}
	if err := s.labelNode(ctx, infos); err != nil {
		return err
	}
	return s.mutate(ctx, node, func(c *storagev1.CSINode) {
		for _, name := range slices.Sorted(maps.Keys(infos)) {
			entry := entryOf(name, infos[name])
			if i := slices.IndexFunc(c.Spec.Drivers, func(d storagev1.CSINodeDriver) bool { return d.Name == name }); i >= 0 {
				c.Spec.Drivers[i] = entry
			} else {
				c.Spec.Drivers = append(c.Spec.Drivers, entry)
			}
		}
	})
}

// remove takes the driver out of what was written.
func (s *Set) remove(ctx context.Context, name string) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	node := s.object()
	if node == nil {
		return errNoNode
	}
	return errors.Join(
		s.mutate(ctx, node, func(c *storagev1.CSINode) {
			c.Spec.Drivers = slices.DeleteFunc(c.Spec.Drivers, func(d storagev1.CSINodeDriver) bool { return d.Name == name })
		}),
		s.mutateNode(ctx, func(n *corev1.Node) { noteID(n, name, "") }))
}

// mutate changes the CSINode, which is made where it is missing, and always the Node's.
func (s *Set) mutate(ctx context.Context, node *corev1.Node, change func(*storagev1.CSINode)) error {
	owner := []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: node.Name, UID: node.UID}}
	have, err := client.Get[*storagev1.CSINode](ctx, s.client, api.Key{Name: s.node})
	if apierrors.IsNotFound(err) {
		c := api.CSINodeKind.New().(*storagev1.CSINode)
		c.Name, c.OwnerReferences, c.Spec.Drivers = s.node, owner, []storagev1.CSINodeDriver{}
		change(c)
		_, err = client.Create(ctx, s.client, c)
		return err
	}
	if err != nil {
		return err
	}
	_, err = client.Mutate(ctx, s.client, have, "", func(c *storagev1.CSINode) {
		c.OwnerReferences = owner
		change(c)
	})
	return err
}

// entryOf is what a driver says of this node.
func entryOf(name string, info *spec.NodeGetInfoResponse) storagev1.CSINodeDriver {
	d := storagev1.CSINodeDriver{Name: name, NodeID: info.NodeId, TopologyKeys: slices.Sorted(maps.Keys(info.GetAccessibleTopology().GetSegments()))}
	if n := info.MaxVolumesPerNode; n > 0 {
		count := int32(min(n, math.MaxInt32))
		d.Allocatable = &storagev1.VolumeNodeResources{Count: &count}
	}
	return d
}

// collides refuses a driver that says that the node is elsewhere than a label has it: volumes may be where that says.
func (s *Set) collides(name string, info *spec.NodeGetInfoResponse) error {
	n := s.object()
	if n == nil {
		return errNoNode
	}
	for key, value := range info.GetAccessibleTopology().GetSegments() {
		if have, ok := n.Labels[key]; ok && have != value {
			return fault{fmt.Errorf("driver %s says that this node is at %s=%s, and its label says %s: remove the label if it is wrong", name, key, value, have)}
		}
	}
	return nil
}

// labelNode gives the Node the labels of its place that it lacks, and notes what the drivers call it.
func (s *Set) labelNode(ctx context.Context, infos map[string]*spec.NodeGetInfoResponse) error {
	return s.mutateNode(ctx, func(n *corev1.Node) {
		for _, name := range slices.Sorted(maps.Keys(infos)) {
			for key, value := range infos[name].GetAccessibleTopology().GetSegments() {
				if _, ok := n.Labels[key]; ok {
					continue
				}
				if n.Labels == nil {
					n.Labels = map[string]string{}
				}
				n.Labels[key] = value
			}
			noteID(n, name, infos[name].NodeId)
		}
	})
}

// mutateNode changes the Node, whatever others write to it meanwhile: at a kubelet's start everybody does.
func (s *Set) mutateNode(ctx context.Context, change func(*corev1.Node)) error {
	for {
		n, err := client.Get[*corev1.Node](ctx, s.client, api.Key{Name: s.node})
		if err != nil {
			return err
		}
		if _, err = client.Mutate(ctx, s.client, n, "", change); !apierrors.IsConflict(err) {
			return err
		}
		ctx = client.Live(ctx) // what is remembered here is too old
	}
}

// noteID notes what the driver calls the node; "" takes it out.
func noteID(n *corev1.Node, driver, id string) {
	ids := map[string]string{}
	_ = json.Unmarshal([]byte(n.Annotations[idAnnotation]), &ids) // what is not ours to read is replaced
	if id == "" {
		delete(ids, driver)
	} else {
		ids[driver] = id
	}
	if len(ids) == 0 {
		delete(n.Annotations, idAnnotation)
		return
	}
	text, err := json.Marshal(ids)
	if err != nil {
		return // strings are always written
	}
	if n.Annotations == nil {
		n.Annotations = map[string]string{}
	}
	n.Annotations[idAnnotation] = string(text)
}
