package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"

	"sigs.k8s.io/yaml"

	"github.com/yare-dev/yare/cmd/cluster"
	"github.com/yare-dev/yare/linux/durable"
)

// sharedSettings are those that all servers of a cluster have: they write to one database, and who leads does so by them. A server that has joined keeps those
// that the cluster had then, beside its own: no file of settings that it is given later can drop them.
type sharedSettings struct {
	APINames            []string           `json:"apiNames,omitempty"`
	APIServer           APIServerConfig    `json:"apiServer,omitzero"`
	ServiceLoadBalancer LoadBalancerConfig `json:"serviceLoadBalancer,omitzero"`
}

func sharedFile(r *cluster.Record) string { return filepath.Join(r.DataDir, "cluster.yaml") }

// keep writes them down for a new server, with the files that they name.
func (c sharedSettings) keep(r *cluster.Record, files map[string][]byte) error {
	dir := filepath.Join(r.DataDir, "settings")
	if len(files) > 0 {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	if err := c.APIServer.write(dir, files); err != nil {
		return err
	}
	text, err := yaml.Marshal(c)
	if err != nil {
		return err
	}
	return durable.Write(sharedFile(r), text, 0o600)
}

// share gives s, on a server that has joined, what that keeps of the cluster's settings. Where s says something else of these, it is refused.
func (s *settings) share(r *cluster.Record) error {
	if !r.Joined {
		return nil
	}
	text, err := os.ReadFile(sharedFile(r))
	if err != nil {
		return fmt.Errorf("settings that the cluster had when this server joined: %w", err)
	}
	var c sharedSettings
	if err := yaml.UnmarshalStrict(text, &c); err != nil {
		return fmt.Errorf("%s: %w", sharedFile(r), err)
	}
	var errs []error
	for _, f := range []struct {
		field     string
		own, have any
	}{{"apiNames", s.APINames, c.APINames}, {"apiServer", s.APIServer, c.APIServer}, {"serviceLoadBalancer", s.ServiceLoadBalancer, c.ServiceLoadBalancer}} {
		if _, given := s.given[f.field]; given && !reflect.DeepEqual(f.own, f.have) {
			errs = append(errs, fmt.Errorf("settings in %s: %s: a server that has joined has the cluster's, which %s says; leave it out", s.file, f.field, sharedFile(r)))
		}
	}
	if len(s.EtcdEndpoints) > 0 {
		errs = append(errs, fmt.Errorf("settings in %s: etcdEndpoints: a server that has joined has the cluster's database; leave it out", s.file))
	}
	s.APINames, s.APIServer, s.ServiceLoadBalancer = c.APINames, c.APIServer, c.ServiceLoadBalancer
	if err := errors.Join(s.checkPaths(), s.validate()); err != nil {
		errs = append(errs, fmt.Errorf("%s: %w", sharedFile(r), err))
	}
	return errors.Join(errs...)
}
