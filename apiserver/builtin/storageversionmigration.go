package builtin

import (
	"strings"

	migrationv1 "k8s.io/api/storagemigration/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/apiserver/rest"
)

func storageVersionMigrations() *rest.Resource[*migrationv1.StorageVersionMigration] {
	type migration = *migrationv1.StorageVersionMigration
	return &rest.Resource[migration]{
		RequireRevision: true,
		NoGeneration:    true,
		Validate: func(m migration) (errs field.ErrorList) {
			r, at := m.Spec.Resource, field.NewPath("spec", "resource")
			if r.Resource == "" {
				errs = append(errs, field.Required(at.Child("resource"), "resource is required to be set"))
			} else if msgs := validation.IsDNS1035Label(r.Resource); len(msgs) > 0 {
				errs = append(errs, field.Invalid(at.Child("resource"), r.Resource, strings.Join(msgs, ",")))
			}
			if msgs := validation.IsDNS1123Subdomain(r.Group); r.Group != "" && len(msgs) > 0 {
				errs = append(errs, field.Invalid(at.Child("group"), r.Group, strings.Join(msgs, ",")))
			}
			return errs
		},
		ValidateUpdate: func(now, old migration) field.ErrorList { return immutable(now.Spec, old.Spec, field.NewPath("spec")) },
		StrictStatus:   true,
		ValidateStatus: migrationStatus,
		Columns: []rest.Column[migration]{
			{Name: "Name", Description: metav1.ObjectMeta{}.SwaggerDoc()["name"], Cell: func(m migration) any { return m.Name }},
			{Name: "Resource", Description: "GroupResource to migrate", Cell: func(m migration) any { return m.Spec.Resource.String() }},
			{Name: "Status", Description: "Status of the migration", Cell: func(m migration) any {
				state := "Unknown"
				for _, c := range m.Status.Conditions {
					switch migrationv1.MigrationConditionType(c.Type) {
					case migrationv1.MigrationRunning, migrationv1.MigrationFailed, migrationv1.MigrationSucceeded:
						if c.Status == metav1.ConditionTrue {
							state = c.Type
						}
					}
				}
				return state
			}},
		},
	}
}

// migrationStatus checks that a migration that ended stays so, and that its revision is set once.
func migrationStatus(now, old *migrationv1.StorageVersionMigration) (errs field.ErrorList) {
	at := field.NewPath("status")
	revision := now.Status.ResourceVersion
	if revision != "" {
		if _, err := resourceversion.CompareResourceVersion(revision, revision); err != nil {
			errs = append(errs, field.Invalid(at.Child("resourceVersion"), revision, err.Error()))
		}
	}
	conditions := at.Child("conditions")
	errs = append(errs, metavalidation.ValidateConditions(now.Status.Conditions, conditions)...)
	if was := old.Status.ResourceVersion; was != "" && was != revision {
		errs = append(errs, field.Invalid(at.Child("resourceVersion"), revision, "field is immutable"))
	}
	is := func(m *migrationv1.StorageVersionMigration, t migrationv1.MigrationConditionType) bool {
		return meta.IsStatusConditionTrue(m.Status.Conditions, string(t))
	}
	wrong := func(text string) { errs = append(errs, field.Invalid(conditions, now.Status.Conditions, text)) }
	if is(now, migrationv1.MigrationSucceeded) && is(now, migrationv1.MigrationFailed) {
		wrong("Both success and failed conditions cannot be true at the same time")
	}
	if is(old, migrationv1.MigrationSucceeded) && !is(now, migrationv1.MigrationSucceeded) {
		wrong("Success condition cannot be set to false once it is true")
	}
	if is(old, migrationv1.MigrationFailed) && !is(now, migrationv1.MigrationFailed) {
		wrong("Failed condition cannot be set to false once it is true")
	}
	return errs
}
