// Package settings reads configuration files of the group apiserver.config.k8s.io, in any version of it, into upstream's own
// types with their defaults. What is wrong in them upstream's own checks say.
package settings

import (
	"fmt"
	"sync"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apiserver/pkg/apis/apiserver/install"
)

var codecs = sync.OnceValue(func() serializer.CodecFactory {
	scheme := runtime.NewScheme()
	install.Install(scheme)
	return serializer.NewCodecFactory(scheme, serializer.EnableStrict)
})

// Decode reads a file's text, YAML or JSON.
func Decode[T runtime.Object](text []byte) (T, error) {
	var none T
	if len(text) == 0 {
		return none, fmt.Errorf("empty, expected %T", none)
	}
	o, err := runtime.Decode(codecs().UniversalDecoder(), text)
	if err != nil {
		return none, err
	}
	c, ok := o.(T)
	if !ok {
		return none, fmt.Errorf("expected %T, got %T", none, o)
	}
	return c, nil
}
