package main

import (
	"context"
	"crypto/tls"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"runtime"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	apiversion "k8s.io/apimachinery/pkg/version"

	"github.com/yare-dev/yare/apiserver"
	"github.com/yare-dev/yare/apiserver/admission"
	"github.com/yare-dev/yare/apiserver/admission/match"
	"github.com/yare-dev/yare/apiserver/admission/policy"
	"github.com/yare-dev/yare/apiserver/admission/webhook"
	"github.com/yare-dev/yare/apiserver/aggregator"
	"github.com/yare-dev/yare/apiserver/audit"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/apiserver/builtin"
	"github.com/yare-dev/yare/apiserver/callout"
	"github.com/yare-dev/yare/apiserver/connect"
	"github.com/yare-dev/yare/apiserver/crd"
	"github.com/yare-dev/yare/apiserver/fairness"
	"github.com/yare-dev/yare/apiserver/rest"
	"github.com/yare-dev/yare/apiserver/usage"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/client/events"
	"github.com/yare-dev/yare/controllers"
	"github.com/yare-dev/yare/controllers/nodeipam"
	"github.com/yare-dev/yare/reconcile"
	"github.com/yare-dev/yare/run"
	"github.com/yare-dev/yare/scheduler"
)

// apiServer makes the API server over the store.
func (s *server) apiServer() error {
	l, err := s.listen()
	if err != nil {
		return err
	}
	// Kinds and tokens read and write through the server that is made of them, once it serves.
	self := &lateClient{}
	deps, err := s.apiDeps(self)
	if err != nil {
		l.Close()
		return err
	}
	var logs fs.FS
	if s.config.Debug {
		logs = os.DirFS("/var/log")
	}
	s.api, err = apiserver.New(apiserver.Config{
		Debug: s.config.Debug, Logs: logs,
		Listeners: []net.Listener{l}, TLS: s.pki.ServerTLS(s.pki.Server),
		Version: apiversion.Info{Major: "1", Minor: "37", GitVersion: kubernetesVersion + "+yare", Platform: "linux/" + runtime.GOARCH, GoVersion: runtime.Version(), Compiler: runtime.Compiler},
	}, deps)
	if err != nil {
		l.Close()
		return err
	}
	self.Client = s.admin()
	return nil
}

// seats is how many requests the API server serves at once, as many as upstream's.
const seats = 600

// lateClient is a client that is not there yet when it is handed out.
type lateClient struct{ client.Client }

