package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	keychain "github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/spf13/cobra"

	"github.com/yare-dev/yare/cmd/cluster"
	"github.com/yare-dev/yare/image"
)

// imageCommand works on a cluster's image store directly: the store's own locking makes that safe beside the server.
func imageCommand() *cobra.Command {
	var name, dir string
	c := &cobra.Command{
		Use: "image", GroupID: "use",
		Short: "The images of a cluster, or of a runtime that runs alone",
		Example: `  yare image pull debian:12
  yare image import app.tar                            # docker save, or an OCI layout
  yare image build-from ./rootfs --tag app:1 --entrypoint /app`,
	}
	c.PersistentFlags().StringVar(&name, "name", cluster.DefaultName, "name of the cluster")
	c.PersistentFlags().StringVar(&dir, "data-dir", "", "data folder of a 'yare runtime', in place of --name")
	store := func() (*image.Store, error) {
		if err := requireRoot(); err != nil {
			return nil, err
		}
		r := &cluster.Record{DataDir: dir}
		if dir == "" {
			var err error
			if r, err = (cluster.Host{}).Find(name); err != nil {
				return nil, err
			}
		}
		return image.Open(imageConfig(r), slog.New(slog.DiscardHandler))
	}
	c.AddCommand(imageImport(store), imagePull(store), imageList(store), imageRemove(store), imageBuild(store), imageExport(store))
	return c
}

type openStore func() (*image.Store, error)

// imageConfig is the one place that says where a cluster's images are and how registries are reached.
func imageConfig(r *cluster.Record) image.Config {
	return image.Config{Dir: filepath.Join(r.DataDir, "images"), Registries: "/etc/yare/registries"}
}

func imageImport(open openStore) *cobra.Command {
	return &cobra.Command{
		Use: "import FILE...", Args: cobra.MinimumNArgs(1),
		Short: "Import OCI layouts and docker archives; imported images are never garbage-collected",
		RunE: func(c *cobra.Command, files []string) error {
			s, err := open()
			if err != nil {
				return err
			}
			for _, f := range files {
				is, err := s.Import(c.Context(), f)
				if err != nil {
					return fmt.Errorf("import %s: %w", f, err)
				}
				for _, i := range is {
					fmt.Fprintf(c.OutOrStdout(), "imported %s (%s)\n", title(i), shortID(i.ID))
				}
			}
			return nil
		},
	}
}

func imagePull(open openStore) *cobra.Command {
	var user string
	c := &cobra.Command{
		Use: "pull REF", Args: cobra.ExactArgs(1),
		Short: "Pull an image from its registry",
		Long: `Pull an image from its registry.

How a registry is reached (its CA, client certificates, mirrors, plain HTTP) is said by
/etc/yare/registries/HOST/host.yaml. Without --creds the registry is told what docker login or podman login
have kept: $HOME/.docker/config.json (or config.json in $DOCKER_CONFIG), else $REGISTRY_AUTH_FILE or containers/auth.json
in $XDG_RUNTIME_DIR or $XDG_CONFIG_HOME, credential helpers included; for Docker Hub, what docker login has kept.`,
		RunE: func(c *cobra.Command, args []string) error {
			s, err := open()
			if err != nil {
				return err
			}
			auth, err := credentials(c.Context(), user, args[0])
			if err != nil {
				return err
			}
			p := newProgress(c.OutOrStdout())
			i, err := s.Pull(c.Context(), args[0], image.PullOptions{Auth: auth, Progress: func(g image.Progress) {
				if p.terminal {
					p.step(fmt.Sprintf("%s %d of %d kB", shortID(g.Digest), g.Done>>10, g.Size>>10))
				}
			}})
			if err != nil {
				return err
			}
			p.done("pulled %s (%s, %d layers, %d kB)", title(i), shortID(i.ID), len(i.Layers), i.Size>>10)
			return nil
		},
	}
	c.Flags().StringVar(&user, "creds", "", "USER:PASSWORD for the registry")
	return c
}

// credentials are what the registry of ref is told: user and password where they are given, else what is kept for it on this host.
func credentials(ctx context.Context, given, ref string) (image.Auth, error) {
	if given != "" {
		user, password, _ := strings.Cut(given, ":")
		return image.Auth{Username: user, Password: password}, nil
	}
	r, err := image.ParseReference(ref)
	if err != nil {
		return image.Auth{}, err
	}
	host, err := name.NewRegistry(r.Registry)
	if err != nil {
		return image.Auth{}, err
	}
	type answer struct {
		auth image.Auth
		err  error
	}
	// Who asks helpers does not end them with ctx.
	answered := make(chan answer, 1)
	go func() {
		a, err := keptFor(ctx, host)
		answered <- answer{a, err}
	}()
	select {
	case a := <-answered:
		return a.auth, a.err
	case <-ctx.Done():
		return image.Auth{}, fmt.Errorf("credentials kept for registry %s: %w", r.Registry, ctx.Err())
	}
}

