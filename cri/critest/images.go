package critest

import (
	"runtime"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func imageCases() []Case {
	return []Case{
		{"pulled by a tag", 0, pullTag},
		{"pulled by a digest", 0, pullDigest},
		{"pulled by a tag and a digest", 0, pullBoth},
		{"pulled again it is the same", 0, pullAgain},
		{"pulled by many at once it is the same", 0, pullMany},
		{"of an index the host's platform is pulled", 0, pullIndex},
		{"a tag that moved is the new image's", 0, pullMoved},
		{"an image that is not there is an error", 0, pullMissing},
		{"a name that is none is an error", 0, pullMalformed},
		{"a registry that is not there is an error", 0, pullNoRegistry},
		{"with the password it is pulled", 0, pullPassword},
		{"with the password in one string it is pulled", 0, pullBasic},
		{"without the password it is not", 0, pullNoPassword},
		{"with a wrong password it is not", 0, pullWrongPassword},
		{"for a handler that is not configured it is not", 29, pullHandler},
		{"found by its tag", 0, imageByTag},
		{"found by its digest", 0, imageByDigest},
		{"found by its ID", 0, imageByID},
		{"none is no error", 0, imageNone},
		{"its names are told", 0, imageNames},
		{"its size is told", 0, imageSize},
		{"its user is told by name", 0, imageUser},
		{"its user is told by number", 0, imageUserNumber},
		{"details are given when they are asked for", 0, imageDetails},
		{"no details are given unasked", 0, imageNoDetails},
		{"all are listed", 0, imagesAll},
		{"one is found in the list by its name", 0, imagesByName},
		{"a name that is not there finds none in the list", 0, imagesNone},
		{"they come in a stream too", 36, imagesStream},
		{"removed by its tag", 0, removeByTag},
		{"removed by its ID", 0, removeByID},
		{"removed by its digest", 0, removeByDigest},
		{"removed with all its names", 0, removeNames},
		{"removed again is no error", 0, removeAgain},
		{"removed under a running container", 0, removeUnder},
		{"removed and pulled again", 0, removeAndPull},
		{"what they take is told", 0, imageFS},
	}
}

func (t *T) image(ref string) *runtimeapi.Image {
	t.Helper()
	r, err := t.Images.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	if err != nil {
		t.Fatalf("image status: %v", err)
	}
	return r.Image
}

func (t *T) tryPull(ref string, auth *runtimeapi.AuthConfig) error {
	_, err := t.Images.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}, Auth: auth})
	return err
}

// byDigest is the name of an image with its digest in place of the tag.
func (t *T) byDigest(ref string) string {
	t.Helper()
	return ref[:strings.LastIndex(ref, ":")] + "@" + t.images.digest(t.TB, ref)
}

func (t *T) there(ref, id string) {
	t.Helper()
	if im := t.image(ref); im.GetId() != id || id == "" {
		t.Errorf("%s is %v, want %s", ref, im, id)
	}
}

func pullTag(t *T) {
	ref := t.fresh()
	t.there(ref, t.pull(ref))
}

func pullDigest(t *T) {
	ref := t.byDigest(t.fresh())
	id := t.pull(ref)
	t.there(ref, id)
	if im := t.image(ref); len(im.GetRepoTags()) != 0 {
		t.Errorf("%v", im)
	}
}

func pullBoth(t *T) {
	ref := t.fresh()
	both := ref + "@" + t.images.digest(t.TB, ref)
	t.there(t.byDigest(ref), t.pull(both))
}

func pullAgain(t *T) {
	ref := t.fresh()
	if a, b := t.pull(ref), t.pull(ref); a != b {
		t.Errorf("%s and %s", a, b)
	}
}

func pullMany(t *T) {
	ref := t.fresh()
	errs := make(chan error)
	for range 6 {
		go func() { errs <- t.tryPull(ref, nil) }()
	}
	for range 6 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if im := t.image(ref); len(im.GetRepoTags()) != 1 || len(im.GetRepoDigests()) != 1 {
		t.Errorf("%v", im)
	}
}

func pullIndex(t *T) {
	ours, err := build(t.images.layer, v1.Config{Cmd: []string{"echo", "ours"}, Env: []string{"PATH=/bin"}})
	if err != nil {
		t.Fatal(err)
	}
	other, err := build(t.images.layer, v1.Config{Cmd: []string{"echo", "other"}, Env: []string{"PATH=/bin"}})
	if err != nil {
		t.Fatal(err)
	}
	add := func(i v1.Image, arch string) mutate.IndexAddendum {
		return mutate.IndexAddendum{Add: i, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}}}
	}
	index := mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex), add(other, "s390x"), add(ours, runtime.GOARCH))
	ref := t.images.open + "/" + t.unique("index") + ":1"
	if err := remote.WriteIndex(t.images.parse(t.TB, ref), index, remote.WithTransport(t.images)); err != nil {
		t.Fatal(err)
	}
	t.pull(ref)
	if im := t.image(ref); !slices.Contains(im.GetRepoDigests(), t.byDigest(ref)) {
		t.Errorf("%v is not known by the index's digest", im)
	}
	c := t.config()
	c.Image = &runtimeapi.ImageSpec{Image: ref}
	t.prints("ours\n", t.any(), c)
}

