package main

// version is set by the linker: what `yare --version` prints.
var version = "unknown"

// kubernetesVersion is the release whose API and behaviour Yare has.
const kubernetesVersion = "v1.37.2"
