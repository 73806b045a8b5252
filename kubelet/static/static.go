// Package static reads pods from a folder of manifests, so that a node can run pods without an API. It replaces
// upstream's file source; there is no HTTP source.
//
// Each file (.yaml, .yml, .json) holds one v1 Pod. Its UID comes from its content, so a changed file is another pod: the
// old one ends, the new one starts. Files whose names begin with a dot are left alone, so that one can be written aside
// and renamed.
package static

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/yaml"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/kubelet/fsevents"
	"github.com/yare-dev/yare/kubelet/spec"
)

// again is how long a folder that does not exist is waited for before the next look.
const again = 5 * time.Second

// Source watches a folder.
type Source struct {
	dir, node string
	log       *slog.Logger
	last      map[string]*corev1.Pod // of each file
}

// New returns a Source of the node's static pods.
func New(dir, node string, log *slog.Logger) *Source { return &Source{dir: dir, node: node, log: log} }

// Run calls changed with all pods of the folder, at first and whenever they have changed, until ctx ends.
func (s *Source) Run(ctx context.Context, changed func([]*corev1.Pod)) error {
	var last []types.UID
	first := true
	for {
		watch, err := fsevents.Watch(s.dir) // before reading: nothing in between is missed
		pods, unread := s.read()
		if unread != nil {
			s.log.Warn("static pods cannot be read", "dir", s.dir, "err", unread)
			err = cmp.Or(err, unread) // look again later
		}
		var uids []types.UID
		for _, p := range pods {
			uids = append(uids, p.UID)
		}
		if first || unread == nil && !slices.Equal(uids, last) {
			first, last = false, uids
			changed(pods)
		}
		var events <-chan struct{}
		var later <-chan time.Time
		if err == nil {
			events = watch.C
		} else {
			later = time.After(again)
		}
		select {
		case <-ctx.Done():
		case <-events:
		case <-later:
		}
		if watch != nil {
			watch.Close()
		}
		if ctx.Err() != nil {
			return nil
		}
	}
}

