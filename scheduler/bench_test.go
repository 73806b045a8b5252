package scheduler

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/run"
	"github.com/yare-dev/yare/scheduler/cluster"
	"github.com/yare-dev/yare/scheduler/plugins"
	"github.com/yare-dev/yare/store/memory"
)

func bigNode(i int) *corev1.Node {
	return makeNode(fmt.Sprint("n", i), func(n *corev1.Node) {
		n.Labels[corev1.LabelTopologyZone] = fmt.Sprint("z", i%10)
		n.Status.Allocatable = list("64", "256Gi")
		n.Status.Allocatable[corev1.ResourcePods] = *newCount(500)
	})
}

// shapes are the kinds of pods that are measured.
var shapes = map[string]func(p *corev1.Pod){
	"plain": func(*corev1.Pod) {},
	"spread": func(p *corev1.Pod) {
		p.Spec.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{{MaxSkew: 1, TopologyKey: corev1.LabelTopologyZone,
			WhenUnsatisfiable: corev1.DoNotSchedule, LabelSelector: &metav1.LabelSelector{MatchLabels: p.Labels}}}
	},
	"anti": func(p *corev1.Pod) {
		p.Spec.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{
			RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{{TopologyKey: corev1.LabelHostname,
				LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"not": "this"}}}}}}
	},
	"affinity": func(p *corev1.Pod) {
		p.Spec.Affinity = &corev1.Affinity{PodAffinity: &corev1.PodAffinity{
			RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{{TopologyKey: corev1.LabelTopologyZone,
				LabelSelector: &metav1.LabelSelector{MatchLabels: p.Labels}}}}}
	},
}

func shaped(i int, change func(*corev1.Pod)) *corev1.Pod {
	return makePod(fmt.Sprint("p", i), requests("100m", "100Mi"), func(p *corev1.Pod) {
		p.UID = types.UID(p.Name)
		p.Labels = map[string]string{"app": "a"}
		p.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "r", UID: "r", Controller: new(true)}}
		change(p)
	})
}

// Placing on 5,000 nodes, without the API.
func BenchmarkPlace(b *testing.B) {
	for name, change := range shapes {
		b.Run(name, func(b *testing.B) {
			c, pl := cluster.New(), newPlacer(1)
			for i := range 5000 {
				c.SetNode(bigNode(i))
			}
			for i := 0; b.Loop(); i++ {
				p, err := c.Pod(shaped(i, change))
				if err != nil {
					b.Fatal(err)
				}
				slot, f := pl.place(c, p)
				if f != nil {
					b.Fatal(f)
				}
				c.SetPod(p, c.Nodes[slot].Name)
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "pods/s")
		})
	}
}

// Scheduling through the API's pipeline over a memory store, 1,000 nodes, bindings included.
func BenchmarkSchedule(b *testing.B) {
	const pods = 2000
	for name, change := range shapes {
		b.Run(name, func(b *testing.B) {
			var took time.Duration
			for range b.N {
				took += scheduleAll(b, pods, change)
			}
			b.ReportMetric(float64(b.N*pods)/took.Seconds(), "pods/s")
		})
	}
}

// scheduleAll creates the pods, then starts a scheduler and measures until all are bound.
func scheduleAll(b *testing.B, pods int, change func(*corev1.Pod)) time.Duration {
	log := slog.New(slog.DiscardHandler)
	st, c := server(b, memory.New(false), log)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	start := func(comp run.Component) {
		ready := make(chan struct{})
		wg.Go(func() {
			if err := comp.Run(ctx, func() { close(ready) }); err != nil {
				b.Error(err)
			}
		})
		<-ready
	}
	start(st)
	be := &bench{c, b}
	ns := &corev1.Namespace{}
	ns.Name = "default"
	be.create(ns)
	for i := range 1000 {
		be.node(bigNode(i))
	}
	for i := range pods {
		p := shaped(i, change)
		p.UID = ""
		be.create(p)
	}
	begin := time.Now()
	bound := make(chan struct{})
	wg.Go(func() {
		n := 0
		for e, err := range c.Watch(ctx, api.PodKind, client.Query{}, 0) {
			if p, ok := e.Object.(*corev1.Pod); ok && err == nil && p.Spec.NodeName != "" {
				if n++; n == pods {
					close(bound)
					return
				}
			}
		}
	})
	start(New(Config{Client: c, Log: log}))
	<-bound
	return time.Since(begin)
}

// Placing pods with a claim for one of the eight devices that each of 1,000 nodes has, without the API.
func BenchmarkPlaceDevices(b *testing.B) {
	c, pl := cluster.New(), newPlacer(1)
	fill := func() {
		c, pl = cluster.New(), newPlacer(1)
		class := &resourcev1.DeviceClass{ObjectMeta: metav1.ObjectMeta{Name: "gpu"}}
		class.Spec.Selectors = []resourcev1.DeviceSelector{{CEL: &resourcev1.CELDeviceSelector{Expression: `device.driver == "` + driver + `"`}}}
		c.Devices.SetClass(class, false)
		for i := range 1000 {
			n := bigNode(i)
			c.SetNode(n)
			s := &resourcev1.ResourceSlice{ObjectMeta: metav1.ObjectMeta{Name: n.Name}}
			s.Spec.Driver, s.Spec.NodeName, s.Spec.Pool = driver, &n.Name, resourcev1.ResourcePool{Name: n.Name, ResourceSliceCount: 1}
			for j := range 8 {
				s.Spec.Devices = append(s.Spec.Devices, resourcev1.Device{Name: fmt.Sprint("d", j)})
			}
			c.Devices.SetSlice(s, false)
		}
	}
	for i := 0; b.Loop(); i++ {
		if i%4000 == 0 {
			b.StopTimer()
			fill()
			b.StartTimer()
		}
		claim := &resourcev1.ResourceClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprint("c", i), UID: types.UID(fmt.Sprint("c", i))}}
		claim.Spec.Devices.Requests = []resourcev1.DeviceRequest{{Name: "r", Exactly: &resourcev1.ExactDeviceRequest{
			DeviceClassName: "gpu", AllocationMode: resourcev1.DeviceAllocationModeExactCount, Count: 1}}}
		c.Devices.SetClaim(claim)
		p, err := c.Pod(shaped(i, withDevices(claim.Name)))
		if err != nil {
			b.Fatal(err)
		}
		slot, f := pl.place(c, p)
		if f != nil {
			b.Fatal(f)
		}
		c.Devices.Promise(claim.UID, plugins.DevicesOn(c, p, slot).Reserve[0].Allocation)
		c.SetPod(p, c.Nodes[slot].Name)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "pods/s")
}
