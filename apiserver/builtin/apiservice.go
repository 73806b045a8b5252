package builtin

import (
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/validate/content"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/rest"
)

// Bounds of priorities.
const (
	maxGroupPriority   = 20000
	maxVersionPriority = 1000
)

// AutoManaged is the label of those APIServices that the server makes itself, and OnStart its value where it does so when it starts.
const (
	AutoManaged = "kube-aggregator.kubernetes.io/automanaged"
	OnStart     = "onstart"
)

// apiServices say which server serves a version of a group. Package aggregator makes it so.
func apiServices() *rest.Resource[*apiregistrationv1.APIService] {
	type service = *apiregistrationv1.APIService
	return &rest.Resource[service]{
		NameOf:          apiServiceName,
		NoGeneration:    true,
		RequireRevision: true,
		AnyFinalizer:    true,
		Default: func(s service) {
			if s.Spec.Service != nil {
				setPtr(&s.Spec.Service.Port, 443)
			}
		},
		Prepare:      func(s service) { s.Status.Conditions = firstConditions(s) },
		Validate:     validateAPIService,
		StrictStatus: true,
		ValidateStatus: func(now, _ service) (errs field.ErrorList) {
			known := []apiregistrationv1.ConditionStatus{apiregistrationv1.ConditionTrue, apiregistrationv1.ConditionFalse, apiregistrationv1.ConditionUnknown}
			for i, c := range now.Status.Conditions {
				if !slices.Contains(known, c.Status) {
					errs = append(errs, field.NotSupported(field.NewPath("status", "conditions").Index(i).Child("status"), c.Status, known))
				}
			}
			return errs
		},
		Columns: []rest.Column[service]{
			{Name: "Service", Description: "The reference to the service that hosts this API endpoint.", Cell: func(s service) any {
				if s.Spec.Service == nil {
					return "Local"
				}
				return s.Spec.Service.Namespace + "/" + s.Spec.Service.Name
			}},
			{Name: "Available", Description: "Whether this service is available.", Cell: func(s service) any {
				for _, c := range s.Status.Conditions {
					if c.Type != apiregistrationv1.Available {
						continue
					}
					if c.Status == apiregistrationv1.ConditionTrue || c.Reason == "" {
						return string(c.Status)
					}
					return fmt.Sprintf("%s (%s)", c.Status, c.Reason)
				}
				return string(apiregistrationv1.ConditionUnknown)
			}},
			{Name: "Age"},
		},
	}
}

// firstConditions are those of a new APIService: what is served here is available, of others it has to be found out.
func firstConditions(s *apiregistrationv1.APIService) []apiregistrationv1.APIServiceCondition {
	if s.Spec.Service != nil {
		return nil
	}
	return []apiregistrationv1.APIServiceCondition{{
		Type: apiregistrationv1.Available, Status: apiregistrationv1.ConditionTrue, LastTransitionTime: metav1.Now(),
		Reason: "Local", Message: "Local APIServices are always available",
	}}
}

func apiServiceName(s *apiregistrationv1.APIService, name string, _ bool) []string {
	if msgs := content.IsPathSegmentName(name); len(msgs) > 0 {
		return msgs
	}
	if want := s.Spec.Version + "." + s.Spec.Group; name != want {
		return []string{fmt.Sprintf("must be `spec.version+\".\"+spec.group`: %q", want)}
	}
	return nil
}

