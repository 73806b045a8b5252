package admission

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/component-helpers/resource"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/apiserver/rest"
)

// The causes of a resize that can never be.
const (
	resizePlatform metav1.CauseType = "UnsupportedPlatform"
	resizeCapacity metav1.CauseType = "NodeCapacity"
)

// podResize refuses to make a pod larger than its node is.
func podResize(get authn.Getter) rest.Admission {
	return onValidate("PodResizeValidator", func(ctx context.Context, a *rest.Admitting) error {
		now, ok := a.Object.(*corev1.Pod)
		if !ok || a.Operation != rest.OpUpdate || a.Sub != "resize" || now.Spec.NodeName == "" || equality.Semantic.DeepEqual(a.Old.(*corev1.Pod).Spec, now.Spec) {
			return nil
		}
		o, err := get.Get(ctx, api.NodeKind, api.Key{Name: now.Spec.NodeName})
		if apierrors.IsNotFound(err) {
			return forbidden(a, "node %q not found", now.Spec.NodeName)
		}
		if err != nil {
			return forbidden(a, "failed to get node %q: %w", now.Spec.NodeName, err)
		}
		node := o.(*corev1.Node)
		if os, ok := node.Labels[corev1.LabelOSStable]; ok && os != "linux" {
			return because(resizePlatform, forbidden(a, "pod resize is only supported on linux nodes, node %q is %q", node.Name, os))
		}
		if text := tooLarge(now, node.Status.Allocatable); text != "" {
			return because(resizeCapacity, forbidden(a, "node didn't have enough allocatable resources: %s", text))
		}
		return nil
	})
}

// declaredFeature refuses to resize a pod as a whole where its node's kubelet has not said that it does that.
func declaredFeature(get authn.Getter) rest.Admission {
	return onValidate("NodeDeclaredFeatureValidator", func(ctx context.Context, a *rest.Admitting) error {
		now, ok := a.Object.(*corev1.Pod)
		if !ok || a.Operation != rest.OpUpdate || a.Sub != "resize" || now.Spec.NodeName == "" ||
			equality.Semantic.DeepEqual(a.Old.(*corev1.Pod).Spec.Resources, now.Spec.Resources) {
			return nil
		}
		o, err := get.Get(ctx, api.NodeKind, api.Key{Name: now.Spec.NodeName})
		if apierrors.IsNotFound(err) {
			return forbidden(a, "node %q not found", now.Spec.NodeName)
		}
		if err != nil {
			return forbidden(a, "failed to get node %q: %w", now.Spec.NodeName, err)
		}
		if !slices.Contains(o.(*corev1.Node).Status.DeclaredFeatures, api.ResizesWholePods) {
			return forbidden(a, "pod update requires features %s which are not available on node %q", api.ResizesWholePods, now.Spec.NodeName)
		}
		return nil
	})
}

func tooLarge(p *corev1.Pod, allocatable corev1.ResourceList) string {
	requests := resource.PodRequests(p, resource.PodResourcesOptions{})
	var texts []string
	if is, has := requests.Cpu(), allocatable.Cpu(); is.Cmp(*has) > 0 {
		texts = append(texts, fmt.Sprintf("cpu, requested: %d, allocatable: %d", is.MilliValue(), has.MilliValue()))
	}
	if is, has := requests.Memory(), allocatable.Memory(); is.Cmp(*has) > 0 {
		texts = append(texts, fmt.Sprintf("memory, requested: %d, allocatable: %d", is.Value(), has.Value()))
	}
	return strings.Join(texts, "; ")
}

// because adds a cause to a refusal.
func because(cause metav1.CauseType, err error) error {
	var status *apierrors.StatusError
	if errors.As(err, &status) {
		status.ErrStatus.Details.Causes = append(status.ErrStatus.Details.Causes, metav1.StatusCause{Type: cause})
	}
	return err
}
