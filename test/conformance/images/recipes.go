package images

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// layer makes one layer of an image: it fills the empty folder root. Layers of one name are made once.
type layer struct {
	name string
	fill func(ctx context.Context, w *workshop, root string) error
}

// recipe is one image.
type recipe struct {
	names  []string // repository:tag below the registry
	layers []layer
	config v1.Config
}

// The programs are upstream's; what they stand on is Debian where upstream has Alpine or distroless. What that changes
// for a test is said in doc/conformance.md under "Stand-ins".
func recipes() []recipe {
	agnhost := []layer{tools, agnhostProgram}
	return []recipe{
		pauseImage,
		{[]string{"e2e-test-images/agnhost:2.66.1", "e2e-test-images/agnhost:2.55"}, agnhost, agnhostConfig(nil)},
		{[]string{"e2e-test-images/busybox:1.37.0-2"}, []layer{busybox}, v1.Config{Cmd: []string{"sh"}}},
		{[]string{"e2e-test-images/nonroot:1.5"}, []layer{busybox}, v1.Config{Cmd: []string{"sh"}, User: "1234"}},
		{[]string{"e2e-test-images/nonewprivs:1.4"}, []layer{busybox, nonewprivs}, v1.Config{Cmd: []string{"nnp"}}},
		{[]string{"e2e-test-images/nginx:1.27.0-2"}, []layer{nginx}, nginxConfig("1.27.0")},
		{[]string{"e2e-test-images/nginx:1.28.0-2"}, []layer{nginx}, nginxConfig("1.28.0")},
		{[]string{"e2e-test-images/kitten:1.8"}, append(agnhost[:2:2], page("kitten")), agnhostConfig([]string{"test-webserver"})},
		{[]string{"e2e-test-images/nautilus:1.8"}, append(agnhost[:2:2], page("nautilus")), agnhostConfig([]string{"test-webserver"})},
		{[]string{"e2e-test-images/sample-apiserver:1.29.2"},
			[]layer{program("/sample-apiserver", "k8s.io/sample-apiserver")}, v1.Config{Entrypoint: []string{"/sample-apiserver"}}},
		{[]string{"etcd:3.7.0-0"}, []layer{busybox, etcd}, v1.Config{Cmd: []string{"/usr/local/bin/etcd"}}},
		{[]string{"e2e-test-images/regression-issue-74839:1.5"},
			[]layer{program("/regression-issue-74839", imagesModule+"regression-issue-74839")},
			v1.Config{Entrypoint: []string{"/regression-issue-74839"}}},
		{[]string{"e2e-test-images/resource-consumer:1.14"}, []layer{tools, consumer}, v1.Config{Entrypoint: []string{"/consumer"}}},
		{[]string{"e2e-test-images/ipc-utils:1.4", "e2e-test-images/glibc-dns-testing:2.1.1", "build-image/distroless-iptables:v0.9.9"},
			[]layer{tools}, v1.Config{Cmd: []string{"bash"}}},
		{[]string{"e2e-test-images/perl:5.26"}, []layer{perl}, v1.Config{Cmd: []string{"perl"}}},
	}
}