// read returns the pods of all files, in order of file names. Of one that cannot be read or understood, as it may be half written, it is the
// last that it held.
func (s *Source) read() (pods []*corev1.Pod, err error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	last := s.last
	s.last = map[string]*corev1.Pod{}
	for _, e := range entries {
		name := e.Name()
		if e.IsDir() || strings.HasPrefix(name, ".") || !slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(name)) {
			continue
		}
		b, err := os.ReadFile(filepath.Join(s.dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		var p *corev1.Pod
		if err == nil {
			p, err = Decode(b, s.node)
		}
		if err != nil {
			if p = last[name]; p == nil {
				s.log.Warn("static pod is left out", "file", name, "err", err)
				continue
			}
			s.log.Warn("static pod stays as it was", "file", name, "err", err)
		}
		s.last[name] = p
		if i := slices.IndexFunc(pods, func(o *corev1.Pod) bool { return o.Namespace == p.Namespace && o.Name == p.Name }); i >= 0 {
			s.log.Warn("static pod is left out: an earlier file has its name", "file", name, "pod", p.Namespace+"/"+p.Name)
			continue
		}
		pods = append(pods, p)
	}
	return pods, nil
}

// Decode returns the static pod that a manifest describes on the node.
func Decode(manifest []byte, node string) (*corev1.Pod, error) {
	j, err := yaml.YAMLToJSON(manifest)
	if err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	p := new(corev1.Pod)
	strict, err := api.DecodeJSON(j, p)
	if err != nil {
		return nil, err
	}
	if len(strict) > 0 {
		return nil, errors.Join(strict...)
	}
	switch {
	case p.Kind != "Pod" || p.APIVersion != "v1":
		return nil, fmt.Errorf("manifest is a %s of %s, not a Pod of v1", p.Kind, p.APIVersion)
	case p.Name == "":
		return nil, errors.New("metadata.name is empty")
	case len(p.Spec.Containers) == 0:
		return nil, errors.New("spec.containers is empty")
	}
	sum := sha256.Sum256(append([]byte(node+"\x00"), j...))
	hash := hex.EncodeToString(sum[:16])
	p.UID = types.UID(hash)
	p.Name += "-" + strings.ToLower(node)
	if p.Namespace == "" {
		p.Namespace = corev1.NamespaceDefault
	}
	if bad := append(validation.IsDNS1123Subdomain(p.Name), validation.IsDNS1123Label(p.Namespace)...); len(bad) > 0 {
		return nil, fmt.Errorf("name %s/%s: %s", p.Namespace, p.Name, bad[0])
	}
	if p.Annotations == nil {
		p.Annotations = map[string]string{}
	}
	p.Annotations[spec.ConfigSourceAnnotation], p.Annotations[spec.ConfigHashAnnotation] = "file", hash
	p.Spec.NodeName = node
	p.Status = corev1.PodStatus{}
	p.Spec.Tolerations = append(p.Spec.Tolerations, corev1.Toleration{Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute})
	return p, complete(p)
}

// complete sets the defaults that the API server would set, and refuses what a pod without an API cannot have.
func complete(p *corev1.Pod) error {
	if p.Spec.RestartPolicy == "" {
		p.Spec.RestartPolicy = corev1.RestartPolicyAlways
	}
	if p.Spec.DNSPolicy == "" {
		p.Spec.DNSPolicy = corev1.DNSClusterFirst
	}
	if p.Spec.TerminationGracePeriodSeconds == nil {
		grace := int64(corev1.DefaultTerminationGracePeriodSeconds)
		p.Spec.TerminationGracePeriodSeconds = &grace
	}
	if p.Spec.SecurityContext == nil {
		p.Spec.SecurityContext = &corev1.PodSecurityContext{}
	}
	if p.Spec.ServiceAccountName != "" {
		return errors.New("spec.serviceAccountName: a static pod has no service account")
	}
	if len(p.Spec.EphemeralContainers) > 0 {
		return errors.New("spec.ephemeralContainers: not in a static pod")
	}
	if len(p.Spec.ResourceClaims) > 0 {
		return errors.New("spec.resourceClaims: a static pod cannot refer to API objects")
	}
	for _, v := range p.Spec.Volumes {
		if v.ConfigMap != nil || v.Secret != nil || v.Projected != nil || v.PersistentVolumeClaim != nil || v.Ephemeral != nil {
			return fmt.Errorf("spec.volumes: volume %s refers to API objects, which a static pod cannot", v.Name)
		}
	}
	for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			c := &list[i]
			if len(validation.IsDNS1123Label(c.Name)) > 0 || c.Image == "" {
				return fmt.Errorf("container %q needs a proper name and an image", c.Name)
			}
			completeContainer(c)
		}
	}
	api.CompleteResources(&p.Spec)
	return nil
}

func completeContainer(c *corev1.Container) {
	if c.ImagePullPolicy == "" {
		c.ImagePullPolicy = corev1.PullIfNotPresent
		name := c.Image[strings.LastIndexByte(c.Image, '/')+1:]
		if !strings.ContainsAny(name, ":@") || strings.HasSuffix(name, ":latest") {
			c.ImagePullPolicy = corev1.PullAlways
		}
	}
	if c.TerminationMessagePath == "" {
		c.TerminationMessagePath = spec.DefaultTerminationMessage
	}
	for i := range c.Ports {
		if c.Ports[i].Protocol == "" {
			c.Ports[i].Protocol = corev1.ProtocolTCP
		}
	}
	for name, q := range c.Resources.Limits {
		if _, ok := c.Resources.Requests[name]; !ok {
			if c.Resources.Requests == nil {
				c.Resources.Requests = corev1.ResourceList{}
			}
			c.Resources.Requests[name] = q
		}
	}
}
