package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
	authenticationv1 "k8s.io/api/authentication/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/yare-dev/yare/kubelet/field"
	"github.com/yare-dev/yare/kubelet/spec"
)

// Source is where files come from. Errors are API errors.
type Source interface {
	spec.Objects
	Storage
	// Token returns a token of the pod's service account and when it should be replaced.
	Token(ctx context.Context, pod *corev1.Pod, req authenticationv1.TokenRequestSpec) (token authenticationv1.TokenRequestStatus, renew time.Time, err error)
	// Bundle returns the ClusterTrustBundle of that name.
	Bundle(name string) (*certificatesv1.ClusterTrustBundle, error)
	// Bundles returns the signer's ClusterTrustBundles that the selector matches.
	Bundles(signer string, labels labels.Selector) ([]*certificatesv1.ClusterTrustBundle, error)
	// Certificate returns the certificate for the source of that index in the volume, and when to ask again.
	Certificate(ctx context.Context, pod *corev1.Pod, volume string, index int) (*Certificate, time.Time, error)
}

// contents collects the files of one volume. renew is when the first of them should be made anew; zero: never.
type contents struct {
	files map[string]File
	renew time.Time
}

func (c *contents) add(path string, data []byte, mode, fallback *int32, uid *int64) {
	m := int32(0o644)
	switch {
	case mode != nil:
		m = *mode
	case fallback != nil:
		m = *fallback
	}
	c.files[path] = File{Data: data, Mode: fs.FileMode(m), UID: uid}
}

// collect returns the files of a configMap, secret, downwardAPI or projected volume.
func collect(ctx context.Context, pod *corev1.Pod, v *corev1.Volume, src Source, rt field.Runtime) (*contents, error) {
	c := &contents{files: map[string]File{}}
	switch {
	case v.ConfigMap != nil:
		s := v.ConfigMap
		return c, c.configMap(s.Name, s.Items, s.DefaultMode, s.DefaultUser, s.Optional, src)
	case v.Secret != nil:
		s := v.Secret
		return c, c.secret(s.SecretName, s.Items, s.DefaultMode, s.DefaultUser, s.Optional, src)
	case v.DownwardAPI != nil:
		return c, c.downward(pod, v.DownwardAPI.Items, v.DownwardAPI.DefaultMode, v.DownwardAPI.DefaultUser, rt)
	case v.Projected != nil:
		for i := range v.Projected.Sources {
			if err := c.projection(ctx, pod, v, i, src, rt); err != nil {
				return nil, err
			}
		}
	}
	return c, nil
}

// projection adds the files of the volume's source of that index.
func (c *contents) projection(ctx context.Context, pod *corev1.Pod, v *corev1.Volume, index int, src Source, rt field.Runtime) error {
	p, mode, user := &v.Projected.Sources[index], v.Projected.DefaultMode, v.Projected.DefaultUser
	switch {
	case p.ConfigMap != nil:
		return c.configMap(p.ConfigMap.Name, p.ConfigMap.Items, mode, user, p.ConfigMap.Optional, src)
	case p.Secret != nil:
		return c.secret(p.Secret.Name, p.Secret.Items, mode, user, p.Secret.Optional, src)
	case p.DownwardAPI != nil:
		return c.downward(pod, p.DownwardAPI.Items, mode, user, rt)
	case p.ServiceAccountToken != nil:
		return c.token(ctx, pod, p.ServiceAccountToken, mode, user, src)
	case p.ClusterTrustBundle != nil:
		return c.bundle(pod, p.ClusterTrustBundle, mode, user, src)
	case p.PodCertificate != nil:
		got, renew, err := src.Certificate(ctx, pod, v.Name, index)
		if err != nil {
			return err
		}
		c.until(renew)
		c.certificate(pod, p.PodCertificate, mode, user, got)
	}
	return nil
}

func absent(err error, optional *bool) error {
	if apierrors.IsNotFound(err) && optional != nil && *optional {
		return nil
	}
	return err
}

func (c *contents) configMap(name string, items []corev1.KeyToPath, mode *int32, user *int64, optional *bool, src Source) error {
	cm, err := src.ConfigMap(name)
	if err != nil {
		return absent(err, optional)
	}
	data := make(map[string][]byte, len(cm.Data)+len(cm.BinaryData))
	for k, v := range cm.Data {
		data[k] = []byte(v)
	}
	for k, v := range cm.BinaryData {
		data[k] = v
	}
	return c.items(data, items, mode, user, optional, "configmap "+name)
}

func (c *contents) secret(name string, items []corev1.KeyToPath, mode *int32, user *int64, optional *bool, src Source) error {
	s, err := src.Secret(name)
	if err != nil {
		return absent(err, optional)
	}
	return c.items(s.Data, items, mode, user, optional, "secret "+name)
}

