package pod

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/cri"
	"github.com/yare-dev/yare/kubelet/keyring"
	"github.com/yare-dev/yare/kubelet/spec"
)

// The reasons of a container that waits for its image.
const (
	reasonPull       = "ErrImagePull"
	reasonBackOff    = "ImagePullBackOff"
	reasonNever      = "ErrImageNeverPull"
	reasonInspect    = "ImageInspectError"
	reasonBadName    = "InvalidImageName"
	messageNeverPull = "Container image %q is not present with pull policy of Never"
)

// backOffTold is how often a pod that waits after a failed pull is told of: as often as upstream's kubelet looks at a pod that has
// failed. The Event counts.
const backOffTold = 10 * time.Second

// need is an image that a container needs.
type need struct {
	reference string
	use       string // what it is wanted for: with policy Always, each use pulls once
	policy    corev1.PullPolicy
	path      string // what Events about it are about: the container, or for an image volume the pod
}

// key names the need's job.
func (n need) key() string { return "pull " + n.reference + " " + n.use }

// needs returns the container's image and those of its image volumes.
func needs(pod *corev1.Pod, s Start) []need {
	c, use := s.Container, s.Container.Name+"#"+strconv.Itoa(int(s.Attempt))
	all := []need{{c.Image, use, c.ImagePullPolicy, spec.Path(pod, c.Name)}}
	for _, m := range c.VolumeMounts {
		for i := range pod.Spec.Volumes {
			if v := &pod.Spec.Volumes[i]; v.Name == m.Name && v.Image != nil {
				all = append(all, need{v.Image.Reference, use + "/" + v.Name, v.Image.PullPolicy, ""})
			}
		}
	}
	return all
}

// image makes sure that the image is there by its policy. It returns the image, or why it is not there; neither while it is being
// pulled.
func (w *worker) image(ctx context.Context, pod *corev1.Pod, n need) (*runtimeapi.Image, *Condition) {
	reference, key := n.reference, n.key()
	present, err := w.imageStatus(ctx, reference)
	if err != nil {
		why := &Condition{reasonInspect, fmt.Sprintf("Failed to inspect image %q: %s", reference, message(err))}
		if cri.Code(err) == codes.InvalidArgument {
			why = &Condition{reasonBadName, fmt.Sprintf("Failed to apply default image tag %q: %s", reference, message(err))}
		}
		w.sayAt(pod, n.path, corev1.EventTypeWarning, "InspectFailed", "%s", why.Message)
		return nil, why
	}
	exists, done, err := w.jobs.state(key)
	switch {
	case exists && !done:
		return nil, nil // it goes on waiting for what it waited for
	case exists && err == nil && present != nil:
		return present, nil
	case exists:
		return nil, w.pullFailed(pod, n, err)
	}
	switch n.policy {
	case corev1.PullNever:
		if present == nil {
			w.sayAt(pod, n.path, corev1.EventTypeWarning, reasonNever, messageNeverPull, reference)
			return nil, &Condition{reasonNever, fmt.Sprintf(messageNeverPull, reference)}
		}
		fallthrough
	case corev1.PullIfNotPresent:
		if present != nil {
			return present, nil
		}
	}
	if until := w.pulls.until(reference); w.now().Before(until) {
		last := w.pullErrors[reference]
		again := w.backedOff[key].Add(backOffTold)
		if !w.now().Before(again) {
			w.backedOff[key], again = w.now(), w.now().Add(backOffTold)
			w.sayAt(pod, n.path, corev1.EventTypeNormal, "BackOff", "Back-off pulling image %q", reference)
			w.sayAt(pod, n.path, corev1.EventTypeWarning, "Failed", "Error: %s", reasonBackOff)
		}
		w.at(until)
		w.at(again)
		return nil, &Condition{reasonBackOff, fmt.Sprintf("Back-off pulling image %q: %s", reference, last)}
	}
	w.sayAt(pod, n.path, corev1.EventTypeNormal, "Pulling", "Pulling image %q", reference)
	w.jobs.do(ctx, key, func(ctx context.Context) error { return w.pull(ctx, pod, n) })
	return nil, nil
}

