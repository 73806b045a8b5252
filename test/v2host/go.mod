module github.com/yare-dev/yare/test/v2host

go 1.26.0

replace github.com/yare-dev/yare/test/cluster => ../cluster

require (
	github.com/opencontainers/runtime-spec v1.3.0
	github.com/yare-dev/yare/test/cluster v0.0.0-00010101000000-000000000000
	golang.org/x/sys v0.47.0
)

require (
	github.com/vishvananda/netlink v1.3.1 // indirect
	github.com/vishvananda/netns v0.0.5 // indirect
)
