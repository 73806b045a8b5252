package bootstrap

import (
	"context"
	"errors"
	"fmt"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/client"
)

// tend ensures what must exist for fairness, and says in the status of each FlowSchema whether its priority level does.
func (b *Bootstrap) tend(ctx context.Context) error {
	errs := []error{b.flow(ctx)}
	levels, err := client.List[*flowcontrolv1.PriorityLevelConfiguration](ctx, b.client, client.Query{})
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	exists := map[string]bool{}
	for _, l := range levels {
		exists[l.Name] = true
	}
	schemas, err := client.List[*flowcontrolv1.FlowSchema](ctx, b.client, client.Query{})
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	for _, s := range schemas {
		level := s.Spec.PriorityLevelConfiguration.Name
		_, err := client.Mutate(ctx, b.client, s, "status", func(s *flowcontrolv1.FlowSchema) { setDangling(s, dangling(level, exists[level])) })
		if err != nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) { // who changed it wakes us again
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// dangling is the condition of a FlowSchema that names level.
func dangling(level string, exists bool) flowcontrolv1.FlowSchemaCondition {
	c := flowcontrolv1.FlowSchemaCondition{Type: flowcontrolv1.FlowSchemaConditionDangling, Status: flowcontrolv1.ConditionFalse, Reason: "Found",
		Message: fmt.Sprintf("This FlowSchema references the PriorityLevelConfiguration object named %q and it exists", level)}
	if !exists {
		c.Status, c.Reason = flowcontrolv1.ConditionTrue, "NotFound"
		c.Message = fmt.Sprintf("This FlowSchema references the PriorityLevelConfiguration object named %q but there is no such object", level)
	}
	return c
}

// setDangling sets the condition unless it is there.
func setDangling(s *flowcontrolv1.FlowSchema, c flowcontrolv1.FlowSchemaCondition) {
	for i := range s.Status.Conditions {
		old := &s.Status.Conditions[i]
		if old.Type != c.Type {
			continue
		}
		if old.Status != c.Status || old.Reason != c.Reason || old.Message != c.Message {
			c.LastTransitionTime = metav1.Now()
			*old = c
		}
		return
	}
	c.LastTransitionTime = metav1.Now()
	s.Status.Conditions = append(s.Status.Conditions, c)
}
