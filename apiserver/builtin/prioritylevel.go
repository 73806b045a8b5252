package builtin

import (
	"fmt"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/apis/flowcontrol/bootstrap"
	"k8s.io/apiserver/pkg/util/shufflesharding"

	"github.com/yare-dev/yare/apiserver/rest"
)

const (
	maxQueues    int32 = 10_000_000
	preserveZero       = "flowcontrol.k8s.io/v1beta3-preserve-zero-concurrency-shares"
)

func priorityLevelConfigurations() *rest.Resource[*flowcontrolv1.PriorityLevelConfiguration] {
	type level = *flowcontrolv1.PriorityLevelConfiguration
	queues := flowcontrolv1.QueuingConfiguration{}.SwaggerDoc()
	limited := func(name, text string, cell func(*flowcontrolv1.LimitedPriorityLevelConfiguration) any) rest.Column[level] {
		return rest.Column[level]{Name: name, Description: text, Cell: func(l level) any {
			if l.Spec.Limited == nil {
				return none
			}
			return cell(l.Spec.Limited)
		}}
	}
	queuing := func(name, doc string, cell func(*flowcontrolv1.QueuingConfiguration) int32) rest.Column[level] {
		return limited(name, queues[doc], func(l *flowcontrolv1.LimitedPriorityLevelConfiguration) any {
			if l.LimitResponse.Queuing == nil {
				return none
			}
			return int64(cell(l.LimitResponse.Queuing))
		})
	}
	return &rest.Resource[level]{
		Default:      defaultPriorityLevel,
		Validate:     validatePriorityLevel,
		StrictStatus: true,
		ValidateStatus: func(now, _ level) field.ErrorList {
			var types []string
			for _, c := range now.Status.Conditions {
				types = append(types, string(c.Type))
			}
			return flowConditions(types)
		},
		Columns: []rest.Column[level]{
			{Name: "Type", Description: flowcontrolv1.PriorityLevelConfigurationSpec{}.SwaggerDoc()["type"], Cell: func(l level) any { return string(l.Spec.Type) }},
			limited("NominalConcurrencyShares", flowcontrolv1.LimitedPriorityLevelConfiguration{}.SwaggerDoc()["nominalConcurrencyShares"],
				func(l *flowcontrolv1.LimitedPriorityLevelConfiguration) any {
					return int64(deref(l.NominalConcurrencyShares))
				}),
			queuing("Queues", "queues", func(q *flowcontrolv1.QueuingConfiguration) int32 { return q.Queues }),
			queuing("HandSize", "handSize", func(q *flowcontrolv1.QueuingConfiguration) int32 { return q.HandSize }),
			queuing("QueueLengthLimit", "queueLengthLimit", func(q *flowcontrolv1.QueuingConfiguration) int32 { return q.QueueLengthLimit }),
			{Name: "Age"},
		},
	}
}

func defaultPriorityLevel(l *flowcontrolv1.PriorityLevelConfiguration) {
	if e := l.Spec.Exempt; e != nil {
		setPtr(&e.NominalConcurrencyShares, 0)
		setPtr(&e.LendablePercent, 0)
	}
	lim := l.Spec.Limited
	if lim == nil {
		return
	}
	setPtr(&lim.NominalConcurrencyShares, 30)
	setPtr(&lim.LendablePercent, 0)
	if q := lim.LimitResponse.Queuing; q != nil {
		setDefault(&q.HandSize, 8)
		setDefault(&q.Queues, 64)
		setDefault(&q.QueueLengthLimit, 50)
	}
}

func validatePriorityLevel(l *flowcontrolv1.PriorityLevelConfiguration) (errs field.ErrorList) {
	if _, ok := l.Annotations[preserveZero]; ok {
		errs = append(errs, field.Forbidden(field.NewPath("metadata", "annotations"), fmt.Sprintf("annotation '%s' is forbidden", preserveZero)))
	}
	at, spec := field.NewPath("spec"), &l.Spec
	exempt, limited := flowcontrolv1.PriorityLevelEnablementExempt, flowcontrolv1.PriorityLevelEnablementLimited
	if (l.Name == flowcontrolv1.PriorityLevelConfigurationNameExempt) != (spec.Type == exempt) {
		errs = append(errs, field.Invalid(at.Child("type"), spec.Type, "must be 'Exempt' if and only if `name` is 'exempt'"))
	}
	errs = append(errs, oneOf(at.Child("type"), spec.Type, exempt, limited)...)
	// What the type forbids or requires.
	switch {
	case spec.Type != limited && spec.Limited != nil:
		errs = append(errs, field.Forbidden(at.Child("limited"), ""))
		errs = append(errs, limitResponse(&spec.Limited.LimitResponse, at.Child("limited", "limitResponse"))...)
	case spec.Type == limited && spec.Limited == nil:
		errs = append(errs, field.Required(at.Child("limited"), ""))
	case spec.Limited != nil:
		errs = append(errs, limitedLevel(spec.Limited, at.Child("limited"))...)
	}
	if e := spec.Exempt; e != nil {
		if spec.Type != exempt {
			errs = append(errs, field.Forbidden(at.Child("exempt"), ""))
		} else {
			errs = append(errs, shares(e.NominalConcurrencyShares, e.LendablePercent, at.Child("exempt"))...)
		}
	}
	return append(errs, fixedLevel(l, at)...)
}

