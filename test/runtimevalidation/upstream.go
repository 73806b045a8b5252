//go:build upstream

package main

// Never built: it keeps upstream's validation programs and all that they need among the dependencies of this module.
import (
	_ "github.com/opencontainers/runtime-tools/cmd/runtimetest"
	_ "github.com/opencontainers/runtime-tools/validation/util"
)
