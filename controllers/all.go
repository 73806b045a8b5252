// Package controllers is the list of controllers that make a cluster out of an API server. It replaces
// kube-controller-manager. Each controller is a folder below; none knows another.
package controllers

import (
	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/controllers/attachdetach"
	"github.com/yare-dev/yare/controllers/certificates"
	"github.com/yare-dev/yare/controllers/clusterroleaggregation"
	"github.com/yare-dev/yare/controllers/cronjob"
	"github.com/yare-dev/yare/controllers/daemonset"
	"github.com/yare-dev/yare/controllers/deployment"
	"github.com/yare-dev/yare/controllers/devicetainteviction"
	"github.com/yare-dev/yare/controllers/disruption"
	"github.com/yare-dev/yare/controllers/endpoints"
	"github.com/yare-dev/yare/controllers/endpointslice"
	"github.com/yare-dev/yare/controllers/endpointslicemirroring"
	"github.com/yare-dev/yare/controllers/ephemeralvolume"
	"github.com/yare-dev/yare/controllers/garbagecollector"
	"github.com/yare-dev/yare/controllers/horizontalpodautoscaler"
	"github.com/yare-dev/yare/controllers/job"
	"github.com/yare-dev/yare/controllers/localvolume"
	"github.com/yare-dev/yare/controllers/namespace"
	"github.com/yare-dev/yare/controllers/nodeipam"
	"github.com/yare-dev/yare/controllers/nodelifecycle"
	"github.com/yare-dev/yare/controllers/podcertcleaner"
	"github.com/yare-dev/yare/controllers/podgc"
	"github.com/yare-dev/yare/controllers/pvcprotection"
	"github.com/yare-dev/yare/controllers/pvprotection"
	"github.com/yare-dev/yare/controllers/replicaset"
	"github.com/yare-dev/yare/controllers/resourceclaim"
	"github.com/yare-dev/yare/controllers/resourcequota"
	"github.com/yare-dev/yare/controllers/rootca"
	"github.com/yare-dev/yare/controllers/serviceaccount"
	"github.com/yare-dev/yare/controllers/serviceaccounttoken"
	"github.com/yare-dev/yare/controllers/servicecidrs"
	"github.com/yare-dev/yare/controllers/servicelb"
	"github.com/yare-dev/yare/controllers/servingtrust"
	"github.com/yare-dev/yare/controllers/statefulset"
	"github.com/yare-dev/yare/controllers/tainteviction"
	"github.com/yare-dev/yare/controllers/ttlafterfinished"
	"github.com/yare-dev/yare/controllers/vacprotection"
	"github.com/yare-dev/yare/controllers/volumebinder"
	"github.com/yare-dev/yare/controllers/volumeexpander"
	"github.com/yare-dev/yare/reconcile"
	"github.com/yare-dev/yare/run"
)

// Deps is what the controllers need. The Informers must not run yet: All runs them. Events, when given, are run
// by the caller.
type Deps struct {
	reconcile.Deps
	RootCA []byte          // what pods verify the API server with, PEM
	Nodes  nodeipam.Config // without Clusters no Node is given pod addresses
	// SecretToken makes the tokens that Secrets keep. Nil: such Secrets stay empty.
	SecretToken serviceaccounttoken.Sign
	// SignCertificate signs approved requests. Nil: none are.
	SignCertificate certificates.Sign
	// LocalVolumes: nodes have the built-in local storage (csi/localdriver).
	LocalVolumes bool
	// LoadBalancer says which Services get nodes' addresses. Nil: none do.
	LoadBalancer *servicelb.Config
	// Aggregated reaches the custom and external metrics that other API servers serve. Nil: there are none.
	Aggregated horizontalpodautoscaler.Aggregated
}

// All returns the controllers and the informers that they share, which come first.
func All(d Deps) []run.Component {
	list := List(d)
	out := make([]run.Component, 0, len(list)+1)
	out = append(out, d.Informers)
	for _, c := range list {
		out = append(out, c)
	}
	return out
}

// List returns the controllers in upstream's order. It subscribes them to d.Informers.
func List(d Deps) []*reconcile.Controller {
	var list []*reconcile.Controller
	if d.SecretToken != nil {
		list = append(list, serviceaccounttoken.New(d.Deps, d.RootCA, d.SecretToken))
	}
	list = append(list,
		endpoints.New(d.Deps),
		endpointslice.New(d.Deps),
		endpointslicemirroring.New(d.Deps),
		replicaset.NewReplicationController(d.Deps),
		podgc.New(d.Deps, podgc.Threshold),
		resourcequota.New(d.Deps, api.Stored()),
		namespace.New(d.Deps, api.Stored()),
		serviceaccount.New(d.Deps),
		garbagecollector.New(d.Deps, api.Stored()),
		daemonset.New(d.Deps),
		job.New(d.Deps),
		deployment.New(d.Deps),
		replicaset.New(d.Deps),
		horizontalpodautoscaler.New(d.Deps, d.Aggregated),
		disruption.New(d.Deps),
		statefulset.New(d.Deps),
		cronjob.New(d.Deps),
	)
	if d.SignCertificate != nil {
		list = append(list, certificates.NewSigning(d.Deps, d.SignCertificate))
	}
	list = append(list,
		certificates.NewApproving(d.Deps),
		certificates.NewCleaner(d.Deps),
		podcertcleaner.New(d.Deps),
	)
	if len(d.Nodes.Clusters) > 0 {
		list = append(list, nodeipam.New(d.Deps, d.Nodes))
	}
	list = append(list,
		nodelifecycle.New(d.Deps),
		tainteviction.New(d.Deps),
		volumebinder.New(d.Deps),
		attachdetach.New(d.Deps),
		volumeexpander.New(d.Deps),
		clusterroleaggregation.New(d.Deps),
		pvcprotection.New(d.Deps),
		pvprotection.New(d.Deps),
		vacprotection.New(d.Deps),
		servicecidrs.New(d.Deps),
		ttlafterfinished.New(d.Deps),
		rootca.New(d.Deps, d.RootCA),
	)
	if len(d.RootCA) > 0 {
		list = append(list, servingtrust.New(d.Deps, d.RootCA))
	}
	if d.LocalVolumes {
		list = append(list, localvolume.New(d.Deps))
	}
	if d.LoadBalancer != nil {
		list = append(list, servicelb.New(d.Deps, *d.LoadBalancer))
	}
	return append(list, ephemeralvolume.New(d.Deps), resourceclaim.New(d.Deps), devicetainteviction.New(d.Deps))
}