func validateAPIService(s *apiregistrationv1.APIService) field.ErrorList {
	spec, at := &s.Spec, field.NewPath("spec")
	var errs field.ErrorList
	if spec.Group == "" && spec.Version != "v1" {
		errs = append(errs, field.Required(at.Child("group"), "only v1 may have an empty group and it better be legacy kube"))
	}
	if spec.Group != "" {
		errs = append(errs, texts(at.Child("group"), spec.Group, validation.IsDNS1123Subdomain(spec.Group))...)
	}
	errs = append(errs, texts(at.Child("version"), spec.Version, validation.IsDNS1035Label(spec.Version))...)
	if n := spec.GroupPriorityMinimum; n <= 0 || n > maxGroupPriority {
		errs = append(errs, field.Invalid(at.Child("groupPriorityMinimum"), n, "must be positive and less than 20000"))
	}
	if n := spec.VersionPriority; n <= 0 || n > maxVersionPriority {
		errs = append(errs, field.Invalid(at.Child("versionPriority"), n, "must be positive and less than 1000"))
	}
	insecure := at.Child("insecureSkipTLSVerify")
	if spec.Service == nil {
		if len(spec.CABundle) != 0 {
			errs = append(errs, field.Invalid(at.Child("caBundle"), fmt.Sprintf("%d bytes", len(spec.CABundle)), "local APIServices may not have a caBundle"))
		}
		if spec.InsecureSkipTLSVerify {
			errs = append(errs, field.Invalid(insecure, true, "local APIServices may not have insecureSkipTLSVerify"))
		}
		return errs
	}
	if spec.Service.Namespace == "" {
		errs = append(errs, field.Required(at.Child("service", "namespace"), ""))
	}
	if spec.Service.Name == "" {
		errs = append(errs, field.Required(at.Child("service", "name"), ""))
	}
	if port := deref(spec.Service.Port); len(validation.IsValidPortNum(int(port))) > 0 {
		errs = append(errs, field.Invalid(at.Child("service", "port"), port, "port is not valid: "+strings.Join(validation.IsValidPortNum(int(port)), ", ")))
	}
	if spec.InsecureSkipTLSVerify && len(spec.CABundle) > 0 {
		errs = append(errs, field.Invalid(insecure, true, "may not be true if caBundle is present"))
	}
	return errs
}

// LocalAPIServices are those of the versions that this server serves, with upstream's priorities.
func LocalAPIServices() []*apiregistrationv1.APIService {
	var all []*apiregistrationv1.APIService
	for _, p := range []struct {
		group, version          string
		groupPriority, priority int32
	}{
		{"", "v1", 18000, 1},
		{"apps", "v1", 17800, 15},
		{"events.k8s.io", "v1", 17750, 15},
		{"authentication.k8s.io", "v1", 17700, 15},
		{"authorization.k8s.io", "v1", 17600, 15},
		{"autoscaling", "v1", 17500, 15}, {"autoscaling", "v2", 17500, 30},
		{"batch", "v1", 17400, 15},
		{"certificates.k8s.io", "v1", 17300, 15},
		{"networking.k8s.io", "v1", 17200, 15},
		{"policy", "v1", 17100, 15},
		{"rbac.authorization.k8s.io", "v1", 17000, 15},
		{"storage.k8s.io", "v1", 16800, 15},
		{"apiextensions.k8s.io", "v1", 16700, 15},
		{"admissionregistration.k8s.io", "v1", 16700, 15},
		{"scheduling.k8s.io", "v1", 16600, 15},
		{"coordination.k8s.io", "v1", 16500, 15},
		{"node.k8s.io", "v1", 16300, 15},
		{"resource.k8s.io", "v1", 16200, 21},
		{"discovery.k8s.io", "v1", 16200, 15},
		{"flowcontrol.apiserver.k8s.io", "v1", 16100, 21},
		{"storagemigration.k8s.io", "v1", 15800, 15},
	} {
		if !serves(schema.GroupVersion{Group: p.group, Version: p.version}) {
			continue
		}
		all = append(all, &apiregistrationv1.APIService{
			ObjectMeta: metav1.ObjectMeta{Name: p.version + "." + p.group, Labels: map[string]string{AutoManaged: OnStart}},
			Spec:       apiregistrationv1.APIServiceSpec{Group: p.group, Version: p.version, GroupPriorityMinimum: p.groupPriority, VersionPriority: p.priority},
		})
	}
	return all
}

func serves(gv schema.GroupVersion) bool {
	switch gv.Group {
	case "authentication.k8s.io", "authorization.k8s.io": // reviews are not stored
		return true
	}
	return slices.ContainsFunc(api.Stored(), func(k *api.Kind) bool {
		return slices.ContainsFunc(k.Forms(), func(f *api.Kind) bool { return f.GroupVersion() == gv })
	})
}
