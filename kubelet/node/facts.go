// Package node keeps the Node object and its Lease: what this machine has, what of it pods may use, and that it is alive.
// It replaces upstream's node status updater and lease controller.
//
// What the status should be is a pure function (Status) of Facts, read from the kernel, and of what the runtime says.
// Keeper writes it when it differs, and every five minutes; the Lease is renewed every ten seconds.
package node

import (
	"bufio"
	"bytes"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"strings"

	"github.com/yare-dev/yare/linux"
)

// Facts is what the kernel says of the machine.
type Facts struct {
	CPUs           int
	Memory         int64 // bytes
	MemoryUsage    int64
	WorkingSet     int64            // bytes that nobody can have but by taking them away from somebody
	Hugepages      map[string]int64 // page size ("2Mi") to bytes set aside
	Storage        int64            // bytes of the file system that holds the kubelet's root
	StorageFree    int64
	Inodes         int64
	InodesFree     int64
	PIDs, PIDsMax  int64
	Swap           int64
	MachineID      string
	SystemUUID     string
	BootID         string
	Kernel         string
	OSImage        string
	Architecture   string
	UnifiedCgroups bool // cgroup v2 alone
}

// Read gathers the facts; root is the kubelet's folder. What cannot be read is left zero, but for memory and cpu.
func Read(root string) (Facts, error) {
	f := Facts{CPUs: goruntime.NumCPU(), Architecture: goruntime.GOARCH, Hugepages: hugepages("/sys/kernel/mm/hugepages")}
	mem, err := Memory()
	if err != nil {
		return f, err
	}
	f.Memory, f.MemoryUsage, f.WorkingSet, f.Swap = mem.Total, mem.Usage, mem.WorkingSet, mem.Swap
	if disk, err := Disk(root); err == nil {
		f.Storage, f.StorageFree, f.Inodes, f.InodesFree = disk.Bytes, disk.Free, disk.Inodes, disk.InodesFree
	}
	f.PIDs, f.PIDsMax = PIDs()
	f.MachineID = word("/etc/machine-id")
	f.SystemUUID = strings.ToLower(word("/sys/class/dmi/id/product_uuid"))
	if f.SystemUUID == "" {
		f.SystemUUID = f.MachineID
	}
	f.BootID = word("/proc/sys/kernel/random/boot_id")
	f.Kernel = word("/proc/sys/kernel/osrelease")
	f.OSImage = osImage()
	hierarchies, err := linux.Hierarchies()
	if err != nil {
		return f, err
	}
	f.UnifiedCgroups = linux.Unified(hierarchies)
	return f, nil
}

// existing returns path or the nearest folder above it that exists.
func existing(path string) string {
	for path != "/" && path != "." {
		if _, err := os.Stat(path); err == nil {
			return path
		}
		path = filepath.Dir(path)
	}
	return path
}

// meminfo returns the values of /proc/meminfo in bytes.
func meminfo(b []byte) map[string]int64 {
	out := map[string]int64{}
	for lines := bufio.NewScanner(bytes.NewReader(b)); lines.Scan(); {
		name, rest, ok := strings.Cut(lines.Text(), ":")
		fields := strings.Fields(rest)
		if !ok || len(fields) == 0 {
			continue
		}
		n, err := strconv.ParseInt(fields[0], 10, 64)
		if err != nil {
			continue
		}
		if len(fields) > 1 && fields[1] == "kB" {
			n <<= 10
		}
		out[name] = n
	}
	return out
}

// hugepages returns the bytes that are set aside per page size.
func hugepages(dir string) map[string]int64 {
	out := map[string]int64{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return out
	}
	for _, e := range entries {
		kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimPrefix(e.Name(), "hugepages-"), "kB"), 10, 64)
		if err != nil {
			continue
		}
		n := number(filepath.Join(dir, e.Name(), "nr_hugepages"))
		name := strconv.FormatInt(kb, 10) + "Ki"
		switch {
		case kb%(1<<20) == 0:
			name = strconv.FormatInt(kb>>20, 10) + "Gi"
		case kb%(1<<10) == 0:
			name = strconv.FormatInt(kb>>10, 10) + "Mi"
		}
		out[name] = n * kb << 10
	}
	return out
}

func word(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func number(path string) int64 {
	n, err := strconv.ParseInt(word(path), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

func osImage() string {
	b, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return "Linux"
	}
	for line := range strings.Lines(string(b)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "PRETTY_NAME="); ok {
			return strings.Trim(name, `"'`)
		}
	}
	return "Linux"
}
