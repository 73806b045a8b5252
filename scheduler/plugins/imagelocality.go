package plugins

import (
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/yare-dev/yare/scheduler/cluster"
)

// Sizes between which having an image counts, per container.
const (
	smallImages = 23 << 20
	largeImages = 1000 << 20
)

// imageLocality prefers nodes that have the pod's images, the more so the larger they are and the more nodes have them (so
// that one node does not draw all pods).
var imageLocality = Score{
	Name: "ImageLocality", Weight: 1,
	Prepare: func(c *cluster.Cluster, p *cluster.Pod, _ []int) func(int) int64 {
		var names []string
		add := func(cs []corev1.Container) {
			for i := range cs {
				if name := tagged(cs[i].Image); c.ImageNodes[name] > 0 {
					names = append(names, name)
				}
			}
		}
		add(p.Spec.InitContainers)
		add(p.Spec.Containers)
		if len(names) == 0 {
			return nil
		}
		most := int64(largeImages * (len(p.Spec.InitContainers) + len(p.Spec.Containers)))
		return func(slot int) int64 {
			var sum int64
			for _, name := range names {
				sum += c.ImageSize[slot][name] * int64(c.ImageNodes[name]) / int64(c.Count)
			}
			return Max * (min(max(sum, smallImages), most) - smallImages) / (most - smallImages)
		}
	},
}

// tagged adds the tag that an image name without one means.
func tagged(image string) string {
	if strings.LastIndexByte(image, ':') <= strings.LastIndexByte(image, '/') {
		return image + ":latest"
	}
	return image
}
