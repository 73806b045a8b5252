package eviction

import (
	"maps"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/linux/diskusage"
)

// candidate has a container "app" with requests, "" for none.
func candidate(name string, priority int32, memory, storage string, u *Usage) Candidate {
	c := corev1.Container{Name: "app", Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{}}}
	for r, q := range map[corev1.ResourceName]string{corev1.ResourceMemory: memory, corev1.ResourceEphemeralStorage: storage} {
		if q != "" {
			c.Resources.Requests[r] = resource.MustParse(q)
		}
	}
	return Candidate{Usage: u, Pod: &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PodSpec{Priority: &priority, Containers: []corev1.Container{c}}}}
}

// wholly has the candidate request memory as a whole.
func wholly(c Candidate, memory string) Candidate {
	c.Pod.Spec.Resources = &corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse(memory)}}
	return c
}

func memory(n int64) *Usage {
	return &Usage{Memory: n * mi, Containers: map[string]ContainerUsage{"app": {Memory: n * mi}}}
}

func disk(layer, logs, volumes int64) *Usage {
	of := func(n int64) diskusage.Usage { return diskusage.Usage{Bytes: n * mi, Inodes: 100 - n} }
	return &Usage{Volumes: of(volumes), Containers: map[string]ContainerUsage{"app": {Layer: of(layer), Logs: of(logs)}}}
}

