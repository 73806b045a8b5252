//go:build upstream

package suite

// Never built: it keeps upstream's test program and all that it needs among the dependencies of this module.
import _ "k8s.io/kubernetes/test/e2e"