func (w *worker) pullFailed(pod *corev1.Pod, n need, err error) *Condition {
	reference, key := n.reference, n.key()
	w.jobs.forget(key)
	delete(w.backedOff, key)
	if err == nil {
		err = errors.New("the image is gone again")
	}
	w.pullErrors[reference] = reasonPull + ": " + message(err)
	w.at(w.pulls.grow(reference, w.now()))
	w.sayAt(pod, n.path, corev1.EventTypeWarning, "Failed", "Failed to pull image %q: %s", reference, message(err))
	w.sayAt(pod, n.path, corev1.EventTypeWarning, "Failed", "Error: %s", reasonPull)
	return &Condition{reasonPull, fmt.Sprintf("failed to pull image %q: %s", reference, message(err))}
}

// imageStatus returns the image, nil where it is absent.
func (w *worker) imageStatus(ctx context.Context, reference string) (*runtimeapi.Image, error) {
	got, err := w.cri.Images.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: reference}})
	if cri.Code(err) == codes.NotFound {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return got.Image, nil
}

// pull pulls with each fitting credential of the pod's pull secrets and the node's keyring, or without.
func (w *worker) pull(ctx context.Context, pod *corev1.Pod, n need) error {
	select {
	case w.pullSlots <- struct{}{}:
		defer func() { <-w.pullSlots }()
	case <-ctx.Done():
		return ctx.Err()
	}
	var secrets []*corev1.Secret
	for _, ref := range pod.Spec.ImagePullSecrets {
		s, err := w.source(ctx, pod).Secret(ref.Name)
		if err != nil {
			w.say(pod, corev1.EventTypeWarning, "FailedToRetrieveImagePullSecret",
				"Unable to retrieve some image pull secrets (%s); attempting to pull the image may not succeed.", ref.Name)
			continue
		}
		secrets = append(secrets, s)
	}
	auths, keyErr := w.Keyring.ForImage(ctx, n.reference, secrets, w.account(pod))
	if keyErr != nil {
		w.log.Warn("credentials are missing", "image", n.reference, "err", keyErr)
	}
	if len(auths) == 0 {
		auths = append(auths, nil)
	}
	began := w.now()
	var last error
	for _, auth := range auths {
		_, last = w.cri.Images.PullImage(ctx, &runtimeapi.PullImageRequest{
			Image: &runtimeapi.ImageSpec{Image: n.reference}, Auth: auth,
			SandboxConfig: &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{
				Name: pod.Name, Namespace: pod.Namespace, Uid: string(pod.UID)}},
		})
		if last == nil {
			w.sayAt(pod, n.path, corev1.EventTypeNormal, "Pulled", "Successfully pulled image %q in %v", n.reference, w.now().Sub(began).Round(time.Millisecond))
			return nil
		}
	}
	if keyErr != nil {
		return fmt.Errorf("%s (%w)", message(last), keyErr)
	}
	return last
}

// account is the pod's service account, for who gives credentials to it.
func (w *worker) account(pod *corev1.Pod) *keyring.Account {
	return &keyring.Account{
		Namespace: pod.Namespace, Name: pod.Spec.ServiceAccountName,
		Read: func(ctx context.Context) (string, map[string]string, error) {
			sa, err := client.Get[*corev1.ServiceAccount](ctx, w.Client, api.Key{Namespace: pod.Namespace, Name: pod.Spec.ServiceAccountName})
			if err != nil {
				return "", nil, err
			}
			return string(sa.UID), sa.Annotations, nil
		},
		Token: func(ctx context.Context, audience string) (string, error) {
			seconds := int64(3600)
			status, _, err := w.tokens.get(ctx, pod, authenticationv1.TokenRequestSpec{
				Audiences: []string{audience}, ExpirationSeconds: &seconds,
				BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID},
			})
			return status.Token, err
		},
	}
}

// message returns an error's text without gRPC's frame.
func message(err error) string {
	if s, ok := status.FromError(err); ok {
		return s.Message()
	}
	return err.Error()
}
