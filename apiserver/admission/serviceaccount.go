package admission

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/rand"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/authz"
	"github.com/yare-dev/yare/apiserver/rest"
	"github.com/yare-dev/yare/store"
)

const (
	defaultAccount = "default"
	tokenVolume    = "kube-api-access-"
	tokenMount     = "/var/run/secrets/kubernetes.io/serviceaccount"
	// tokenSeconds is an hour and a bit: kubelets and libraries recognise it as the default.
	tokenSeconds int64 = 60*60 + 7
	rootCA             = "kube-root-ca.crt"
	// enforceMountable is the annotation of accounts whose pods may only have the secrets that it names.
	enforceMountable = "kubernetes.io/enforce-mountable-secrets"
	// accountWait is for how long the default account of a new namespace is waited for: its controller makes it as soon as it
	// sees the namespace.
	accountWait = 2 * time.Second
)

// serviceAccount gives each pod its service account: the name, a token for each container, and the account's secrets for
// pulling images.
func serviceAccount(s *store.Store) rest.Admission {
	look := func(ctx context.Context, a *rest.Admitting, pod *corev1.Pod) (*corev1.ServiceAccount, error) {
		name := pod.Spec.ServiceAccountName
		if name == "" {
			return nil, forbidden(a, "no service account specified for pod %s/%s", a.Key.Namespace, pod.Name)
		}
		sa, err := account(ctx, s, api.Key{Namespace: a.Key.Namespace, Name: name})
		if err == nil && sa == nil {
			err = forbidden(a, "error looking up service account %s/%s: serviceaccount %q not found", a.Key.Namespace, name, name)
		}
		return sa, err
	}
	return rest.Admission{
		Name: "ServiceAccount",
		Mutate: func(ctx context.Context, a *rest.Admitting) error {
			pod := newPod(a)
			if pod == nil || isMirror(pod) {
				return nil
			}
			if pod.Spec.ServiceAccountName == "" {
				pod.Spec.ServiceAccountName = defaultAccount
			}
			pod.Spec.DeprecatedServiceAccount = pod.Spec.ServiceAccountName
			sa, err := look(ctx, a, pod)
			if err != nil {
				return err
			}
			if automount(pod, sa) {
				mountToken(&pod.Spec)
			}
			if len(pod.Spec.ImagePullSecrets) == 0 {
				pod.Spec.ImagePullSecrets = append([]corev1.LocalObjectReference(nil), sa.ImagePullSecrets...)
			}
			return nil
		},
		Validate: func(ctx context.Context, a *rest.Admitting) error {
			pod, ok := a.Object.(*corev1.Pod)
			created := newPod(a) != nil
			if !ok || !created && (a.Sub != "ephemeralcontainers" || a.Operation != rest.OpUpdate) {
				return nil
			}
			if created && isMirror(pod) {
				return checkMirror(a, pod)
			}
			sa, err := look(ctx, a, pod)
			if err != nil {
				return err
			}
			return mountable(a, pod, sa, created)
		},
	}
}

func isMirror(p *corev1.Pod) bool {
	_, ok := p.Annotations[corev1.MirrorPodAnnotationKey]
	return ok
}

// checkMirror refuses what a pod from a file, which no API server admitted, cannot have.
func checkMirror(a *rest.Admitting, pod *corev1.Pod) error {
	if pod.Spec.ServiceAccountName != "" {
		return forbidden(a, "a mirror pod may not reference service accounts")
	}
	secret := false
	authz.SecretsOf(pod, func(string) { secret = true })
	if secret {
		return forbidden(a, "a mirror pod may not reference secrets")
	}
	for i := range pod.Spec.Volumes {
		if p := pod.Spec.Volumes[i].Projected; p != nil {
			for _, src := range p.Sources {
				if src.ServiceAccountToken != nil {
					return forbidden(a, "a mirror pod may not use ServiceAccountToken volume projections")
				}
			}
		}
	}
	return nil
}

