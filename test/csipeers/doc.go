// Package csipeers runs a cluster beside upstream's CSI driver for tests, csi-driver-host-path, as a driver runs on any node: it registers at
// the kubelet by a socket. The tests make the volumes by the driver's controller service and attach them themselves, but for those of the
// sidecars: there upstream's external-provisioner, external-attacher and external-resizer (the module sidecars) do it, beside this cluster's controllers.
package csipeers
