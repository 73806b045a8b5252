package stats

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/kubelet/node"
	"github.com/yare-dev/yare/linux"
	"github.com/yare-dev/yare/linux/cgroupmetrics"
)

// Cadvisor writes what /metrics/cadvisor shows, in Prometheus' text format: pods' and containers' metrics as the runtime tells them (KEP-2371, as
// upstream's kubelet with PodAndContainerStatsFromCRI), those of the node's own cgroups, which no runtime tells of, and the machine's.
//
// The cgroups are read once, before the first byte is written. What cannot be read is left out and said by container_scrape_error and
// machine_scrape_error, as in cAdvisor; package cgroupmetrics says which of cAdvisor's metrics there are not. Of the machine's, NVM and
// DIMMs are left out, and books and drawers, of mainframes.
func (r *Reader) Cadvisor(ctx context.Context, w io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var p page
	failed := uint64(0)
	if err := r.fromRuntime(ctx, &p); err != nil {
		failed = 1
	}
	if err := r.ownGroups(&p, time.Now()); err != nil {
		failed = 1
	}
	p.single("container_scrape_error", "1 if there was an error while getting container metrics, 0 otherwise", failed, nil, nil)
	failed = 0
	if err := r.machine(&p); err != nil {
		failed = 1
	}
	p.single("machine_scrape_error", "1 if there was an error while getting machine metrics, 0 otherwise.", failed, nil, nil)
	return p.write(w)
}

func (r *Reader) fromRuntime(ctx context.Context, p *page) error {
	d, err := r.CRI.Runtime.ListMetricDescriptors(ctx, &runtimeapi.ListMetricDescriptorsRequest{})
	if err != nil {
		return fmt.Errorf("ask runtime which metrics it has: %w", err)
	}
	m, err := r.CRI.Runtime.ListPodSandboxMetrics(ctx, &runtimeapi.ListPodSandboxMetricsRequest{})
	if err != nil {
		return fmt.Errorf("ask runtime for metrics: %w", err)
	}
	p.runtime(d.Descriptors, m.PodMetrics)
	return nil
}

// ownGroups adds the host's root group, with its network and the kubelet's file system, and the groups above those of pods.
func (r *Reader) ownGroups(p *page, now time.Time) error {
	hierarchies, err := linux.Hierarchies()
	if err != nil {
		return err
	}
	var read cgroupmetrics.Reader
	defer read.Close()
	pods := r.CgroupRoot + "/kubepods"
	for _, id := range []string{"/", pods, pods + "/burstable", pods + "/besteffort"} {
		read.Start()
		if err := read.Group(cgroupmetrics.Dirs(hierarchies, id), &cgroupmetrics.Given{Inner: id != "/", Host: id == "/"}); err != nil {
			return err
		}
		boot := time.Time{}
		if id == "/" {
			_, boot = cpuTime()
			disk, err := read.Find(r.Root)
			if err != nil {
				return err
			}
			read.Filesystem(disk, &disk.Used)
			elsewhere, end := r.links.host()
			err = read.Network("/proc/self/net/dev", elsewhere)
			if end(); err != nil {
				return err
			}
		}
		read.Times(boot.Unix(), boot.Unix(), now.Unix())
		p.own(id, read.Values())
	}
	return nil
}

// links remembers of the host's links by name which have another end, as those of pods have: their traffic is the pod's. To find that out takes
// more than to read all their counters.
type links struct {
	mu     sync.Mutex
	paired map[string]bool
}

// host returns what tells such links, for one scrape, and what ends this, which forgets links that are gone.
func (l *links) host() (elsewhere func(link string) bool, end func()) {
	l.mu.Lock()
	seen := map[string]bool{}
	return func(link string) bool {
			is, known := l.paired[link]
			if !known {
				dir := "/sys/class/net/" + link
				is = word(dir+"/iflink") != word(dir+"/ifindex")
			}
			seen[link] = is
			return is
		}, func() {
			l.paired = seen
			l.mu.Unlock()
		}
}

func word(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// own adds figures of a group that is no pod's.
func (p *page) own(id string, values []cgroupmetrics.Value) {
	for _, v := range values {
		kind := gauge
		if v.Counter {
			kind = counter
		}
		f := p.family(v.Name, v.Help, kind, append([]string{"container", "id", "image", "name", "namespace", "pod"}, v.Metric.Labels...))
		f.kind = kind // a runtime may have told of it, and had nobody to tell it of
		all := make([]string, len(f.labels.labels))
		for _, l := range f.labels.labels {
			if l.name == "id" {
				all[l.place] = id
			}
			for i, name := range v.Metric.Labels {
				if l.name == name {
					all[l.place] = v.Labels[i]
				}
			}
		}
		f.add(series{told(v.Value, all), v.Nano}, 8)
	}
}

// cores are the machine's sockets and physical cores, which do not change while it runs.
var cores = sync.OnceValues(func() (sockets, physical uint64) {
	dirs, _ := filepath.Glob("/sys/devices/system/cpu/cpu[0-9]*/topology") // the pattern is right
	packages, all := map[string]bool{}, map[string]bool{}
	for _, d := range dirs {
		of := word(d + "/physical_package_id")
		packages[of], all[of+"/"+word(d+"/core_id")] = true, true
	}
	return uint64(len(packages)), uint64(len(all))
})

func (r *Reader) machine(p *page) error {
	f, err := node.Read(r.Root)
	if err != nil {
		return err
	}
	labels, values := []string{"boot_id", "machine_id", "system_uuid"}, []string{f.BootID, f.MachineID, f.SystemUUID}
	p.single("machine_cpu_cores", "Number of logical CPU cores.", uint64(f.CPUs), labels, values)
	if sockets, physical := cores(); sockets > 0 {
		p.single("machine_cpu_sockets", "Number of CPU sockets.", sockets, labels, values)
		p.single("machine_cpu_physical_cores", "Number of physical CPU cores.", physical, labels, values)
	}
	p.single("machine_memory_bytes", "Amount of memory installed on the machine.", uint64(f.Memory), labels, values)
	p.single("machine_swap_bytes", "Amount of swap memory available on the machine.", uint64(f.Swap), labels, values)
	p.single("cadvisor_version_info", "A metric with a constant '1' value labeled by kernel version, OS version, docker version, cadvisor version & cadvisor revision.", 1,
		[]string{"cadvisorRevision", "cadvisorVersion", "dockerVersion", "kernelVersion", "osVersion"}, []string{"", "", "", f.Kernel, f.OSImage})
	return nil
}
