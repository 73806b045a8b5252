package cluster

import (
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/api/claim"
)

// Persistent is what the scheduler knows of claims, volumes, storage classes, and of the drivers behind them.
type Persistent struct {
	Claims  map[api.Key]*corev1.PersistentVolumeClaim
	Volumes map[string]*corev1.PersistentVolume
	Classes map[string]*storagev1.StorageClass
	Drivers map[string]*storagev1.CSIDriver
	// DriversOn says which drivers a node has, by its name.
	DriversOn map[string]*storagev1.CSINode
	// Attached are the attachments, by node and name.
	Attached map[string]map[string]*storagev1.VolumeAttachment
	// Capacities is what drivers have left, by storage class.
	Capacities map[string]map[api.Key]*storagev1.CSIStorageCapacity
	// Claimed is how many of the pods that were set use a claim.
	Claimed map[api.Key]int
}

func newPersistent() Persistent {
	return Persistent{
		Claims: map[api.Key]*corev1.PersistentVolumeClaim{}, Volumes: map[string]*corev1.PersistentVolume{},
		Classes: map[string]*storagev1.StorageClass{}, Drivers: map[string]*storagev1.CSIDriver{}, DriversOn: map[string]*storagev1.CSINode{},
		Attached: map[string]map[string]*storagev1.VolumeAttachment{}, Capacities: map[string]map[api.Key]*storagev1.CSIStorageCapacity{},
		Claimed: map[api.Key]int{},
	}
}

// claimed adds (by 1) or takes back (by -1) what p, which was set, uses of claims.
func (s *Persistent) claimed(p *Pod, by int) {
	for i := range p.Spec.Volumes {
		name := claim.Name(p.Pod, &p.Spec.Volumes[i])
		if name == "" {
			continue
		}
		key := api.Key{Namespace: p.Namespace, Name: name}
		if s.Claimed[key] += by; s.Claimed[key] == 0 {
			delete(s.Claimed, key)
		}
	}
}