// mountable holds the pods of an account that has the annotation to the secrets that the account names.
func mountable(a *rest.Admitting, p *corev1.Pod, sa *corev1.ServiceAccount, created bool) error {
	if only, err := strconv.ParseBool(sa.Annotations[enforceMountable]); err != nil || !only {
		return nil
	}
	allowed := map[string]bool{}
	for _, ref := range sa.Secrets {
		allowed[ref.Name] = true
	}
	env := func(what, name string, vars []corev1.EnvVar, from []corev1.EnvFromSource) error {
		for _, v := range vars {
			if f := v.ValueFrom; f != nil && f.SecretKeyRef != nil && !allowed[f.SecretKeyRef.Name] {
				return forbidden(a, "%s %s with envVar %s referencing secret.secretName=\"%s\" is not allowed because service account %s does not reference that secret", what, name, v.Name, f.SecretKeyRef.Name, sa.Name)
			}
		}
		for _, f := range from {
			if f.SecretRef != nil && !allowed[f.SecretRef.Name] {
				return forbidden(a, "%s %s with envFrom referencing secret.secretName=\"%s\" is not allowed because service account %s does not reference that secret", what, name, f.SecretRef.Name, sa.Name)
			}
		}
		return nil
	}
	if !created {
		for i := range p.Spec.EphemeralContainers {
			c := &p.Spec.EphemeralContainers[i]
			if err := env("ephemeral container", c.Name, c.Env, c.EnvFrom); err != nil {
				return err
			}
		}
		return nil
	}
	for i := range p.Spec.Volumes {
		if v := p.Spec.Volumes[i].Secret; v != nil && !allowed[v.SecretName] {
			return forbidden(a, "volume with secret.secretName=\"%s\" is not allowed because service account %s does not reference that secret", v.SecretName, sa.Name)
		}
	}
	for i := range p.Spec.InitContainers {
		c := &p.Spec.InitContainers[i]
		if err := env("init container", c.Name, c.Env, c.EnvFrom); err != nil {
			return err
		}
	}
	for i := range p.Spec.Containers {
		c := &p.Spec.Containers[i]
		if err := env("container", c.Name, c.Env, c.EnvFrom); err != nil {
			return err
		}
	}
	for i, ref := range p.Spec.ImagePullSecrets {
		if !slices.Contains(sa.ImagePullSecrets, ref) {
			return forbidden(a, `imagePullSecrets[%d].name="%s" is not allowed because service account %s does not reference that imagePullSecret`, i, ref.Name, sa.Name)
		}
	}
	return nil
}

// account returns a service account, nil where there is none. A namespace's default account may not have been made
// yet, and is waited for.
func account(ctx context.Context, s *store.Store, key api.Key) (*corev1.ServiceAccount, error) {
	find := func() (*corev1.ServiceAccount, api.Revision) {
		snap := s.Snapshot(api.ServiceAccountKind)
		if e := snap.Get(key); e != nil && e.Err() == nil {
			return e.Object.(*corev1.ServiceAccount), 0
		}
		return nil, snap.Revision()
	}
	if sa, _ := find(); sa != nil {
		return sa, nil
	}
	if err := s.Sync(ctx); err != nil {
		return nil, err
	}
	sa, rev := find()
	if sa != nil || key.Name != defaultAccount {
		return sa, nil
	}
	ctx, cancel := context.WithTimeout(ctx, accountWait)
	defer cancel()
	w, err := s.Watch(api.ServiceAccountKind, rev, 0)
	if err != nil {
		return nil, err
	}
	for sa == nil {
		if _, _, err := w.Next(ctx); err != nil {
			break // in time or not, the answer is that there is none
		}
		sa, _ = find()
	}
	return sa, nil
}

// automount asks the pod, then the account; the answer is yes when neither says.
func automount(pod *corev1.Pod, sa *corev1.ServiceAccount) bool {
	if p := pod.Spec.AutomountServiceAccountToken; p != nil {
		return *p
	}
	if p := sa.AutomountServiceAccountToken; p != nil {
		return *p
	}
	return true
}

// mountToken mounts a token into each container that has nothing at its place.
func mountToken(s *corev1.PodSpec) {
	name, found := "", false
	for i := range s.Volumes {
		if v := &s.Volumes[i]; v.Projected != nil && strings.HasPrefix(v.Name, tokenVolume) {
			name, found = v.Name, true
		}
	}
	if !found {
		name = tokenVolume + rand.String(5)
	}
	needed := false
	for _, cs := range [][]corev1.Container{s.InitContainers, s.Containers} {
		for i := range cs {
			taken := false
			for _, m := range cs[i].VolumeMounts {
				taken = taken || m.MountPath == tokenMount
			}
			if !taken {
				needed = true
				cs[i].VolumeMounts = append(cs[i].VolumeMounts, corev1.VolumeMount{Name: name, ReadOnly: true, MountPath: tokenMount})
			}
		}
	}
	if needed && !found {
		s.Volumes = append(s.Volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{Projected: tokenSource()}})
	}
}

// tokenSource is what a pod needs to talk to the API server: a token, whom to trust, and its namespace.
func tokenSource() *corev1.ProjectedVolumeSource {
	seconds, mode := tokenSeconds, int32(0o644)
	return &corev1.ProjectedVolumeSource{
		DefaultMode: &mode,
		Sources: []corev1.VolumeProjection{
			{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token", ExpirationSeconds: &seconds}},
			{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: corev1.LocalObjectReference{Name: rootCA},
				Items: []corev1.KeyToPath{{Key: "ca.crt", Path: "ca.crt"}}}},
			{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{
				{Path: "namespace", FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: "metadata.namespace"}}}}},
		},
	}
}