// items adds the chosen keys, or all where none is chosen.
func (c *contents) items(data map[string][]byte, items []corev1.KeyToPath, mode *int32, user *int64, optional *bool, what string) error {
	if len(items) == 0 {
		for k, v := range data {
			c.add(k, v, nil, mode, user)
		}
		return nil
	}
	for _, item := range items {
		v, ok := data[item.Key]
		if !ok {
			if optional != nil && *optional {
				continue
			}
			return fmt.Errorf("%s: references non-existent key: %s", what, item.Key)
		}
		owner := user
		if item.User != nil {
			owner = item.User
		}
		c.add(item.Path, v, item.Mode, mode, owner)
	}
	return nil
}

func (c *contents) downward(pod *corev1.Pod, items []corev1.DownwardAPIVolumeFile, mode *int32, user *int64, rt field.Runtime) error {
	for _, item := range items {
		var text string
		var err error
		switch {
		case item.FieldRef != nil:
			text, err = field.Value(pod, item.FieldRef.FieldPath, rt)
		case item.ResourceFieldRef != nil:
			text, err = field.Resource(pod, item.ResourceFieldRef.ContainerName, item.ResourceFieldRef, rt)
		}
		if err != nil {
			return err
		}
		owner := user
		if item.User != nil {
			owner = item.User
		}
		c.add(item.Path, []byte(text), item.Mode, mode, owner)
	}
	return nil
}

func (c *contents) token(ctx context.Context, pod *corev1.Pod, p *corev1.ServiceAccountTokenProjection, mode *int32, user *int64, src Source) error {
	seconds := int64(3600)
	if p.ExpirationSeconds != nil {
		seconds = *p.ExpirationSeconds
	}
	req := authenticationv1.TokenRequestSpec{
		ExpirationSeconds: &seconds,
		BoundObjectRef:    &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID},
	}
	if p.Audience != "" {
		req.Audiences = []string{p.Audience}
	}
	token, renew, err := src.Token(ctx, pod, req)
	if err != nil {
		return fmt.Errorf("request token of service account %s/%s: %w", pod.Namespace, pod.Spec.ServiceAccountName, err)
	}
	c.until(renew)
	c.addOwn(pod, p.Path, []byte(token.Token), mode, p.User, user)
	return nil
}

// until notes that something should be made anew at a time; zero: never.
func (c *contents) until(renew time.Time) {
	if !renew.IsZero() && (c.renew.IsZero() || renew.Before(c.renew)) {
		c.renew = renew
	}
}

// addOwn adds what is for the pod's own user alone, where one is told or all containers have the same, or for the pod's group.
func (c *contents) addOwn(pod *corev1.Pod, path string, data []byte, mode *int32, user, fallback *int64) {
	if user == nil {
		user = fallback
	}
	if user == nil {
		user = commonUser(pod)
	}
	if user != nil || fsGroup(pod) != nil {
		private := int32(0o600)
		mode = &private
	}
	c.add(path, data, nil, mode, user)
}

// commonUser returns the user that all containers are told to run as, nil if they differ or one is not told.
func commonUser(pod *corev1.Pod) (common *int64) {
	agree := true
	spec.Each(pod, func(c *corev1.Container, k spec.Kind) {
		if k == spec.Ephemeral {
			return
		}
		uid, _, _ := spec.EffectiveUser(pod, c)
		if uid == nil || common != nil && *common != *uid {
			agree = false
		}
		common = uid
	})
	if !agree {
		return nil
	}
	return common
}

func fsGroup(pod *corev1.Pod) *int64 {
	if pod.Spec.SecurityContext == nil {
		return nil
	}
	return pod.Spec.SecurityContext.FSGroup
}

// ReadFile returns a small file of one of the pod's volumes, never following a link out of it.
func (v *Volumes) ReadFile(pod *corev1.Pod, volume, path string) ([]byte, error) {
	for i := range pod.Spec.Volumes {
		vol := &pod.Spec.Volumes[i]
		if vol.Name != volume {
			continue
		}
		dir, err := v.path(pod, vol)
		if err != nil {
			return nil, err
		}
		root, err := os.OpenRoot(dir)
		if err != nil {
			return nil, err
		}
		defer root.Close()
		f, err := root.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // a pipe that nobody writes to is not waited for
		if err != nil {
			return nil, err
		}
		defer f.Close()
		if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
			return nil, errors.Join(err, fmt.Errorf("%s is not a regular file", path))
		}
		return io.ReadAll(io.LimitReader(f, maxEnvFile))
	}
	return nil, fmt.Errorf("no volume %q", volume)
}

// maxEnvFile is the most that is read of a file.
const maxEnvFile = 64 << 10
