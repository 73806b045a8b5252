package scheduler

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/run"
	"github.com/yare-dev/yare/scheduler/cluster"
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
