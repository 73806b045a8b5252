package rest

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/store"
)

// Get returns the object. Version is the resourceVersion that the client knows to exist, empty for the newest state;
// "0" for any.
func (p *Pipeline) Get(ctx context.Context, r *Request, version string) (*store.Entry, error) {
	r = r.inside()
	if r.Any.r.made != nil {
		return p.madeOne(ctx, r)
	}
	if version == "" || version == "0" {
		if version == "" {
			if err := p.store.Sync(ctx); err != nil {
				return nil, storeError(err, r)
			}
		}
	} else if err := p.reach(ctx, version); err != nil {
		return nil, err
	}
	e := p.store.Snapshot(r.Any.Kept()).Get(r.Key)
	switch {
	case e == nil:
		return nil, r.notFound()
	case e.Err() != nil:
		return nil, apierrors.NewInternalError(e.Err())
	}
	return p.shownOne(ctx, r, r.show(e), nil)
}

// ListOptions are the options of a list.
type ListOptions struct {
	Selection
	Limit    int64
	Continue string
	// Version and Match are resourceVersion and resourceVersionMatch as the client gave them.
	Version string
	Match   metav1.ResourceVersionMatch
}

// Page is the outcome of a list.
type Page struct {
	Entries  []*store.Entry
	Revision api.Revision
	// Continue is where the next page begins, empty on the last.
	Continue string
	// Remaining is the number of objects after this page, nil where it is not known.
	Remaining *int64
}

// List returns the selected objects ordered by namespace and name, all of one revision.
func (p *Pipeline) List(ctx context.Context, r *Request, q ListOptions) (*Page, error) {
	r = r.inside()
	page, err := p.list(ctx, r, q)
	if err == nil {
		page.Entries = r.showAll(page.Entries)
	}
	return page, err
}

// list is List of the stored form.
func (p *Pipeline) list(ctx context.Context, r *Request, q ListOptions) (*Page, error) {
	sel, err := r.compile(q.Selection)
	if err != nil {
		return nil, err
	}
	if r.Any.r.made != nil {
		return p.madeAll(ctx, r, sel), nil
	}
	snap, after, err := p.snapshot(ctx, r, q)
	if err != nil {
		return nil, err
	}
	page := &Page{Revision: snap.Revision()}
	if !sel.selective && sel.key == (api.Key{}) {
		page.Entries = make([]*store.Entry, 0, size(snap.Len(), q.Limit))
	}
	if rev, err := parseVersion(q.Version); err == nil && rev == 0 && q.Version != "" && q.Continue == "" {
		q.Limit = 0 // whoever takes any state gets it whole, as upstream's cache gives it
	}
	var more int64
	var failed error
	candidates := sel.candidates(snap, r.Any.Kind.Namespaced, after)
	if sel.byContent() {
		candidates = p.showing(ctx, r, sel.outward(candidates), &failed)
	}
	for e := range candidates {
		if !sel.match(e.Object) {
			continue
		}
		if q.Limit > 0 && int64(len(page.Entries)) == q.Limit {
			more++
			if sel.selective {
				break // counting would mean matching all
			}
			continue
		}
		page.Entries = append(page.Entries, e)
	}
	if failed != nil {
		return nil, failed
	}
	if page.Entries, err = p.shown(ctx, r, page.Entries); err != nil {
		return nil, err
	}
	if more > 0 {
		page.Continue = token{Version: tokenVersion, Revision: int64(page.Revision), Start: start(page.Entries[len(page.Entries)-1].Key)}.String()
		if !sel.selective {
			page.Remaining = &more
		}
	}
	return page, nil
}

func size(all int, limit int64) int {
	if limit > 0 && limit < int64(all) {
		return int(limit)
	}
	return all
}

// snapshot finds the state that a list is to be made of, and the key after which it begins.
func (p *Pipeline) snapshot(ctx context.Context, r *Request, q ListOptions) (snap store.Snapshot, after api.Key, err error) {
	if q.Continue != "" {
		return p.resume(ctx, r, q)
	}
	rev, err := parseVersion(q.Version)
	if err != nil {
		return snap, after, err
	}
	exact := q.Match == metav1.ResourceVersionMatchExact || q.Match == "" && q.Limit > 0 && rev > 0
	switch {
	case q.Version == "":
		err = storeError(p.store.Sync(ctx), r)
	case rev == 0:
	default:
		err = p.reach(ctx, q.Version)
	}
	if err != nil {
		return snap, after, err
	}
	if !exact {
		return p.store.Snapshot(r.Any.Kept()), after, nil
	}
	snap, err = p.store.SnapshotAt(ctx, r.Any.Kept(), rev)
	return snap, after, versionError(err, r, rev, p.store.Revision())
}

