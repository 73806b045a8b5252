package cgroupmetrics

import (
	"bytes"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
)

// device returns the label of a device "8:0": "/dev/sda". It is empty, as in cAdvisor, for what is no block device.
func (r *Reader) device(id []byte) []string {
	if label, ok := r.devices[string(id)]; ok {
		return label
	}
	if r.devices == nil {
		r.devices = map[string][]string{}
	}
	name := ""
	if to, err := os.Readlink("/sys/dev/block/" + string(id)); err == nil {
		name = "/dev/" + filepath.Base(to)
	}
	label := []string{name}
	r.devices[string(id)] = label
	return label
}

// disk are the figures of one device.
type disk struct {
	label                                []string
	readBytes, reads, writeBytes, writes uint64
}

func (r *Reader) disk(d disk) {
	if d.label[0] == "" {
		return // two unnamed devices would be the same series
	}
	r.add(fsReadBytes, d.readBytes, d.label...)
	r.add(fsReads, d.reads, d.label...)
	r.add(fsWriteBytes, d.writeBytes, d.label...)
	r.add(fsWrites, d.writes, d.label...)
}

// io2 reads lines "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0".
func (r *Reader) io2(d dir) {
	b := r.file(d, "io.stat")
	for line := range bytes.Lines(b) {
		id, rest, ok := bytes.Cut(bytes.TrimSpace(line), []byte{' '})
		if !ok {
			continue // the kernel leaves a device's name behind that has no figures
		}
		sum := disk{label: r.device(id)}
		for len(rest) > 0 {
			var field []byte
			field, rest, _ = bytes.Cut(rest, []byte{' '})
			key, value, _ := bytes.Cut(field, []byte{'='})
			n, _ := parse(value)
			switch string(key) {
			case "rbytes":
				sum.readBytes = n
			case "rios":
				sum.reads = n
			case "wbytes":
				sum.writeBytes = n
			case "wios":
				sum.writes = n
			}
		}
		r.disk(sum)
	}
}

// io1 reads lines "8:0 Read 1", of bytes and of operations.
func (r *Reader) io1(d at) {
	var disks []disk
	r.throttle(d, "blkio.throttle.io_service_bytes", &disks, func(d *disk) (read, written *uint64) { return &d.readBytes, &d.writeBytes })
	if len(disks) == 0 {
		return // no operation without bytes
	}
	r.throttle(d, "blkio.throttle.io_serviced", &disks, func(d *disk) (read, written *uint64) { return &d.reads, &d.writes })
	for _, sum := range disks {
		r.disk(sum)
	}
}

// throttle reads a file of the group with those below it, or on an old kernel of the group alone.
func (r *Reader) throttle(d at, name string, disks *[]disk, of func(*disk) (read, written *uint64)) {
	b := r.file(d.dir, d.prefix+name+"_recursive")
	if b == nil {
		b = r.file(d.dir, d.prefix+name)
	}
	for line := range bytes.Lines(b) {
		f := bytes.Fields(line)
		if len(f) != 3 {
			continue // "Total 3"
		}
		n, _ := parse(f[2])
		label := r.device(f[0])
		i := 0
		for i < len(*disks) && &(*disks)[i].label[0] != &label[0] {
			i++
		}
		if i == len(*disks) {
			*disks = append(*disks, disk{label: label})
		}
		read, written := of(&(*disks)[i])
		switch string(f[1]) {
		case "Read":
			*read = n
		case "Write":
			*written = n
		}
	}
}

// Network reads a file net/dev of /proc, but for the loopback and what skip names; nil names none. Lines are
// "eth0: rx-bytes packets errs drop fifo frame compressed multicast tx-bytes packets errs drop ...".
func (r *Reader) Network(file string, skip func(link string) bool) error {
	b := r.file(unix.AT_FDCWD, file)
	if b == nil {
		return linux.Wrap("read", file, unix.ENOENT)
	}
	for line := range bytes.Lines(b) {
		before, after, ok := bytes.Cut(line, []byte{':'})
		f := bytes.Fields(after)
		name := string(bytes.TrimSpace(before))
		if !ok || len(f) < 12 || name == "lo" || skip != nil && skip(name) {
			continue
		}
		label := []string{name}
		for _, c := range []struct{ field, metric int }{{0, receiveBytes}, {1, receivePackets}, {2, receiveErrors}, {3, receiveDropped},
			{8, transmitBytes}, {9, transmitPackets}, {10, transmitErrors}, {11, transmitDropped}} {
			n, ok := parse(f[c.field])
			if ok {
				r.add(c.metric, n, label...)
			}
		}
	}
	return nil
}