func pullMoved(t *T) {
	ref := t.fresh()
	before := t.pull(ref)
	t.images.push(t.TB, ref, v1.Config{Cmd: forever(), Labels: map[string]string{"moved": ref}})
	after := t.pull(ref)
	if before == after {
		t.Errorf("it is still %s", before)
	}
	t.there(ref, after)
	if im := t.image(before); im != nil && slices.Contains(im.RepoTags, ref) {
		t.Errorf("%v", im)
	}
}

func pullMissing(t *T) {
	t.refused("a pull of what is not there", t.tryPull(t.images.open+"/no-such:1", nil))
}

func pullMalformed(t *T) { t.refused("a pull of no name", t.tryPull("NOT:a:name@", nil)) }

func pullNoRegistry(t *T) {
	t.refused("a pull from nobody", t.tryPull("127.0.0.1:1/box:1", nil))
}

func pullPassword(t *T) {
	ref := t.images.guarded + "/box:1"
	if err := t.tryPull(ref, &runtimeapi.AuthConfig{Username: registryUser, Password: registryPassword}); err != nil {
		t.Fatal(err)
	}
	if im := t.image(ref); im == nil {
		t.Error("it is not there")
	}
}

func pullBasic(t *T) {
	// base64 of alice:opensesame
	if err := t.tryPull(t.images.guarded+"/box:1", &runtimeapi.AuthConfig{Auth: "YWxpY2U6b3BlbnNlc2FtZQ=="}); err != nil {
		t.Error(err)
	}
}

// An image of its own: what is there already may be had without a question.
func (t *T) guardedFresh() string {
	t.Helper()
	n := t.unique("guarded")
	return t.images.push(t.TB, t.images.guarded+"/"+n+":1", v1.Config{Cmd: forever(), Env: []string{"FRESH=" + n}})
}

func pullNoPassword(t *T) { t.refused("a pull without a password", t.tryPull(t.guardedFresh(), nil)) }

func pullWrongPassword(t *T) {
	t.refused("a pull with a wrong password", t.tryPull(t.guardedFresh(), &runtimeapi.AuthConfig{Username: registryUser, Password: "wrong"}))
}

func pullHandler(t *T) {
	_, err := t.Images.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: t.fresh(), RuntimeHandler: "no-such-handler"}})
	t.refused("a pull for a handler that is not there", err)
}

func imageByTag(t *T) { t.there(t.images.box, t.pull(t.images.box)) }

func imageByDigest(t *T) { t.there(t.byDigest(t.images.box), t.pull(t.images.box)) }

func imageByID(t *T) {
	id := t.pull(t.images.box)
	t.there(id, id)
}

func imageNone(t *T) {
	if im := t.image(t.images.open + "/never-pulled:1"); im != nil {
		t.Errorf("%v", im)
	}
}

func imageNames(t *T) {
	ref := t.fresh()
	t.pull(ref)
	if im := t.image(ref); !slices.Equal(im.GetRepoTags(), []string{ref}) || !slices.Equal(im.GetRepoDigests(), []string{t.byDigest(ref)}) {
		t.Errorf("%v", im)
	}
}

func imageSize(t *T) {
	t.pull(t.images.box)
	if im := t.image(t.images.box); im.GetSize() < 1<<19 || im.GetPinned() {
		t.Errorf("%v", im)
	}
}

func imageUser(t *T) {
	t.pull(t.images.app)
	if im := t.image(t.images.app); im.GetUsername() != "alice" || im.GetUid() != nil {
		t.Errorf("%v", im)
	}
}

func imageUserNumber(t *T) {
	n := t.unique("user")
	ref := t.images.push(t.TB, t.images.open+"/"+n+":1", v1.Config{Cmd: forever(), User: "1234:5678"})
	t.pull(ref)
	if im := t.image(ref); im.GetUid().GetValue() != 1234 || im.GetUsername() != "" {
		t.Errorf("%v", im)
	}
}

func (t *T) imageInfo(verbose bool) map[string]string {
	t.Helper()
	r, err := t.Images.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: t.images.box}, Verbose: verbose})
	if err != nil {
		t.Fatal(err)
	}
	return r.Info
}

func imageDetails(t *T) { t.info(t.imageInfo(true), "info") }

func imageNoDetails(t *T) {
	if i := t.imageInfo(false); len(i) != 0 {
		t.Errorf("%v", i)
	}
}

