package rest

import (
	"sync"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiextensionsapply "k8s.io/apiextensions-apiserver/pkg/client/applyconfiguration"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/client-go/applyconfigurations"
	"k8s.io/client-go/kubernetes/scheme"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	apiregistrationapply "k8s.io/kube-aggregator/pkg/client/applyconfiguration"
	smd "sigs.k8s.io/structured-merge-diff/v6/schema"

	"github.com/yare-dev/yare/api"
)

// Each of upstream's modules brings the schema of its own groups' types, by which their fields are owned and merged. They are
// read when they are first needed: client-go's, of all other groups, takes some 50 ms.
var (
	coreTypes      = sync.OnceValue(func() managedfields.TypeConverter { return applyconfigurations.NewTypeConverter(scheme.Scheme) })
	extensionTypes = sync.OnceValue(func() managedfields.TypeConverter {
		return converter(apiextensionsv1.AddToScheme, apiextensionsapply.NewTypeConverter)
	})
	registrationTypes = sync.OnceValue(func() managedfields.TypeConverter {
		return converter(apiregistrationv1.AddToScheme, apiregistrationapply.NewTypeConverter)
	})
)

func converter(add func(*runtime.Scheme) error, make func(*runtime.Scheme) managedfields.TypeConverter) managedfields.TypeConverter {
	s := runtime.NewScheme()
	if add(s) != nil { // never: the types are of one version; each kind's test says so
		return managedfields.NewDeducedTypeConverter()
	}
	return make(s)
}

// MergeTypes returns what knows how objects of k are merged. Of a kind without a schema, scalars and maps are known as they are
// and lists taken as wholes.
func MergeTypes(k *api.Kind) managedfields.TypeConverter {
	types := coreTypes
	switch k.Group {
	case apiextensionsv1.GroupName:
		types = extensionTypes
	case apiregistrationv1.GroupName:
		types = registrationTypes
	}
	t := types()
	if _, err := t.ObjectToTyped(k.New()); err != nil {
		return managedfields.NewDeducedTypeConverter()
	}
	return t
}

// MergeSchemas are those of all kinds, for documents.
func MergeSchemas() (all []*smd.Schema) {
	for _, k := range []*api.Kind{api.NamespaceKind, api.CustomResourceDefinitionKind, api.APIServiceKind} {
		if v, err := MergeTypes(k).ObjectToTyped(k.New()); err == nil {
			all = append(all, v.Schema())
		}
	}
	return all
}
