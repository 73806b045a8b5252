package podspec

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func TestForeignVolumes(t *testing.T) {
	t.Parallel()
	lun := int32(256)
	managed := corev1.AzureManagedDisk
	for name, tc := range map[string]struct {
		v    corev1.VolumeSource
		want string // the errors, in order
	}{
		"gce":           {corev1.VolumeSource{GCEPersistentDisk: &corev1.GCEPersistentDiskVolumeSource{PDName: "a"}}, ""},
		"gce empty":     {corev1.VolumeSource{GCEPersistentDisk: &corev1.GCEPersistentDiskVolumeSource{Partition: 256}}, "v.gcePersistentDisk.pdName: Required value|v.gcePersistentDisk.partition: Invalid value: 256: must be between 0 and 255, inclusive"},
		"git":           {corev1.VolumeSource{GitRepo: &corev1.GitRepoVolumeSource{Repository: "r", Directory: "../a"}}, `v.gitRepo.directory: Invalid value: "../a": must not contain '..'`},
		"iscsi":         {corev1.VolumeSource{ISCSI: &corev1.ISCSIVolumeSource{TargetPortal: "p", IQN: "iqn.2001-04.com.example:storage.kube.sys1.xyz"}}, ""},
		"iscsi bad":     {corev1.VolumeSource{ISCSI: &corev1.ISCSIVolumeSource{TargetPortal: "p", IQN: "x", SessionCHAPAuth: true}}, `v.iscsi.iqn: Invalid value: "x": must be valid format starting with iqn, eui, or naa|v.iscsi.secretRef: Required value`},
		"flex":          {corev1.VolumeSource{FlexVolume: &corev1.FlexVolumeSource{Driver: "d", Options: map[string]string{"a.k8s.io/x": ""}}}, `v.flexVolume.options[a.k8s.io/x]: Invalid value: "a.k8s.io/x": kubernetes.io and k8s.io namespaces are reserved`},
		"fc":            {corev1.VolumeSource{FC: &corev1.FCVolumeSource{TargetWWNs: []string{"a"}, Lun: &lun}}, "v.fc.lun: Invalid value: 256: must be between 0 and 255, inclusive"},
		"fc neither":    {corev1.VolumeSource{FC: &corev1.FCVolumeSource{}}, "v.fc.targetWWNs: Required value: must specify either targetWWNs or wwids, but not both"},
		"flocker":       {corev1.VolumeSource{Flocker: &corev1.FlockerVolumeSource{}}, "v.flocker: Required value: one of datasetName and datasetUUID is required"},
		"quobyte":       {corev1.VolumeSource{Quobyte: &corev1.QuobyteVolumeSource{Registry: "a:1,b", Volume: "v"}}, `v.quobyte.registry: Invalid value: "a:1,b": must be a host:port pair or multiple pairs separated by commas`},
		"azure managed": {corev1.VolumeSource{AzureDisk: &corev1.AzureDiskVolumeSource{DiskName: "a", DataDiskURI: "https://x", Kind: &managed}}, `v.azureDisk.diskURI: Unsupported value: "https://x": supported values: "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}"`},
		"storageos":     {corev1.VolumeSource{StorageOS: &corev1.StorageOSVolumeSource{VolumeName: "v", SecretRef: &corev1.LocalObjectReference{}}}, "v.storageos.secretRef.name: Required value"},
		"two": {corev1.VolumeSource{CephFS: &corev1.CephFSVolumeSource{Monitors: []string{"m"}}, RBD: &corev1.RBDVolumeSource{}},
			"v.rbd.monitors: Required value|v.rbd.image: Required value|v.cephFS: Forbidden: may not specify more than 1 volume type"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			defaultForeign(&tc.v)
			got := ""
			for i, e := range source(&tc.v, field.NewPath("v")) {
				if i > 0 {
					got += "|"
				}
				got += e.Error()
			}
			if got != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
		})
	}
}