func (t *T) list(f *runtimeapi.ImageFilter) (ids []string) {
	t.Helper()
	r, err := t.Images.ListImages(t.Context(), &runtimeapi.ListImagesRequest{Filter: f})
	if err != nil {
		t.Fatalf("list images: %v", err)
	}
	for _, im := range r.Images {
		ids = append(ids, im.Id)
	}
	return ids
}

func imagesAll(t *T) {
	a, b := t.pull(t.fresh()), t.pull(t.fresh())
	if all := t.list(nil); !slices.Contains(all, a) || !slices.Contains(all, b) {
		t.Errorf("%v has not %s and %s", all, a, b)
	}
}

func imagesByName(t *T) {
	ref := t.fresh()
	id := t.pull(ref)
	if got := t.list(&runtimeapi.ImageFilter{Image: &runtimeapi.ImageSpec{Image: ref}}); !slices.Equal(got, []string{id}) {
		t.Errorf("%v, want %s", got, id)
	}
}

func imagesNone(t *T) {
	if got := t.list(&runtimeapi.ImageFilter{Image: &runtimeapi.ImageSpec{Image: t.images.open + "/never-pulled:1"}}); len(got) != 0 {
		t.Errorf("%v", got)
	}
}

func imagesStream(t *T) {
	ref := t.fresh()
	id := t.pull(ref)
	s, err := t.Images.StreamImages(t.Context(), &runtimeapi.StreamImagesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, im := range collect(t, s.Recv, (*runtimeapi.StreamImagesResponse).GetImages) {
		if im.Id == id {
			n++
		}
	}
	if n != 1 {
		t.Errorf("it is there %d times", n)
	}
}

func (t *T) removeImage(ref string) {
	t.Helper()
	if _, err := t.Images.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}}); err != nil {
		t.Fatalf("remove image: %v", err)
	}
}

func (t *T) removed(ref string, by func(id string) string) {
	t.Helper()
	id := t.pull(ref)
	t.removeImage(by(id))
	for _, name := range []string{ref, id} {
		if im := t.image(name); im != nil {
			t.Errorf("%s is %v", name, im)
		}
	}
}

func removeByTag(t *T) {
	ref := t.fresh()
	t.removed(ref, func(string) string { return ref })
}

func removeByID(t *T) { t.removed(t.fresh(), func(id string) string { return id }) }

func removeByDigest(t *T) {
	ref := t.fresh()
	t.removed(ref, func(string) string { return t.byDigest(ref) })
}

func removeNames(t *T) {
	n := t.unique("named")
	config := v1.Config{Cmd: forever(), Env: []string{"NAMED=" + n}}
	a, b := t.images.push(t.TB, t.images.open+"/"+n+":1", config), t.images.push(t.TB, t.images.open+"/other-"+n+":2", config)
	if x, y := t.pull(a), t.pull(b); x != y {
		t.Fatalf("%s and %s", x, y)
	}
	if im := t.image(a); len(im.GetRepoTags()) != 2 || len(im.GetRepoDigests()) != 2 {
		t.Errorf("%v", im)
	}
	t.removed(a, func(string) string { return a })
	if im := t.image(b); im != nil {
		t.Errorf("%v", im)
	}
}

func removeAgain(t *T) {
	ref := t.fresh()
	t.pull(ref)
	for range 3 {
		t.removeImage(ref)
	}
	t.removeImage(t.images.open + "/never-pulled:1")
}

func removeUnder(t *T) {
	ref := t.fresh()
	id := t.sleeper(t.any(), t.with(ref))
	t.removeImage(ref)
	t.wantExec(id, "there\n", "sh", "-c", "cat /bin/busybox >/dev/null && echo there")
	if s := t.status(id); s.State != running {
		t.Errorf("%v", s)
	}
}

func removeAndPull(t *T) {
	ref := t.fresh()
	id := t.pull(ref)
	t.removeImage(ref)
	if again := t.pull(ref); again != id {
		t.Errorf("%s, was %s", again, id)
	}
	c := t.script("echo ran")
	c.Image = &runtimeapi.ImageSpec{Image: ref}
	t.prints("ran\n", t.any(), c)
}

// A server may measure in its own time.
func imageFS(t *T) {
	t.eventually("what images take", func() bool {
		r, err := t.Images.ImageFsInfo(t.Context(), &runtimeapi.ImageFsInfoRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return len(r.ImageFilesystems) > 0 && r.ImageFilesystems[0].GetUsedBytes().GetValue() > 0 && r.ImageFilesystems[0].GetInodesUsed().GetValue() > 0 &&
			r.ImageFilesystems[0].GetFsId().GetMountpoint() != "" && r.ImageFilesystems[0].GetTimestamp() > 0
	})
}