const (
	imagesModule = "k8s.io/kubernetes/test/images/"
	searchPath   = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

func agnhostConfig(cmd []string) v1.Config {
	if cmd == nil {
		cmd = []string{"pause"}
	}
	return v1.Config{Entrypoint: []string{"/agnhost"}, Cmd: cmd}
}

func nginxConfig(version string) v1.Config {
	return v1.Config{
		Cmd: []string{"nginx", "-g", "daemon off;"}, Env: []string{"NGINX_VERSION=" + version},
		ExposedPorts: map[string]struct{}{"80/tcp": {}}, StopSignal: "SIGQUIT",
	}
}

// program is a layer of one Go program of this module's dependencies, or of its own.
func program(path, pkg string) layer {
	return layer{pkg, func(ctx context.Context, w *workshop, root string) error { return w.compile(ctx, pkg, root+path) }}
}

var pauseImage = recipe{
	[]string{"pause:3.10.2"}, []layer{program("/pause", "./images/pause")},
	v1.Config{Entrypoint: []string{"/pause"}, User: "65535:65535"},
}

// tools is a Debian root with the programs that tests call in agnhost and its like.
var tools = layer{"tools", func(ctx context.Context, w *workshop, root string) error {
	err := w.debian.install(ctx, root, "base-files", "base-passwd", "bash", "coreutils", "grep", "sed", "findutils", "mawk",
		"hostname", "procps", "util-linux", "tar", "gzip", "libc-bin", "netbase", "tzdata", "bind9-dnsutils", "curl", "wget",
		"netcat-openbsd", "iproute2", "iputils-ping", "iptables", "iperf", "socat", "stress")
	if err != nil {
		return err
	}
	if err := users(root); err != nil {
		return err
	}
	return links(root, map[string]string{
		"/usr/bin/sh": "bash", "/usr/bin/awk": "mawk", "/usr/bin/nc": "nc.openbsd", "/usr/local/bin/iperf": "/usr/bin/iperf",
		"/usr/sbin/iptables": "xtables-nft-multi", "/usr/sbin/ip6tables": "xtables-nft-multi",
		"/usr/sbin/iptables-save": "xtables-nft-multi", "/usr/sbin/iptables-restore": "xtables-nft-multi",
	})
}}

var agnhostProgram = layer{"agnhost", func(ctx context.Context, w *workshop, root string) error {
	if err := w.compile(ctx, imagesModule+"agnhost", root+"/agnhost"); err != nil {
		return err
	}
	if err := w.compileIn(ctx, "images/coredns", ".", root+"/coredns"); err != nil {
		return err
	}
	porter := filepath.Join(w.upstream, "test/images/agnhost/porter")
	for _, f := range []string{"localhost.crt", "localhost.key"} {
		if err := copyFile(filepath.Join(porter, f), filepath.Join(root, f), 0o644); err != nil {
			return err
		}
	}
	if err := os.Mkdir(root+"/uploads", 0o755); err != nil {
		return err
	}
	if err := links(root, map[string]string{"/agnhost-2": "agnhost"}); err != nil {
		return err
	}
	if err := w.nestedRegistry(ctx, root+"/var/registry/pause", "testing"); err != nil {
		return err
	}
	// A test of image volumes looks for the name of upstream's base in here.
	const release = "PRETTY_NAME=\"Debian GNU/Linux, stand-in for Alpine Linux\"\nNAME=\"Debian GNU/Linux\"\nID=debian\n"
	return writeFiles(root, map[string]string{
		"/etc/os-release": release,
		"/etc/passwd":     passwd + "user-defined-in-image:x:1000:1000::/home/user-defined-in-image:/bin/sh\n",
		"/etc/group":      group + "user-defined-in-image:x:1000:\ngroup-defined-in-image:x:50000:user-defined-in-image\n",
	})
}}

// busybox's shell drops environment variables whose names it could not assign, and tests that call sh expect them; a
// static bash goes before it on the search path. Tests that call /bin/sh expect the words of busybox's own.
var busybox = layer{"busybox", func(ctx context.Context, w *workshop, root string) error {
	if err := w.debian.only(ctx, root, "busybox-static", "bash-static", "tzdata"); err != nil {
		return err
	}
	listed, err := exec.CommandContext(ctx, root+"/bin/busybox", "--list").Output()
	if err != nil {
		return fmt.Errorf("list applets: %w", err)
	}
	applets := map[string]string{"/usr/local/bin/sh": "/usr/bin/bash-static"}
	for _, a := range strings.Fields(string(listed)) {
		if a != "busybox" {
			applets["/usr/bin/"+a] = "busybox"
		}
	}
	if err := links(root, applets); err != nil {
		return err
	}
	if err := users(root); err != nil {
		return err
	}
	return copyFile(root+"/usr/share/zoneinfo/UTC", root+"/etc/localtime", 0o644)
}}

var nonewprivs = layer{"nonewprivs", func(ctx context.Context, w *workshop, root string) error {
	path := root + "/usr/local/bin/nnp"
	if err := w.compile(ctx, imagesModule+"nonewprivs", path); err != nil {
		return err
	}
	return os.Chmod(path, 0o755|os.ModeSetuid|os.ModeSetgid)
}}

var nginx = layer{"nginx", func(ctx context.Context, w *workshop, root string) error {
	if err := w.debian.install(ctx, root, "base-files", "bash", "coreutils", "grep", "sed", "curl", "nginx-light"); err != nil {
		return err
	}
	if err := users(root); err != nil {
		return err
	}
	if err := links(root, map[string]string{
		"/usr/bin/sh": "bash", "/var/log/nginx/access.log": "/dev/stdout", "/var/log/nginx/error.log": "/dev/stderr",
	}); err != nil {
		return err
	}
	return writeFiles(root, map[string]string{
		"/etc/nginx/nginx.conf": nginxConf,
		"/usr/share/nginx/html/index.html": "<!DOCTYPE html>\n<html>\n<head><title>Welcome to nginx!</title></head>\n" +
			"<body><h1>Welcome to nginx!</h1></body>\n</html>\n",
	})
}}

const nginxConf = `user www-data;
worker_processes 1;
pid /run/nginx.pid;
error_log /var/log/nginx/error.log notice;
events { worker_connections 1024; }
http {
	include /etc/nginx/mime.types;
	default_type application/octet-stream;
	access_log /var/log/nginx/access.log;
	server {
		listen 80;
		root /usr/share/nginx/html;
		index index.html;
	}
}
`

var etcd = layer{"etcd", func(ctx context.Context, w *workshop, root string) error {
	if err := w.compile(ctx, "go.etcd.io/etcd/server/v3", root+"/usr/local/bin/etcd"); err != nil {
		return err
	}
	return w.compile(ctx, "go.etcd.io/etcd/etcdctl/v3", root+"/usr/local/bin/etcdctl")
}}

var consumer = layer{"consumer", func(ctx context.Context, w *workshop, root string) error {
	if err := w.compile(ctx, imagesModule+"resource-consumer", root+"/consumer"); err != nil {
		return err
	}
	return w.compile(ctx, imagesModule+"resource-consumer/consume-cpu", root+"/consume-cpu")
}}

var perl = layer{"perl", func(ctx context.Context, w *workshop, root string) error {
	if err := w.debian.install(ctx, root, "base-files", "bash", "coreutils", "perl"); err != nil {
		return err
	}
	if err := users(root); err != nil {
		return err
	}
	return links(root, map[string]string{"/usr/bin/sh": "bash"})
}}

// page is the files of one of upstream's two pages of the update demo.
func page(name string) layer {
	return layer{name, func(_ context.Context, w *workshop, root string) error {
		for _, f := range []string{name + ".jpg", "data.json"} {
			if err := copyFile(filepath.Join(w.upstream, "test/images", name, "html", f), filepath.Join(root, f), 0o644); err != nil {
				return err
			}
		}
		return nil
	}}
}

const (
	passwd = "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\nbin:x:2:2:bin:/bin:/bin/false\n" +
		"mail:x:8:8:mail:/var/spool/mail:/bin/false\nwww-data:x:33:33:www-data:/var/www:/bin/false\n" +
		"nobody:x:65534:65534:nobody:/home:/bin/false\n"
	group = "root:x:0:\ndaemon:x:1:\nbin:x:2:\nmail:x:8:\nwww-data:x:33:\nusers:x:100:\nnogroup:x:65534:\n"
)

// users makes what the scripts of Debian's packages would: accounts, and the folders that programs expect.
func users(root string) error {
	for _, dir := range []string{"dev", "etc", "home", "proc", "root", "run", "sys", "tmp", "var/run", "var/tmp"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	for _, dir := range []string{"tmp", "var/tmp"} {
		if err := os.Chmod(filepath.Join(root, dir), 0o777|os.ModeSticky); err != nil {
			return err
		}
	}
	return writeFiles(root, map[string]string{"/etc/passwd": passwd, "/etc/group": group})
}
