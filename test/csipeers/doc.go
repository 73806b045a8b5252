// Package csipeers runs a cluster beside upstream's CSI driver for tests, csi-driver-host-path, as a driver runs on any node: it registers at
// the kubelet by a socket. The test makes the volumes by the driver's controller service and attaches them, as the cluster's controllers do.
package csipeers
