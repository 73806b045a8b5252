package builtin

import (
	"fmt"
	"strings"
	"time"

	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/validate/content"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/apiserver/rest"
)

const quotaPrefix = "requests."

func deviceClasses() *rest.Resource[*resourcev1.DeviceClass] {
	type class = *resourcev1.DeviceClass
	at := field.NewPath("spec")
	selectors := func(c class) field.ErrorList { return deviceSelectors(c.Spec.Selectors, at.Child("selectors")) }
	return &rest.Resource[class]{
		AnswerDeleted: true,
		Name:          finalName,
		Validate: func(c class) field.ErrorList {
			errs := atMost(c.Spec.Config, resourcev1.DeviceConfigMaxSize, at.Child("config"), func(c *resourcev1.DeviceClassConfiguration, at *field.Path) field.ErrorList {
				return deviceConfig(&c.DeviceConfiguration, at)
			})
			if n := c.Spec.ExtendedResourceName; n != nil {
				errs = append(errs, extendedResource(*n, at.Child("extendedResourceName"))...)
			}
			return errs
		},
		ValidateCreate: selectors,
		ValidateUpdate: func(now, old class) field.ErrorList {
			if equality.Semantic.DeepEqual(now.Spec.Selectors, old.Spec.Selectors) {
				return nil
			}
			return selectors(now)
		},
		Columns: []rest.Column[class]{{Name: "Age"}},
	}
}

// extendedResource checks the name under which pods may ask for devices of a class as for cpu and memory.
func extendedResource(name string, at *field.Path) (errs field.ErrorList) {
	const native = "kubernetes.io/"
	switch {
	case !strings.Contains(name, "/"):
		errs = append(errs, field.Invalid(at, name, "a name must be a domain-prefixed path, such as 'example.com/my-prop'"))
	case strings.Contains(name, native):
		errs = append(errs, field.Invalid(at, name, fmt.Sprintf("must not have %q domain", native)))
	}
	if strings.HasPrefix(name, quotaPrefix) {
		errs = append(errs, field.Invalid(at, name, fmt.Sprintf("must not have %q prefix", quotaPrefix)))
	}
	return append(errs, texts(at, name, content.IsLabelKey(quotaPrefix+name))...)
}

func deviceTaintRules() *rest.Resource[*resourcev1.DeviceTaintRule] {
	type rule = *resourcev1.DeviceTaintRule
	doc := resourcev1.DeviceTaint{}.SwaggerDoc()
	return &rest.Resource[rule]{
		RequireRevision: true,
		Default:         func(r rule) { defaultTaint(&r.Spec.Taint) },
		PrepareUpdate: func(now, old rule) {
			is, was := &now.Spec.Taint, &old.Spec.Taint
			if is.Effect != was.Effect && is.TimeAdded.Equal(was.TimeAdded) {
				is.TimeAdded = wholeSecond()
			}
		},
		Validate: func(r rule) (errs field.ErrorList) {
			at := field.NewPath("spec")
			if s, at := r.Spec.DeviceSelector, at.Child("deviceSelector"); s != nil {
				if s.Driver != nil {
					errs = append(errs, driverName(*s.Driver, at.Child("driver"))...)
				}
				if s.Pool != nil {
					errs = append(errs, poolName(*s.Pool, false, at.Child("pool"))...)
				}
				if s.Device != nil {
					errs = append(errs, labelName(*s.Device, at.Child("device"))...)
				}
			}
			return append(errs, deviceTaint(&r.Spec.Taint, at.Child("taint"))...)
		},
		StrictStatus: true,
		ValidateStatus: func(now, _ rule) field.ErrorList {
			at := field.NewPath("status", "conditions")
			errs := metavalidation.ValidateConditions(now.Status.Conditions, at)
			if n := len(now.Status.Conditions); n > resourcev1.DeviceTaintRuleStatusMaxConditions {
				errs = append(errs, field.TooMany(at, n, resourcev1.DeviceTaintRuleStatusMaxConditions))
			}
			return errs
		},
		Columns: []rest.Column[rule]{
			{Name: "Key", Description: doc["key"], Cell: func(r rule) any { return r.Spec.Taint.Key }},
			{Name: "Value", Description: doc["value"], Cell: func(r rule) any { return r.Spec.Taint.Value }},
			{Name: "Effect", Description: doc["effect"], Cell: func(r rule) any { return string(r.Spec.Taint.Effect) }},
			{Name: "TimeAdded", Description: doc["timeAdded"], Cell: func(r rule) any {
				if r.Spec.Taint.TimeAdded == nil {
					return unknown
				}
				return ago(r.Spec.Taint.TimeAdded.Time)
			}},
			{Name: "Age"},
		},
	}
}

func defaultTaint(t *resourcev1.DeviceTaint) {
	if t.TimeAdded == nil {
		t.TimeAdded = wholeSecond()
	}
}

func wholeSecond() *metav1.Time { return &metav1.Time{Time: time.Now().Truncate(time.Second)} }
