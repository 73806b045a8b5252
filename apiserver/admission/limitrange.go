package admission

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	podresource "k8s.io/component-helpers/resource"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/api/quota"
	"github.com/yare-dev/yare/apiserver/rest"
	"github.com/yare-dev/yare/store"
)

// limitAnnotation tells which amounts of a pod are not its author's.
const limitAnnotation = "kubernetes.io/limit-ranger"

// limitRanger fills in the amounts that containers leave out from the namespace's LimitRanges, and holds pods and claims
// to their bounds.
func limitRanger(s *store.Store) rest.Admission {
	each := func(ctx context.Context, a *rest.Admitting, f func(*corev1.LimitRange) error) error {
		pod, claim := a.Kind == api.PodKind, a.Kind == api.PersistentVolumeClaimKind
		resized := pod && a.Sub == "resize"
		created := (pod || claim) && a.Sub == "" && a.Operation == rest.OpCreate
		changed := claim && a.Sub == "" && a.Operation == rest.OpUpdate
		if !resized && !created && !changed || a.Old != nil && a.Old.GetDeletionTimestamp() != nil {
			return nil
		}
		if err := s.Sync(ctx); err != nil {
			return err
		}
		for e := range s.Snapshot(api.LimitRangeKind).All(a.Key.Namespace, api.Key{}) {
			if err := f(e.Object.(*corev1.LimitRange)); err != nil {
				return forbidden(a, "%w", err)
			}
		}
		return nil
	}
	return rest.Admission{
		Name: "LimitRanger",
		Mutate: func(ctx context.Context, a *rest.Admitting) error {
			return each(ctx, a, func(l *corev1.LimitRange) error {
				if pod, ok := a.Object.(*corev1.Pod); ok {
					fillIn(pod, l)
				}
				return nil
			})
		},
		Validate: func(ctx context.Context, a *rest.Admitting) error {
			return each(ctx, a, func(l *corev1.LimitRange) error {
				switch o := a.Object.(type) {
				case *corev1.Pod:
					return podWithin(o, l)
				case *corev1.PersistentVolumeClaim:
					return claimWithin(o, l)
				}
				return nil
			})
		},
	}
}

// fillIn gives each container the default amounts that it leaves out, and says so in an annotation.
func fillIn(p *corev1.Pod, l *corev1.LimitRange) {
	requests, limits := corev1.ResourceList{}, corev1.ResourceList{}
	for _, item := range l.Spec.Limits {
		if item.Type == corev1.LimitTypeContainer {
			add(&requests, item.DefaultRequest)
			add(&limits, item.Default)
		}
	}
	var notes []string
	fill := func(what string, c *corev1.Container) {
		if set := add(&c.Resources.Requests, requests); len(set) > 0 {
			notes = append(notes, fmt.Sprintf("%s request for %s %s", strings.Join(set, ", "), what, c.Name))
		}
		if set := add(&c.Resources.Limits, limits); len(set) > 0 {
			notes = append(notes, fmt.Sprintf("%s limit for %s %s", strings.Join(set, ", "), what, c.Name))
		}
	}
	for i := range p.Spec.Containers {
		fill("container", &p.Spec.Containers[i])
	}
	for i := range p.Spec.InitContainers {
		fill("init container", &p.Spec.InitContainers[i])
	}
	if len(notes) > 0 {
		if p.Annotations == nil {
			p.Annotations = map[string]string{}
		}
		p.Annotations[limitAnnotation] = "LimitRanger plugin set: " + strings.Join(notes, "; ")
	}
}

// add puts the amounts of from that are missing into to, and returns their names.
func add(to *corev1.ResourceList, from corev1.ResourceList) (set []string) {
	for _, name := range quota.Names(from) {
		if _, ok := (*to)[name]; ok {
			continue
		}
		if *to == nil {
			*to = corev1.ResourceList{}
		}
		(*to)[name] = from[name].DeepCopy()
		set = append(set, string(name))
	}
	return set
}

