package cluster

import (
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"

	"github.com/yare-dev/yare/api"
)

// Persistent is what the scheduler knows of claims, volumes and storage classes.
type Persistent struct {
	Claims  map[api.Key]*corev1.PersistentVolumeClaim
	Volumes map[string]*corev1.PersistentVolume
	Classes map[string]*storagev1.StorageClass
}

func newPersistent() Persistent {
	return Persistent{Claims: map[api.Key]*corev1.PersistentVolumeClaim{}, Volumes: map[string]*corev1.PersistentVolume{},
		Classes: map[string]*storagev1.StorageClass{}}
}
