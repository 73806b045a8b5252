package cgroup_test

import (
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/yare-dev/yare/oci/cgroup"
	"github.com/yare-dev/yare/oci/ocitest"
)

func TestCreateTwiceAndRemoveTwice(t *testing.T) {
	t.Parallel()
	ocitest.Root(t)
	g, err := cgroup.Open(ocitest.Cgroup(t) + "/a/b")
	if err != nil {
		t.Fatal(err)
	}
	limit := int64(100)
	for range 2 {
		if err := g.Create(&specs.LinuxResources{Pids: &specs.LinuxPids{Limit: &limit}}); err != nil {
			t.Fatal(err)
		}
	}
	if s, err := g.Stats(); err != nil || s.Pids.Limit != 100 {
		t.Errorf("got %+v, %v", s, err)
	}
	parent, err := cgroup.Open(g.Path() + "/..")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := parent.Remove(); err != nil { // with what is below
			t.Error(err)
		}
	}
}

func TestUnifiedNeedsV2(t *testing.T) {
	t.Parallel()
	ocitest.Root(t)
	g, err := cgroup.Open(ocitest.Cgroup(t))
	if err != nil {
		t.Fatal(err)
	}
	if g.Unified() {
		return
	}
	if err := g.Create(&specs.LinuxResources{Unified: map[string]string{"memory.high": "1"}}); err == nil {
		t.Error("unified limits were taken without v2")
	}
	if err := g.Remove(); err != nil {
		t.Error(err)
	}
}

func BenchmarkCreateRemove(b *testing.B) {
	ocitest.Root(b)
	path := ocitest.Cgroup(b) + "/c"
	for b.Loop() {
		g, err := cgroup.Open(path)
		if err != nil {
			b.Fatal(err)
		}
		if err := g.Create(&specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Access: "rwm"}}}); err != nil {
			b.Fatal(err)
		}
		if err := g.Remove(); err != nil {
			b.Fatal(err)
		}
	}
}