// keptFor reads what is kept for a registry, and asks the helper that is named there. It ends when these do.
func keptFor(ctx context.Context, host name.Registry) (image.Auth, error) {
	kept, err := keychain.Resolve(ctx, keychain.DefaultKeychain, host)
	if err != nil {
		return image.Auth{}, fmt.Errorf("credentials kept for registry %s (--creds goes before them): %w", host, err)
	}
	a, err := keychain.Authorization(ctx, kept)
	if err != nil {
		return image.Auth{}, fmt.Errorf("credentials kept for registry %s: %w", host, err)
	}
	return image.Auth{Username: a.Username, Password: a.Password, Basic: a.Auth, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken}, nil
}

func imageList(open openStore) *cobra.Command {
	var output string
	c := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Args: cobra.NoArgs,
		Short: "List images",
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := open()
			if err != nil {
				return err
			}
			is, err := s.List(c.Context())
			if err != nil {
				return err
			}
			switch output {
			case "json":
				return json.NewEncoder(c.OutOrStdout()).Encode(is)
			case "":
				return printImages(c.OutOrStdout(), is)
			}
			return fmt.Errorf("--output %q: use json or leave it out", output)
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "", "json")
	return c
}

func printImages(w io.Writer, is []*image.Image) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "IMAGE\tID\tLAYERS\tSIZE\tPINNED")
	for _, i := range is {
		fmt.Fprintf(t, "%s\t%s\t%d\t%d kB\t%v\n", title(i), shortID(i.ID), len(i.Layers), i.Size>>10, i.Pinned)
	}
	return t.Flush()
}

func imageRemove(open openStore) *cobra.Command {
	return &cobra.Command{
		Use: "rm REF...", Args: cobra.MinimumNArgs(1),
		Short: "Remove images; containers that run keep what they need",
		RunE: func(c *cobra.Command, refs []string) error {
			s, err := open()
			if err != nil {
				return err
			}
			var all error
			for _, ref := range refs {
				if err := s.Remove(c.Context(), ref); err != nil {
					all = errors.Join(all, fmt.Errorf("remove %s: %w", ref, err))
					continue
				}
				fmt.Fprintf(c.OutOrStdout(), "removed %s\n", ref)
			}
			return all
		},
	}
}

func imageBuild(open openStore) *cobra.Command {
	var tag string
	var o image.ConfigOptions
	c := &cobra.Command{
		Use: "build-from DIR", Args: cobra.ExactArgs(1),
		Short: "Make an image of one layer from a root file system folder",
		RunE: func(c *cobra.Command, args []string) error {
			if tag == "" {
				return errors.New("--tag is required: the image's name, such as app:1")
			}
			if st, err := os.Stat(args[0]); err != nil {
				return err
			} else if !st.IsDir() {
				return fmt.Errorf("%s is not a folder", args[0])
			}
			s, err := open()
			if err != nil {
				return err
			}
			i, err := s.BuildFromDir(c.Context(), args[0], tag, o)
			if err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "built %s (%s, %d kB)\n", title(i), shortID(i.ID), i.Size>>10)
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&tag, "tag", "", "name of the image")
	f.StringArrayVar(&o.Entrypoint, "entrypoint", nil, "program and arguments that always run (repeat the flag for each)")
	f.StringArrayVar(&o.Cmd, "cmd", nil, "program, or arguments of the entrypoint, that a Pod may replace (repeat)")
	f.StringArrayVar(&o.Env, "env", nil, "KEY=VALUE (repeat)")
	f.StringVar(&o.WorkingDir, "workdir", "", "working directory")
	f.StringVar(&o.User, "user", "", "user[:group], by name or number")
	f.StringToStringVar(&o.Labels, "label", nil, "KEY=VALUE labels")
	return c
}

func imageExport(open openStore) *cobra.Command {
	return &cobra.Command{
		Use: "export REF FILE", Args: cobra.ExactArgs(2),
		Short: "Write an image as an OCI layout archive",
		RunE: func(c *cobra.Command, args []string) (err error) {
			s, err := open()
			if err != nil {
				return err
			}
			f, err := os.OpenFile(args[1], os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
			if err != nil {
				return err
			}
			defer func() {
				if err = cmp.Or(err, f.Close()); err != nil {
					os.Remove(f.Name())
				}
			}()
			return s.Export(c.Context(), args[0], f)
		},
	}
}

// title is what a person calls the image.
func title(i *image.Image) string {
	for _, names := range [][]string{i.Tags, i.Digests} {
		if len(names) > 0 {
			return names[0]
		}
	}
	return "<none>"
}

func shortID(id string) string {
	id = strings.TrimPrefix(id, "sha256:")
	return id[:min(12, len(id))]
}