// fixedLevel checks the levels that the system relies on.
func fixedLevel(l *flowcontrolv1.PriorityLevelConfiguration, at *field.Path) field.ErrorList {
	for _, must := range bootstrap.MandatoryPriorityLevelConfigurations {
		if must.Name != l.Name {
			continue
		}
		spec, which := l.Spec, "must equal the fixed value"
		if l.Name == flowcontrolv1.PriorityLevelConfigurationNameExempt {
			spec.Exempt, which = must.Spec.Exempt, "except the 'spec.exempt' field must equal the fixed value"
		}
		if !equality.Semantic.DeepEqual(spec, must.Spec) {
			return field.ErrorList{field.Invalid(at, l.Spec, fmt.Sprintf("spec of '%s' %s", l.Name, which))}
		}
	}
	return nil
}

func shares(nominal, lendable *int32, at *field.Path) (errs field.ErrorList) {
	if deref(nominal) < 0 {
		errs = append(errs, field.Invalid(at.Child("nominalConcurrencyShares"), *nominal, "must be a non-negative integer"))
	}
	if n := deref(lendable); n < 0 || n > 100 {
		errs = append(errs, field.Invalid(at.Child("lendablePercent"), n, "must be between 0 and 100, inclusive"))
	}
	return errs
}

func limitedLevel(l *flowcontrolv1.LimitedPriorityLevelConfiguration, at *field.Path) field.ErrorList {
	errs := shares(l.NominalConcurrencyShares, l.LendablePercent, at)
	response := &l.LimitResponse
	if t := response.Type; t != "" {
		errs = append(errs, oneOf(at.Child("limitResponse", "type"), t, flowcontrolv1.LimitResponseTypeQueue, flowcontrolv1.LimitResponseTypeReject)...)
	}
	if q := response.Queuing; q != nil && response.Type == flowcontrolv1.LimitResponseTypeQueue {
		errs = append(errs, queuing(q, at.Child("limitResponse", "queuing"))...)
	}
	errs = append(errs, limitResponse(response, at.Child("limitResponse"))...)
	if n := l.BorrowingLimitPercent; n != nil && *n < 0 {
		errs = append(errs, field.Invalid(at.Child("borrowingLimitPercent"), *n, "if specified, must be a non-negative integer"))
	}
	return errs
}

// limitResponse checks that the queues are there if and only if the type says so.
func limitResponse(r *flowcontrolv1.LimitResponse, at *field.Path) (errs field.ErrorList) {
	if r.Type == "" {
		errs = append(errs, field.Required(at.Child("type"), ""))
	}
	queue, set := r.Type == flowcontrolv1.LimitResponseTypeQueue, r.Queuing != nil
	if set && !queue {
		errs = append(errs, field.Forbidden(at.Child("queuing"), ""))
	}
	if queue && !set {
		errs = append(errs, field.Required(at.Child("queuing"), ""))
	}
	return errs
}

func queuing(q *flowcontrolv1.QueuingConfiguration, at *field.Path) (errs field.ErrorList) {
	if q.QueueLengthLimit <= 0 {
		errs = append(errs, field.Invalid(at.Child("queueLengthLimit"), q.QueueLengthLimit, "must be positive"))
	}
	if q.Queues <= 0 {
		errs = append(errs, field.Invalid(at.Child("queues"), q.Queues, "must be positive"))
	} else if q.Queues > maxQueues {
		errs = append(errs, field.Invalid(at.Child("queues"), q.Queues, fmt.Sprintf("must not be greater than %d", maxQueues)))
	}
	hand := at.Child("handSize")
	switch {
	case q.HandSize <= 0:
		return append(errs, field.Invalid(hand, q.HandSize, "must be positive"))
	case q.HandSize > q.Queues:
		return append(errs, field.Invalid(hand, q.HandSize, fmt.Sprintf("should not be greater than queues (%d)", q.Queues)))
	}
	if n := shufflesharding.RequiredEntropyBits(int(q.Queues), int(q.HandSize)); n > shufflesharding.MaxHashBits {
		errs = append(errs, field.Invalid(hand, q.HandSize,
			fmt.Sprintf("required entropy bits of deckSize %d and handSize %d should not be greater than %d", q.Queues, q.HandSize, shufflesharding.MaxHashBits)))
	}
	return errs
}
