package aggregator

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/run"
	"github.com/yare-dev/yare/store"
)

// verdict is whether an APIService is available, and why.
type verdict struct {
	status          apiregistrationv1.ConditionStatus
	reason, message string
}

func (v verdict) well() bool { return v.status == apiregistrationv1.ConditionTrue }

var (
	local  = verdict{apiregistrationv1.ConditionTrue, "Local", "Local APIServices are always available"}
	passed = verdict{apiregistrationv1.ConditionTrue, "Passed", "all checks passed"}
)

func unavailable(reason, format string, args ...any) verdict {
	return verdict{apiregistrationv1.ConditionFalse, reason, fmt.Sprintf(format, args...)}
}

// judge says what the objects tell of a remote APIService. It is the zero verdict when nothing stands against asking the server.
func judge(svc *Service, b behind) verdict {
	ref, service := svc.Spec.Service, b.service
	if service == nil {
		return unavailable("ServiceNotFound", "service/%s in %q is not present", ref.Name, ref.Namespace)
	}
	if service.Spec.Type != corev1.ServiceTypeClusterIP {
		return verdict{}
	}
	port := int32(443)
	if ref.Port != nil {
		port = *ref.Port
	}
	i := slices.IndexFunc(service.Spec.Ports, func(p corev1.ServicePort) bool { return p.Port == port })
	if i < 0 {
		return unavailable("ServicePortError", "service/%s in %q is not listening on port %d", ref.Name, ref.Namespace, port)
	}
	name := service.Spec.Ports[i].Name
	if len(b.slices) == 0 {
		return unavailable("EndpointsNotFound", "cannot find endpointslices for service/%s in %q", ref.Name, ref.Namespace)
	}
	if slices.ContainsFunc(b.slices, func(s *discoveryv1.EndpointSlice) bool { return serves(s, name) }) {
		return verdict{}
	}
	return unavailable("MissingEndpoints", "endpointslices for service/%s in %q have no addresses with port name %q", ref.Name, ref.Namespace, name)
}

// serves says that the slice has an endpoint that is ready, and the port.
func serves(s *discoveryv1.EndpointSlice, port string) bool {
	return slices.ContainsFunc(s.Endpoints, func(e discoveryv1.Endpoint) bool { return e.Conditions.Ready == nil || *e.Conditions.Ready }) &&
		slices.ContainsFunc(s.Ports, func(p discoveryv1.EndpointPort) bool { return p.Name != nil && *p.Name == port && p.Port != nil })
}

// apply sets the condition Available. The time is that of the last change of its status.
func apply(svc *Service, v verdict, now time.Time) {
	c := condition(svc)
	if c == nil {
		svc.Status.Conditions = append(svc.Status.Conditions, apiregistrationv1.APIServiceCondition{Type: apiregistrationv1.Available})
		c = &svc.Status.Conditions[len(svc.Status.Conditions)-1]
	}
	if c.Status != v.status {
		c.Status, c.LastTransitionTime = v.status, metav1.NewTime(now)
	}
	c.Reason, c.Message = v.reason, v.message
}

// same says whether the APIService says what v does.
func same(svc *Service, v verdict) bool {
	c := condition(svc)
	return c != nil && verdict{c.Status, c.Reason, c.Message} == v
}

// behind is the objects that a remote APIService depends on. The sum of their revisions changes when one of them does, or comes or goes.
type behind struct {
	service *corev1.Service
	slices  []*discoveryv1.EndpointSlice
	sum     api.Revision
}

func behindOf(s *store.Store, svc *Service) behind {
	var b behind
	ref := svc.Spec.Service
	if e := s.Snapshot(api.ServiceKind).Get(api.Key{Namespace: ref.Namespace, Name: ref.Name}); e != nil && e.Err() == nil {
		b.service, b.sum = e.Object.(*corev1.Service), e.Revision
	}
	for e := range s.Snapshot(api.EndpointSliceKind).All(ref.Namespace, api.Key{}) {
		if o := e.Object.(*discoveryv1.EndpointSlice); o.Labels[discoveryv1.LabelServiceName] == ref.Name {
			b.slices = append(b.slices, o)
			b.sum += e.Revision
		}
	}
	return b
}

// Bounds of asking a server whether it is there.
const (
	attempts     = 5 // each may meet another endpoint
	checkTimeout = 5 * time.Second
)

// ask sends the requests to the server that any API server answers, and fails when none of them is answered well.
func (a *Aggregator) ask(ctx context.Context, svc *Service) error {
	ctx, stop := context.WithTimeout(ctx, checkTimeout)
	defer stop()
	results := make(chan error, attempts)
	for range attempts {
		go func() {
			var err error
			if v := run.Guard(a.d.Log, "check of an aggregated API server", func() { err = a.askOnce(ctx, svc) }); v != nil {
				err = fmt.Errorf("the check panicked: %v", v)
			}
			results <- err
		}()
	}
	var failed error
	well := false
	for range attempts { // all of them: what is started here ends here
		if err := <-results; err == nil {
			well = true
			stop()
		} else if !well {
			failed = err
		}
	}
	if well {
		return nil
	}
	return failed
}

func (a *Aggregator) askOnce(ctx context.Context, svc *Service) error {
	answer, at, err := a.get(ctx, svc, "/apis/"+svc.Spec.Group+"/"+svc.Spec.Version, nil)
	if err != nil {
		if at == nil {
			return err
		}
		return fmt.Errorf("failing or missing response from %v: %w", at, err)
	}
	defer answer.Body.Close()
	if answer.StatusCode < 200 || answer.StatusCode > 299 {
		return fmt.Errorf("failing or missing response from %v: bad status from %v: %d", at, at, answer.StatusCode)
	}
	return nil
}