func TestRank(t *testing.T) {
	all := Parts{Layers: true, Logs: true, Volumes: true}
	for _, c := range []struct {
		name   string
		signal Signal
		parts  Parts
		pods   []Candidate
		want   string
	}{
		{"who uses more than he requested goes before who uses more", MemoryAvailable, Parts{},
			[]Candidate{candidate("large", 0, "1Gi", "", memory(900)), candidate("small", 0, "10Mi", "", memory(20))}, "small large"},
		{"even with a higher priority", MemoryAvailable, Parts{},
			[]Candidate{candidate("modest", 0, "1Gi", "", memory(900)), candidate("important", 1000, "", "", memory(20))}, "important modest"},
		{"then priority", MemoryAvailable, Parts{},
			[]Candidate{candidate("important", 1000, "", "", memory(900)), candidate("plain", 0, "", "", memory(20))}, "plain important"},
		{"then by how much", MemoryAvailable, Parts{},
			[]Candidate{candidate("b", 0, "100Mi", "", memory(120)), candidate("a", 0, "10Mi", "", memory(40)), candidate("c", 0, "", "", memory(10))}, "a b c"},
		{"within requests too", MemoryAvailable, Parts{},
			[]Candidate{candidate("far", 0, "1Gi", "", memory(500)), candidate("near", 0, "100Mi", "", memory(90))}, "near far"},
		{"who is not measured goes first", MemoryAvailable, Parts{},
			[]Candidate{candidate("b", 0, "", "", memory(900)), candidate("a", 1000, "1Gi", "", nil)}, "a b"},
		{"disk: all of it", NodeFsAvailable, all,
			[]Candidate{candidate("layer", 0, "", "", disk(30, 0, 0)), candidate("logs", 0, "", "", disk(0, 20, 0)), candidate("volume", 0, "", "", disk(0, 0, 40))}, "volume layer logs"},
		{"disk: what is elsewhere does not count", NodeFsAvailable, Parts{Logs: true, Volumes: true},
			[]Candidate{candidate("layer", 0, "", "", disk(30, 1, 0)), candidate("logs", 0, "", "", disk(0, 20, 0)), candidate("volume", 0, "", "", disk(0, 0, 40))}, "volume logs layer"},
		{"disk: requests", NodeFsAvailable, all,
			[]Candidate{candidate("within", 0, "", "1Gi", disk(300, 0, 0)), candidate("beyond", 0, "", "1Mi", disk(2, 0, 0))}, "beyond within"},
		{"inodes", NodeFsInodesFree, all, // disk gives more inodes the fewer bytes
			[]Candidate{candidate("bytes", 0, "", "", disk(90, 90, 90)), candidate("files", 0, "", "", disk(1, 1, 1))}, "files bytes"},
		{"processes: priority, then how many", PIDAvailable, Parts{},
			[]Candidate{candidate("important", 1000, "", "", &Usage{PIDs: 5000}), candidate("few", 0, "", "", &Usage{PIDs: 1}), candidate("many", 0, "", "", &Usage{PIDs: 100})}, "many few important"},
	} {
		Rank(c.signal, c.parts, c.pods)
		var got []string
		for _, p := range c.pods {
			got = append(got, p.Pod.Name)
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// What counts, and what can be removed, is what is on the signal's file system.
func TestFileSystems(t *testing.T) {
	type answer struct {
		parts        Parts
		dead, images bool
	}
	none := answer{}
	for _, c := range []struct {
		name           string
		own, with      bool
		nodefs, images answer
	}{
		{"one disk", false, false, answer{Parts{true, true, true}, true, true}, answer{Parts{}, false, true}},
		{"images and layers on another", true, true, answer{Parts{false, true, true}, false, false}, answer{Parts{Layers: true}, true, true}},
		{"images alone on another", true, false, answer{Parts{true, true, true}, true, false}, answer{Parts{}, false, true}},
	} {
		o := Observations{OwnImages: c.own, LayersWithImages: c.with}
		for s, want := range map[Signal]answer{NodeFsAvailable: c.nodefs, NodeFsInodesFree: c.nodefs, ImageFsAvailable: c.images, ImageFsInodesFree: c.images,
			MemoryAvailable: none, PIDAvailable: none} {
			got := answer{parts: o.Parts(s)}
			got.dead, got.images = o.reclaims(s)
			if got != want {
				t.Errorf("%s, %s: %+v, want %+v", c.name, s, got, want)
			}
		}
	}
}

func TestMessage(t *testing.T) {
	o := &Observations{Of: map[Signal]Observation{MemoryAvailable: {56 << 10, 1000 * mi}, NodeFsAvailable: {99 * mi, 1000 * mi}, PIDAvailable: {3, 1000}}}
	for _, c := range []struct {
		name   string
		signal Signal
		value  string
		of     Candidate
		text   string
		notes  map[string]string
	}{
		{"memory", MemoryAvailable, "100Mi", candidate("a", 0, "10Mi", "", memory(20)),
			"The node was low on resource: memory. Threshold quantity: 100Mi, available: 56Ki. Container app was using 20Mi, request is 10Mi, has larger consumption of memory. ",
			map[string]string{"offending_containers": "app", "offending_containers_usage": "20Mi", "starved_resource": "memory"}},
		{"nothing requested", MemoryAvailable, "100Mi", candidate("a", 0, "", "", memory(20)),
			"The node was low on resource: memory. Threshold quantity: 100Mi, available: 56Ki. Container app was using 20Mi, request is 0, has larger consumption of memory. ",
			map[string]string{"offending_containers": "app", "offending_containers_usage": "20Mi", "starved_resource": "memory"}},
		{"within its request", MemoryAvailable, "100Mi", candidate("a", 0, "20Mi", "", memory(20)),
			"The node was low on resource: memory. Threshold quantity: 100Mi, available: 56Ki. ",
			map[string]string{"offending_containers": "", "offending_containers_usage": "", "starved_resource": "memory"}},
		{"the whole pod", MemoryAvailable, "100Mi", wholly(candidate("a", 0, "1Mi", "", memory(20)), "15Mi"),
			"The node was low on resource: memory. Threshold quantity: 100Mi, available: 56Ki. Pod a was using 20Mi, request is 15Mi, has larger consumption of memory. " +
				"Container app was using 20Mi, request is 1Mi, has larger consumption of memory. ",
			map[string]string{"offending_pod": "a", "offending_pod_usage": "20Mi", "offending_containers": "app", "offending_containers_usage": "20Mi", "starved_resource": "memory"}},
		{"within the whole pod's request", MemoryAvailable, "100Mi", wholly(candidate("a", 0, "20Mi", "", memory(20)), "30Mi"),
			"The node was low on resource: memory. Threshold quantity: 100Mi, available: 56Ki. ",
			map[string]string{"offending_containers": "", "offending_containers_usage": "", "starved_resource": "memory"}},
		{"not measured", MemoryAvailable, "100Mi", candidate("a", 0, "", "", nil),
			"The node was low on resource: memory. Threshold quantity: 100Mi, available: 56Ki. ", map[string]string{}},
		{"disk", NodeFsAvailable, "10%", candidate("a", 0, "", "1Mi", disk(2, 3, 4)),
			"The node was low on resource: ephemeral-storage. Threshold quantity: 100Mi, available: 99Mi. Container app was using 5Mi, request is 1Mi, has larger consumption of ephemeral-storage. ",
			map[string]string{"offending_containers": "app", "offending_containers_usage": "5Mi", "starved_resource": "ephemeral-storage"}},
		{"processes", PIDAvailable, "5", candidate("a", 0, "", "", &Usage{PIDs: 500}),
			"The node was low on resource: pids. Threshold quantity: 5, available: 3. ",
			map[string]string{"offending_containers": "", "offending_containers_usage": "", "starved_resource": "pids"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			th := Settings{Hard: settings{string(c.signal): c.value}}.Thresholds()
			text, notes := Message(&th[0], o, &c.of)
			if text != c.text {
				t.Errorf("%q, want %q", text, c.text)
			}
			if !maps.Equal(notes, c.notes) {
				t.Errorf("%q, want %q", notes, c.notes)
			}
		})
	}
}