// resume finds the state that a continue token names.
func (p *Pipeline) resume(ctx context.Context, r *Request, q ListOptions) (snap store.Snapshot, after api.Key, err error) {
	t, err := parseToken(q.Continue)
	if err != nil {
		return snap, after, apierrors.NewBadRequest("invalid continue token: continue key is not valid" + err.Error())
	}
	if q.Version != "" && q.Version != "0" {
		return snap, after, apierrors.NewBadRequest("specifying resource version is not allowed when using continue")
	}
	after = api.ParseKey(strings.TrimSuffix(t.Start, "\x00"))
	if r.Key.Namespace != "" && after.Namespace != r.Key.Namespace {
		return snap, after, apierrors.NewBadRequest("continue key is not valid: it belongs to another namespace")
	}
	if t.Revision < 0 { // a client that accepted an inconsistent rest
		if err := p.store.Sync(ctx); err != nil {
			return snap, after, storeError(err, r)
		}
		return p.store.Snapshot(r.Any.Kept()), after, nil
	}
	rev := api.Revision(t.Revision)
	snap, err = p.store.SnapshotAt(ctx, r.Any.Kept(), rev)
	if errors.Is(err, store.ErrCompacted) {
		t.Revision = -1
		gone := apierrors.NewResourceExpired(expiredToken)
		gone.ErrStatus.Continue = t.String()
		return snap, after, gone
	}
	return snap, after, versionError(err, r, rev, p.store.Revision())
}

const expiredToken = "The provided continue parameter is too old to display a consistent list result. You can start a new list without " +
	"the continue parameter, or use the continue token in this response to retrieve the remainder of " +
	"the results. Continuing with the provided token results in an inconsistent list - objects that " +
	"were created, modified, or deleted between the time the first chunk was returned and now " +
	"may show up in the list."

// token is where a list goes on. Its form is upstream's, but clients must not look inside.
type token struct {
	Version  string `json:"v"`
	Revision int64  `json:"rv"`
	Start    string `json:"start"`
}

const tokenVersion = "meta.k8s.io/v1"

// start is the beginning of what comes after key.
func start(key api.Key) string { return key.String() + "\x00" }

func (t token) String() string {
	b, err := json.Marshal(t)
	if err != nil {
		return "" // cannot happen: three plain fields
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

func parseToken(s string) (token, error) {
	var t token
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		return t, fmt.Errorf(": %w", err)
	}
	if err := json.Unmarshal(b, &t); err != nil {
		return t, fmt.Errorf(": %w", err)
	}
	switch {
	case t.Version != tokenVersion:
		return t, fmt.Errorf(": server does not recognize this encoded version %s", t.Version)
	case t.Revision == 0:
		return t, fmt.Errorf(": incorrect encoded start resourceVersion (version %s)", tokenVersion)
	case t.Start == "":
		return t, fmt.Errorf(": encoded start key empty (version %s)", tokenVersion)
	}
	if key := "/" + strings.TrimPrefix(t.Start, "/"); path.Clean(key) != key {
		return t, fmt.Errorf(": %s", t.Start)
	}
	return t, nil
}

func parseVersion(s string) (api.Revision, error) {
	rev, err := api.ParseRevision(s)
	if err != nil {
		return 0, apierrors.NewBadRequest(fmt.Sprintf("invalid resource version: resourceVersion: Invalid value: %q: strconv.ParseUint: parsing %q: invalid syntax", s, s))
	}
	return rev, nil
}

// reachWait is for how long a request waits for a revision that was not reached, as upstream does.
const reachWait = 3 * time.Second

// reach waits until the store has reached version.
func (p *Pipeline) reach(ctx context.Context, version string) error {
	rev, err := parseVersion(version)
	if err != nil {
		return err
	}
	if rev <= p.store.Revision() {
		return nil
	}
	wait, cancel := context.WithTimeout(ctx, reachWait)
	defer cancel()
	if err := p.store.Wait(wait, rev); err != nil {
		return tooLarge(rev, p.store.Revision())
	}
	return nil
}

func tooLarge(asked, have api.Revision) error {
	err := apierrors.NewTimeoutError(fmt.Sprintf("Too large resource version: %d, current: %d", asked, have), 1)
	err.ErrStatus.Details.Causes = []metav1.StatusCause{{
		Type: metav1.CauseTypeResourceVersionTooLarge, Message: "Too large resource version",
	}}
	return err
}

// versionError turns an error about a revision into the API's.
func versionError(err error, r *Request, asked, have api.Revision) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, store.ErrCompacted):
		return apierrors.NewResourceExpired("The resourceVersion for the provided list is too old.")
	case errors.Is(err, store.ErrFuture):
		return tooLarge(asked, have)
	}
	return storeError(err, r)
}
