package volume

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func TestGrowth(t *testing.T) {
	gi := func(n string) corev1.ResourceList {
		return corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(n)}
	}
	many := []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany}
	for _, c := range []struct {
		volume, claim string
		at            corev1.ClaimResourceStatus
		modes         []corev1.PersistentVolumeAccessMode
		known         int64
		not           bool // node expansion is not required
		want          string
	}{
		{volume: "1Gi", claim: "1Gi", want: "none"},
		{volume: "2Gi", claim: "1Gi", want: "2Gi, told"}, // by a controller of old
		{volume: "2Gi", claim: "1Gi", at: corev1.PersistentVolumeClaimNodeResizePending, want: "2Gi, told"},
		{volume: "2Gi", claim: "1Gi", at: corev1.PersistentVolumeClaimNodeResizeInProgress, want: "2Gi, told"},
		{volume: "2Gi", claim: "2Gi", at: corev1.PersistentVolumeClaimNodeResizePending, want: "2Gi, told"},
		{volume: "2Gi", claim: "1Gi", at: corev1.PersistentVolumeClaimControllerResizeInProgress, want: "none"},
		{volume: "2Gi", claim: "1Gi", at: corev1.PersistentVolumeClaimNodeResizeInfeasible, want: "none"},
		{volume: "2Gi", claim: "2Gi", known: 1 << 30, want: "none"},
		{volume: "2Gi", claim: "2Gi", known: 1 << 30, modes: many, want: "2Gi"},
		{volume: "2Gi", claim: "2Gi", known: 1 << 30, modes: many, not: true, want: "none"},
		{volume: "2Gi", claim: "2Gi", modes: many, want: "none"},
	} {
		pvc, pv := &corev1.PersistentVolumeClaim{}, &corev1.PersistentVolume{}
		pvc.Status.Capacity, pv.Spec.Capacity, pv.Spec.AccessModes = gi(c.claim), gi(c.volume), c.modes
		if c.at != "" {
			pvc.Status.AllocatedResourceStatuses = map[corev1.ResourceName]corev1.ClaimResourceStatus{corev1.ResourceStorage: c.at}
		}
		if c.not {
			pvc.Annotations = map[string]string{noNodeExpansion: "true"}
		}
		got := "none"
		if size, tells := growth(pvc, pv, c.known); size != nil {
			if got = size.String(); tells {
				got += ", told"
			}
		}
		if got != c.want {
			t.Errorf("%+v: %s", c, got)
		}
	}
}

// A volume grows while a pod has it, and when one comes to have it; the claim tells how far that is.
func TestDiskGrows(t *testing.T) {
	s := newDisks(t)
	s.d.Can = append(s.d.Can, spec.NodeServiceCapability_RPC_EXPAND_VOLUME)
	size := func(volume, claim string) {
		s.pv.Spec.Capacity = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(volume)}
		c := s.o.claims["c"].DeepCopy()
		c.Status.Capacity = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(claim)}
		c.Status.AllocatedResourceStatuses = nil
		c.Status.Conditions = []corev1.PersistentVolumeClaimCondition{{Type: corev1.PersistentVolumeClaimFileSystemResizePending, Status: corev1.ConditionTrue}}
		s.o.claims["c"] = c
	}
	claim := func() string {
		st := s.o.claims["c"].Status
		var kinds []string
		for _, c := range st.Conditions {
			kinds = append(kinds, string(c.Type))
		}
		q := st.Capacity[corev1.ResourceStorage]
		return fmt.Sprint(q.String(), " ", st.AllocatedResourceStatuses[corev1.ResourceStorage], " ", strings.Join(kinds, ","))
	}
	later := func() { // as if its time had come
		for _, c := range s.v.claims["u1"] {
			c.again = time.Unix(1, 0)
		}
	}
	size("1Gi", "1Gi")
	s.mustMount("u1")
	s.wantCalls("Stage h", "Publish h")
	if next := s.v.Next(s.pod("u1")); next.IsZero() || next.After(time.Now().Add(lookEvery)) {
		t.Error("looked after at", next)
	}
	size("2Gi", "1Gi")
	later()
	s.mustMount("u1")
	s.wantCalls("Expand h")
	r := s.d.Last("Expand").(*spec.NodeExpandVolumeRequest)
	if r.CapacityRange.RequiredBytes != 2<<30 || r.VolumePath != s.v.target("u1", &disk{Name: "pv-c"}) || !strings.HasSuffix(r.StagingTargetPath, "globalmount") {
		t.Error(r)
	}
	if got := claim(); got != "2Gi  " {
		t.Error(got)
	}
	if len(s.o.warnings) != 2 || s.o.warnings[0] != `FileSystemResizeSuccessful MountVolume.NodeExpandVolume succeeded for volume "pv-c"` {
		t.Error(s.o.warnings)
	}
	// What fails is told, and keeps nobody from his volume.
	for _, c := range []struct {
		code codes.Code
		want string
	}{
		{codes.Unavailable, "2Gi NodeResizeInProgress FileSystemResizePending"},
		{codes.Internal, "2Gi NodeResizeInProgress FileSystemResizePending,NodeResizeError"},
		{codes.OutOfRange, "2Gi NodeResizeInfeasible FileSystemResizePending,NodeResizeError"},
	} {
		size("3Gi", "2Gi")
		s.d.Hook = func(string, string, bool) error { return status.Error(c.code, "no") }
		later()
		s.mustMount("u1")
		if got := claim(); got != c.want {
			t.Errorf("%s, want %s", got, c.want)
		}
	}
	s.d.Hook = nil
	s.d.Calls()
	later()
	s.mustMount("u1")
	s.wantCalls() // it was found that it cannot be
	size("3Gi", "2Gi")
	s.mustMount("u2")
	s.wantCalls("Publish h", "Expand h")
	if got := claim(); got != "3Gi  " {
		t.Error(got)
	}
	if d, err := s.v.diskOf("u2", "pv-c"); err != nil || d.Size != 3<<30 {
		t.Error(d, err)
	}
	// A driver that does not expand on nodes, and a pod that only reads.
	size("4Gi", "3Gi")
	s.o.warnings = nil
	s.d.Can = s.d.Can[:1]
	s.mustMount("u3")
	if len(s.o.warnings) > 0 || claim() != "3Gi  FileSystemResizePending" {
		t.Error(s.o.warnings, claim())
	}
	s.p.Spec.Volumes[0].PersistentVolumeClaim.ReadOnly = true
	size("4Gi", "3Gi")
	s.mustMount("u4")
	if slices.Contains(s.d.Calls(), "Expand h") || claim() != "3Gi  FileSystemResizePending" {
		t.Error(claim())
	}
}