func (s *server) apiDeps(self client.Client) (apiserver.Deps, error) {
	tokens, err := authn.NewTokens(authn.TokenConfig{Key: s.pki.ServiceAccounts}, self)
	if err != nil {
		return apiserver.Deps{}, err
	}
	documents, err := tokens.Documents()
	if err != nil {
		return apiserver.Deps{}, err
	}
	paths := map[string]http.Handler{}
	for path, d := range documents {
		paths[path] = d
	}
	var open map[string]http.Handler
	if s.record.PodCIDR.IsValid() { // not of `yare apiserver`
		paths[serversPath], open = s.serversHandler(), map[string]http.Handler{joinPath: s.joinHandler()}
	}
	access, err := s.access(tokens, self)
	if err != nil {
		return apiserver.Deps{}, err
	}
	record, err := audit.New(s.config.APIServer.audit(), s.log)
	if err != nil {
		return apiserver.Deps{}, err
	}
	conditions := match.NewMeter(s.metrics)
	s.callout = callout.New(callout.Deps{Store: s.store})
	hooks := webhook.New(webhook.Deps{Conditions: conditions, Store: s.store, Callout: s.callout, Access: access.authorizer, Metrics: s.metrics, Log: s.log})
	policies := policy.New(policy.Deps{Conditions: conditions, Store: s.store, Access: access.authorizer, Metrics: s.metrics,
		Kind: func(gvk schema.GroupVersionKind) (rest.Any, bool) { return s.api.Kind(gvk) }}) // made of the plug-ins
	var configured []rest.Admission
	if file := s.config.APIServer.AdmissionConfig; file != "" {
		if configured, err = admission.Configured(file); err != nil {
			return apiserver.Deps{}, err
		}
	}
	plugins := admission.All(admission.Deps{Store: s.store, Roles: access.rbac, Access: access.authorizer, Configured: configured,
		Dynamic: []rest.Admission{policies.Mutating(), hooks.Mutating(), policies.Validating(), hooks.Validating()}})
	s.aggregator = aggregator.New(aggregator.Deps{
		Store: s.store, Client: self, Log: s.log, Metrics: s.metrics,
		Callout: callout.New(callout.Deps{Store: s.store, Certificate: func() (*tls.Certificate, error) { return s.pki.ProxyClient.Certificate(), nil }}),
	})
	streams := connect.Deps{Store: s.store, Kubelet: s.pki.ClientTLS(s.pki.KubeletClient)}
	return apiserver.Deps{
		Store: s.store, Health: s.health, Log: s.log, Paths: paths, Open: open, Led: s.etcd.Led, Metrics: s.metrics,
		Authenticators: access.authenticators(s.pki.Pool(), tokens.Audiences()),
		Anonymous:      access.anonymous,
		FrontProxy:     s.config.APIServer.RequestHeader,
		Authorizer:     access.authorizer,
		Audit:          record,
		Fairness:       fairness.New(s.store, seats),
		Admission:      plugins,
		Aggregator:     s.aggregator,
		Resources: builtin.All(builtin.Deps{
			Store: s.store, Client: self, Tokens: tokens, Health: s.health, Verifier: access.verifier, Authorizer: access.rbac, Access: access.authorizer,
			CheckTypes: policy.BuiltinTypes().Check,
			Services:   s.record.ServiceCIDRs(), Pods: s.record.PodCIDRs(), Reserved: append(s.record.DNSAddresses(), s.record.APIAddress()),
			NodePorts:  [2]int32{int32(s.record.NodePorts[0]), int32(s.record.NodePorts[1])},
			ServerName: s.serverName(),
			Usage:      usage.New(usage.Deps{Store: s.store, Get: connect.NewKubelet(streams).Get, Log: s.log}),
			PodStreams: connect.Pods(streams), NodeStreams: connect.Nodes(streams), ServiceStreams: connect.Services(streams),
		}),
	}, nil
}

// customResources serves what is defined: before anybody asks, what was defined when the server stopped.
func (s *server) customResources() run.Component {
	return crd.NewServer(crd.Deps{Store: s.store, Serve: s.api.Serve, Remove: s.api.Remove, Client: s.admin(), Hooks: s.callout, Log: s.log})
}

// controllers are the loops of the controller manager, with the events that they record, on the server that leads.
func (s *server) controllers() run.Component {
	metrics := reconcile.NewMetrics(s.metrics)
	return s.watch(run.Func("controllers", s.leading("kube-controller-manager", func() (run.Component, error) {
		c := localAccounts{Reader: s.admin(), manager: s.client("system:kube-controller-manager"), server: s}
		recorder := events.New(c, "controller-manager", s.config.NodeName, s.log)
		all := controllers.All(controllers.Deps{
			Deps:            reconcile.Deps{Client: c, Informers: reconcile.NewInformers(c), Events: recorder, Log: s.log, Metrics: metrics},
			RootCA:          s.pki.CA.PEM(),
			Nodes:           nodeipam.Config{Clusters: s.record.PodCIDRs()},
			SecretToken:     secretTokens(s.pki.ServiceAccounts),
			SignCertificate: s.pki.CA.Sign,
			LocalVolumes:    true,
			LoadBalancer:    s.config.ServiceLoadBalancer.config(s.record.APIPort),
			Aggregated: func(ctx context.Context, gv schema.GroupVersion, path string, query url.Values) ([]byte, bool, error) {
				return s.aggregator.Ask(ctx, authn.ServiceAccount(metav1.NamespaceSystem, "horizontal-pod-autoscaler", ""), gv, path, query)
			},
		})
		return run.Together("controllers", append(all, recorder, s.endpoints())...), nil
	}).Run))
}

// scheduler gives pods their nodes, on the server that leads.
func (s *server) scheduler() run.Component {
	return s.watch(run.Func("scheduler", s.leading("kube-scheduler", func() (run.Component, error) {
		c := s.client("system:kube-scheduler")
		recorder := events.New(c, "default-scheduler", s.config.NodeName, s.log)
		return run.Together("scheduler", scheduler.New(scheduler.Config{Client: c, Events: recorder, Log: s.log, Seed: rand.Uint64()}), recorder), nil
	}).Run))
}
