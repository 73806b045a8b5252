package api

import (
	corev1 "k8s.io/api/core/v1"
)

// ResizesWholePods is what a node declares in its status whose kubelet resizes pods as a whole (KEP-5419).
const ResizesWholePods = "InPlacePodLevelResourcesVerticalScaling"

// NodeCondition returns the Node's condition of that type, nil if it has none. It is shared like n.
func NodeCondition(n *corev1.Node, t corev1.NodeConditionType) *corev1.NodeCondition {
	for i := range n.Status.Conditions {
		if n.Status.Conditions[i].Type == t {
			return &n.Status.Conditions[i]
		}
	}
	return nil
}

// NodeReady says whether the Node's Ready condition is true.
func NodeReady(n *corev1.Node) bool {
	c := NodeCondition(n, corev1.NodeReady)
	return c != nil && c.Status == corev1.ConditionTrue
}
