// Package image holds container images on disk and makes root file systems of
// them. It stands where containerd's content store, differ and overlayfs
// snapshotter stand upstream, in one place and one format.
//
// # Vocabulary
//
// An image ID is the sha256 digest of the image's configuration. A name is a
// reference with a tag or a digest ("docker.io/library/busybox:1.36"); several
// names may mean one image. A layer is one unpacked change set; its diff ID is
// the digest of the uncompressed archive, its chain ID names it together with
// everything below it. A snapshot is one container's writable root file system
// over an image, known by the caller's key.
//
// # On disk
//
//	lock                    flock(2): shared to add, exclusive to sweep
//	images/<id>.json        one image: layers, configuration, sizes, pin. The folder has a flock too: edit
//	names/<hash>.json       one name -> image ID
//	layers/<chain>/fs       the lower directory of overlayfs
//	layers/<chain>/layer.json
//	layers/<chain>-<...>    one that could not be written, for containers that run on it
//	snapshots/<key>/snapshot.json, upper, work or copy, rootfs (the mount point)
//	tmp/                    work in progress
//
// Every file is written beside its place and renamed into it. What is reachable
// is always whole: an image's record comes after its layers, a name after the
// record, and before Settle has synced them, layers and record say in which boot
// they came: in another they are nothing (see unsettled). Removal goes the other
// way. A process killed at any point leaves at worst a directory in tmp/ or a layer
// that nothing refers to; the next sweep takes both.
//
// # Several processes
//
// No process owns the folder. Whoever adds holds the lock shared for as long as
// it relies on layers that no record names yet; a sweep takes it exclusively
// and without waiting, and is put off when that fails. Whoever changes a record
// holds that of images/ for a moment. Reads take no lock: they see the files as
// they are, so a server sees what a command line imported. Any process settles
// what others left, and one that hears of an error of the disk removes for all
// what was not settled, since the kernel does not tell those who ask later.
//
// # Trust
//
// Names, configurations and archives come from strangers. Digests are checked
// before anything is unpacked, sizes and counts are bounded (Limits), and every
// path of an archive is resolved by the kernel inside the layer's root
// (openat2 RESOLVE_IN_ROOT), so no entry reaches the host.
package image
