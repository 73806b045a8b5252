package builtin

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/apiserver/builtin/podspec"
	"github.com/yare-dev/yare/apiserver/rest"
)

// podTemplates keep a generation although they have no spec: it counts changes of the template.
func podTemplates() *rest.Resource[*corev1.PodTemplate] {
	type template = *corev1.PodTemplate
	return &rest.Resource[template]{
		AnswerDeleted: true,
		Default:       func(t template) { podspec.Default(&t.Template.Spec) },
		Prepare:       func(t template) { t.Generation = 1 },
		PrepareUpdate: func(now, old template) {
			if !equality.Semantic.DeepEqual(now.Template, old.Template) {
				now.Generation = old.Generation + 1
			}
		},
		Validate: func(t template) field.ErrorList { return podspec.Template(&t.Template, field.NewPath("template")) },
		Warn: func(now, old template) []string {
			if old != nil && now.Generation == old.Generation {
				return nil
			}
			return podspec.TemplateWarnings(&now.Template, field.NewPath("template"))
		},
		Columns: []rest.Column[template]{
			{Name: "Containers", Description: "Names of each container in the template.", Cell: func(t template) any { return containerNames(&t.Template) }},
			{Name: "Images", Description: "Images referenced by each container in the template.", Cell: func(t template) any { return containerImages(&t.Template) }},
			{Name: "Pod Labels", Description: "The labels for the pod template.", Cell: func(t template) any { return mapText(t.Template.Labels) }},
		},
	}
}