func podWithin(p *corev1.Pod, l *corev1.LimitRange) error {
	var errs []error
	for i := range l.Spec.Limits {
		item := &l.Spec.Limits[i]
		switch item.Type {
		case corev1.LimitTypeContainer:
			for _, cs := range [][]corev1.Container{p.Spec.Containers, p.Spec.InitContainers} {
				for j := range cs {
					errs = append(errs, within(item, cs[j].Resources.Requests, cs[j].Resources.Limits)...)
				}
			}
		case corev1.LimitTypePod:
			opts := podresource.PodResourcesOptions{ExcludeOverhead: true}
			errs = append(errs, within(item, podresource.PodRequests(p, opts), podresource.PodLimits(p, opts))...)
		}
	}
	return utilerrors.NewAggregate(errs)
}

func claimWithin(c *corev1.PersistentVolumeClaim, l *corev1.LimitRange) error {
	var errs []error
	asked := c.Spec.Resources.Requests
	for i := range l.Spec.Limits {
		item := &l.Spec.Limits[i]
		if item.Type != corev1.LimitTypePersistentVolumeClaim {
			continue
		}
		for _, name := range quota.Names(item.Min) {
			errs = append(errs, least(item, name, asked, nil))
		}
		for _, name := range quota.Names(item.Max) {
			max, has := item.Max[name], asked[name]
			if _, ok := asked[name]; !ok {
				errs = append(errs, fmt.Errorf("maximum %s usage per %s is %s.  No request is specified", name, item.Type, max.String()))
			} else if has.Cmp(max) > 0 {
				errs = append(errs, fmt.Errorf("maximum %s usage per %s is %s, but request is %s", name, item.Type, max.String(), has.String()))
			}
		}
	}
	return utilerrors.NewAggregate(slices.DeleteFunc(errs, func(err error) bool { return err == nil }))
}

// within checks requests and limits against the bounds of item.
func within(item *corev1.LimitRangeItem, requests, limits corev1.ResourceList) (errs []error) {
	for _, name := range quota.Names(item.Min) {
		errs = append(errs, least(item, name, requests, limits))
	}
	for _, name := range quota.Names(item.Max) {
		errs = append(errs, most(item, name, requests, limits))
	}
	for _, name := range quota.Names(item.MaxLimitRequestRatio) {
		errs = append(errs, ratio(item, name, requests, limits))
	}
	return slices.DeleteFunc(errs, func(err error) bool { return err == nil })
}

func least(item *corev1.LimitRangeItem, name corev1.ResourceName, requests, limits corev1.ResourceList) error {
	min := item.Min[name]
	request, requested := requests[name]
	limit, limited := limits[name]
	head := fmt.Sprintf("minimum %s usage per %s is %s", name, item.Type, min.String())
	switch {
	case !requested:
		return errors.New(head + ".  No request is specified")
	case request.Cmp(min) < 0:
		return fmt.Errorf("%s, but request is %s", head, request.String())
	case limited && limit.Cmp(min) < 0:
		return fmt.Errorf("%s, but limit is %s", head, limit.String())
	}
	return nil
}

func most(item *corev1.LimitRangeItem, name corev1.ResourceName, requests, limits corev1.ResourceList) error {
	max := item.Max[name]
	request, requested := requests[name]
	limit, limited := limits[name]
	head := fmt.Sprintf("maximum %s usage per %s is %s", name, item.Type, max.String())
	switch {
	case !limited:
		return errors.New(head + ".  No limit is specified")
	case limit.Cmp(max) > 0:
		return fmt.Errorf("%s, but limit is %s", head, limit.String())
	case requested && request.Cmp(max) > 0:
		return fmt.Errorf("%s, but request is %s", head, request.String())
	}
	return nil
}

func ratio(item *corev1.LimitRangeItem, name corev1.ResourceName, requests, limits corev1.ResourceList) error {
	max, request, limit := item.MaxLimitRequestRatio[name], requests[name], limits[name]
	head := fmt.Sprintf("%s max limit to request ratio per %s is %s", name, item.Type, max.String())
	switch {
	case request.Sign() == 0:
		return errors.New(head + ", but no request is specified or request is 0")
	case limit.Sign() == 0:
		return errors.New(head + ", but no limit is specified or limit is 0")
	}
	if r := float(limit) / float(request); r > float(max) {
		return fmt.Errorf("%s, but provided ratio is %f", head, r)
	}
	return nil
}

// float is q with a thousandth's precision.
func float(q resource.Quantity) float64 {
	if v := q.Value(); v > resource.MaxMilliValue {
		return float64(v)
	}
	return float64(q.MilliValue()) / 1000
}
