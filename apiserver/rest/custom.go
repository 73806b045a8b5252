package rest

import (
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"

	"github.com/yare-dev/yare/api"
)

// Custom is what is known of a kind that is defined at run time, in the version of its Any, beside the functions of its Resource.
type Custom struct {
	// Definition is shared and read-only; Any.Kind.Version says which of its versions the Any is.
	Definition *apiextensionsv1.CustomResourceDefinition
	// Stored is the kind that the Store holds the objects as, whatever the version that they were written in: one value as long as the
	// definition lives.
	Stored *api.Kind
}

// Custom returns what is known of a kind that is defined at run time, nil of a built-in one.
func (a Any) Custom() *Custom { return a.r.custom }
