package criserver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/image"
	"github.com/yare-dev/yare/linux"
	"github.com/yare-dev/yare/linux/selinux"
	"github.com/yare-dev/yare/oci"
	"github.com/yare-dev/yare/oci/shim"
)

// CreateContainer makes a container in a ready sandbox and leaves it waiting
// for its start. When it fails nothing is left.
func (s *Server) CreateContainer(ctx context.Context, r *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	config := r.GetConfig()
	if config.GetMetadata().GetName() == "" {
		return nil, status.Error(codes.InvalidArgument, "create container: a name is required")
	}
	sb, err := s.findSandbox(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	id, name := newID(), containerName(sb.id, config.Metadata)
	if err := s.reserve(name, id); err != nil {
		return nil, err
	}
	c, err := s.createContainer(ctx, sb, id, config)
	if err != nil {
		s.release(name)
		return nil, err
	}
	s.emit(sb, c.id, runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT)
	return &runtimeapi.CreateContainerResponse{ContainerId: c.id}, nil
}

func (s *Server) createContainer(ctx context.Context, sb *sandbox, id string, config *runtimeapi.ContainerConfig) (*container, error) {
	img, err := s.images.Get(ctx, imageOf(config))
	if err != nil {
		return nil, imageError(err)
	}
	sandbox := sb.record()
	c := s.newContainer(sb, containerRecord{
		ID: id, Sandbox: sb.id, Created: now(),
		Metadata: config.Metadata, Image: config.Image, ImageID: img.ID, ImageRef: imageRef(img),
		Labels: config.Labels, Annotations: config.Annotations, Mounts: config.Mounts,
		LogPath:    logPath(sandbox.Config, config),
		StopSignal: stopSignal(config, img),
		SharesPID:  config.GetLinux().GetSecurityContext().GetNamespaceOptions().GetPid() != runtimeapi.NamespaceMode_CONTAINER,
		Resources:  &runtimeapi.ContainerResources{Linux: config.GetLinux().GetResources()},
		Cgroup:     path.Join(s.cgroupParent(sandbox.Config), id),
	})
	sb.op.RLock()
	defer sb.op.RUnlock()
	if rec := sb.record(); rec.state() != runtimeapi.PodSandboxState_SANDBOX_READY {
		return nil, status.Error(codes.FailedPrecondition, "the sandbox is not ready")
	}
	h, err := s.handlerOf(sandbox.Handler)
	if err == nil {
		err = h.takes(sandbox.Handler, config)
	}
	if err != nil {
		return nil, err
	}
	if err := s.buildContainer(ctx, c, config, sandbox.Config, img, h); err != nil {
		return nil, with(err, s.eraseContainer(context.WithoutCancel(ctx), c))
	}
	s.addContainer(c)
	return c, nil
}

// buildContainer does the work; the record is on disk first.
func (s *Server) buildContainer(ctx context.Context, c *container, config *runtimeapi.ContainerConfig, sandbox *runtimeapi.PodSandboxConfig, img *image.Image, h *handler) error {
	if err := os.Mkdir(s.containerDir(c.id), 0o700); err != nil {
		return err
	}
	for i, m := range config.GetMounts() {
		if m.Image.GetImage() != "" {
			c.rec.Volumes = append(c.rec.Volumes, fmt.Sprintf("%s-volume%d", c.id, i))
		}
	}
	if err := writeRecord(c.file, c.rec); err != nil {
		return err
	}
	rec := c.sandbox.record()
	labels, err := s.ofContainer(&rec, config.GetLinux().GetSecurityContext())
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	rootfs, err := s.mountImage(ctx, c.sandbox, img.ID, c.id, labels, false)
	if err != nil {
		return imageError(err)
	}
	spec, err := s.specOf(ctx, c, config, sandbox, img, rootfs, labels)
	if err != nil {
		return err
	}
	if c.rec.LogPath != "" {
		if err := os.MkdirAll(filepath.Dir(c.rec.LogPath), 0o755); err != nil {
			return fmt.Errorf("make log directory: %w", err)
		}
	}
	request := shim.CreateRequest{
		ID: c.id, Bundle: s.containerDir(c.id), Spec: spec, LogPath: c.rec.LogPath,
		Stdin: config.Stdin, StdinOnce: config.StdinOnce,
	}
	if h != nil {
		request.Runtime = h.runtime
		if o := ownUsers(sandbox); o != nil { // others want to be told what they join
			spec.Linux.UIDMappings, spec.Linux.GIDMappings = idMappings(o.Uids), idMappings(o.Gids)
		}
	}
	client, err := c.sandbox.client()
	if err != nil {
		return shimError(err)
	}
	pid, err := client.Create(ctx, request)
	if err == nil {
		err = s.targetLives(config.GetLinux().GetSecurityContext().GetNamespaceOptions())
	}
	if err != nil {
		return err
	}
	process := *spec.Process
	process.Args = nil
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pid = pid
	return c.change(func(r *containerRecord) {
		r.Process, r.Complete = &process, true
		r.User = statusUser(process.User)
	})
}

func statusUser(u specs.User) *runtimeapi.LinuxContainerUser {
	out := &runtimeapi.LinuxContainerUser{Uid: int64(u.UID), Gid: int64(u.GID)}
	// The kernel's list holds the primary group too.
	out.SupplementalGroups = append(out.SupplementalGroups, int64(u.GID))
	for _, g := range u.AdditionalGids {
		out.SupplementalGroups = append(out.SupplementalGroups, int64(g))
	}
	return out
}

// specOf gathers what containerSpec looks at.
func (s *Server) specOf(ctx context.Context, c *container, config *runtimeapi.ContainerConfig, sandbox *runtimeapi.PodSandboxConfig, img *image.Image, rootfs string, labels label) (*specs.Spec, error) {
	sc := config.GetLinux().GetSecurityContext()
	in := specInput{Sandbox: sandbox, Container: config, Image: img.Config.Config, Facts: s.facts, Labels: labels}
	var err error
	if in.User, err = resolveUser(sc, img.Config.Config.User, rootfsAccounts(rootfs)); err != nil {
		return nil, err
	}
	if in.Devices, err = hostDevices(config); err != nil {
		return nil, err
	}
	if in.Profile, err = localProfile(sc); err != nil {
		return nil, err
	}
	if in.AppArmor, err = s.profiles.of(ctx, sc); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if in.Mounts, err = s.resolveMounts(ctx, c, config.GetMounts(), labels); err != nil {
		return nil, err
	}
	dir := s.sandboxDir(c.sandbox.id)
	in.Paths = paths{
		Rootfs: rootfs, Cgroup: c.rec.Cgroup,
		Hosts: filepath.Join(dir, "hosts"), Hostname: filepath.Join(dir, "hostname"), ResolvConf: filepath.Join(dir, "resolv.conf"),
		Shm: filepath.Join(dir, "shm"),
	}
	if ownUsers(sandbox) != nil {
		in.Paths.Users = oci.HeldNamespace(s.usersDir(c.sandbox.id), specs.UserNamespace)
	}
	if namespaceOptions(sandbox).GetIpc() == runtimeapi.NamespaceMode_NODE {
		in.Paths.Shm = "/dev/shm"
	}
	if in.Paths.PID, err = s.pidNamespace(c.sandbox, sc.GetNamespaceOptions()); err != nil {
		return nil, err
	}
	spec, err := containerSpec(in)
	if err == nil {
		err = injectCDI(spec, config.GetCDIDevices(), s.cfg.CDI)
	}
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	return spec, nil
}

// pidNamespace is a path, hostNamespace, or empty for a namespace of its own.
func (s *Server) pidNamespace(sb *sandbox, o *runtimeapi.NamespaceOption) (string, error) {
	switch o.GetPid() {
	case runtimeapi.NamespaceMode_NODE:
		return hostNamespace, nil
	case runtimeapi.NamespaceMode_CONTAINER:
		return "", nil
	case runtimeapi.NamespaceMode_POD:
		client, err := sb.client()
		if err != nil {
			return "", shimError(err)
		}
		if p := client.Namespace(specs.PIDNamespace); p != "" {
			return p, nil
		}
		return "", status.Error(codes.FailedPrecondition, "the sandbox has no PID namespace to share")
	}
	target, err := s.findContainer(o.GetTargetId())
	if err != nil {
		return "", err
	}
	if target.sandbox != sb {
		return "", status.Errorf(codes.InvalidArgument, "target container %s is in another sandbox", target.id)
	}
	pid, err := s.pidOf(target)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("/proc/%d/ns/pid", pid), nil
}

// targetLives makes sure, after the namespace of a target container's process was joined, that it was its: the process may have ended before, and its
// number be another's, but nobody else's is in the container's cgroup.
func (s *Server) targetLives(o *runtimeapi.NamespaceOption) error {
	if o.GetPid() != runtimeapi.NamespaceMode_TARGET {
		return nil
	}
	target, err := s.findContainer(o.GetTargetId())
	if err != nil {
		return err
	}
	pid, err := s.pidOf(target)
	if err != nil {
		return err
	}
	group, err := target.cgroup()
	if err != nil {
		return err
	}
	pids, err := group.Pids()
	if err == nil && !slices.Contains(pids, pid) {
		err = status.Error(codes.FailedPrecondition, "the target container has ended")
	}
	return err
}

// resolveMounts follows links on the host, mounts images and gives the container's SELinux context to what is to have it.
func (s *Server) resolveMounts(ctx context.Context, c *container, mounts []*runtimeapi.Mount, labels label) ([]hostMount, error) {
	var all []hostMount
	for i, m := range mounts {
		var source string
		var err error
		if m.Image.GetImage() != "" {
			source, err = s.mountVolume(ctx, c.sandbox, fmt.Sprintf("%s-volume%d", c.id, i), m, labels)
		} else {
			source, err = hostSource(m.HostPath)
			if err == nil && m.SelinuxRelabel && labels.File != "" {
				err = selinux.Relabel(ctx, source, labels.FileContext)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("mount %s: %w", m.ContainerPath, err)
		}
		all = append(all, hostMount{Mount: m, Source: source})
	}
	return all, nil
}

// hostSource resolves a host path. A missing one is made, as Docker did and pods
// with hostPath volumes of no type expect.
func hostSource(p string) (string, error) {
	if !filepath.IsAbs(p) {
		return "", status.Errorf(codes.InvalidArgument, "host path %q is not absolute", p)
	}
	real, err := filepath.EvalSymlinks(p)
	if errors.Is(err, os.ErrNotExist) {
		if err := os.MkdirAll(p, 0o755); err != nil {
			return "", err
		}
		return filepath.EvalSymlinks(p)
	}
	return real, err
}

func (s *Server) mountVolume(ctx context.Context, sb *sandbox, key string, m *runtimeapi.Mount, labels label) (string, error) {
	root, err := s.mountImage(ctx, sb, m.Image.GetImage(), key, labels, true)
	if err != nil {
		return "", imageError(err)
	}
	if m.ImageSubPath == "" {
		return root, nil
	}
	return subPath(root, m.ImageSubPath)
}

// subPath resolves a path inside an image, whatever links the image has. The
// image is read-only, so that the answer stays true.
func subPath(root, sub string) (string, error) {
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(dir)
	fd, err := linux.OpenIn(dir, sub, unix.O_PATH)
	if err != nil {
		return "", fmt.Errorf("image sub path %q: %w", sub, err)
	}
	defer unix.Close(fd)
	return os.Readlink(linux.FDPath(fd))
}

func imageOf(c *runtimeapi.ContainerConfig) string {
	if ref := c.GetImage().GetImageRef(); ref != "" {
		return ref
	}
	return c.GetImage().GetImage()
}

// logPath is empty when the container's output is not to be kept.
func logPath(sandbox *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig) string {
	if sandbox.GetLogDirectory() == "" || c.GetLogPath() == "" {
		return ""
	}
	return filepath.Join(sandbox.GetLogDirectory(), c.GetLogPath())
}

// stopSignal is the pod's, else the image's, else TERM.
func stopSignal(c *runtimeapi.ContainerConfig, img *image.Image) string {
	if c.GetStopSignal() != runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT {
		return signalName(c.GetStopSignal())
	}
	return signalOr(img.Config.Config, "SIGTERM")
}

func signalOr(image ocispec.ImageConfig, otherwise string) string {
	if image.StopSignal != "" {
		return strings.ToUpper(image.StopSignal)
	}
	return otherwise
}
