package volume

import (
	"strings"
	"testing"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	corev1 "k8s.io/api/core/v1"

	"github.com/yare-dev/yare/kubelet/field"
)

// Who measures a volume: its driver where it can, else the kernel; what is but a folder is walked through.
func TestStats(t *testing.T) {
	s := newDisks(t)
	s.p.Spec.Volumes = append(s.p.Spec.Volumes, corev1.Volume{Name: "e", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
		corev1.Volume{Name: "h", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/"}}})
	if _, err := s.v.Up(t.Context(), s.pod("u1"), s.o, field.Runtime{}); err != nil {
		t.Fatal(err)
	}
	all, err := s.v.Stats(t.Context(), s.pod("u1"))
	if err != nil || len(all) != 1 || all[0].Name != "e" || *all[0].UsedBytes > 1<<20 || *all[0].CapacityBytes == 0 || all[0].PVCRef != nil {
		t.Errorf("before the claim's volume is up: %+v %v", all, err)
	}
	s.mustMount("u1")
	if all, err = s.v.Stats(t.Context(), s.pod("u1")); err != nil || len(all) != 2 || *all[0].CapacityBytes == 0 || all[0].PVCRef.Name != "c" || all[0].Abnormal != nil {
		t.Errorf("by the kernel: %+v %v", all, err)
	}
	s.d.Can = append(s.d.Can, spec.NodeServiceCapability_RPC_GET_VOLUME_STATS, spec.NodeServiceCapability_RPC_GET_VOLUME_HEALTH)
	s.d.Stats = &spec.NodeGetVolumeStatsResponse{Usage: []*spec.VolumeUsage{{Unit: spec.VolumeUsage_BYTES, Total: 10, Used: 3, Available: 7}, {Unit: spec.VolumeUsage_INODES, Total: 5, Used: 4, Available: 1}}}
	s.d.Health = []*spec.VolumeHealth_VolumeHealthEntry{{Reason: "DiskWornOut"}}
	if all, err = s.v.Stats(t.Context(), s.pod("u1")); err != nil || *all[0].CapacityBytes != 10 || *all[0].InodesFree != 1 || !*all[0].Abnormal {
		t.Errorf("by the driver: %+v %v", all, err)
	}
	s.on.gone = true
	if all, err = s.v.Stats(t.Context(), s.pod("u1")); err == nil || !strings.Contains(err.Error(), `volume "c": driver name d not found`) || len(all) != 1 {
		t.Errorf("without the driver: %+v %v", all, err)
	}
	s.on.gone = false
}
