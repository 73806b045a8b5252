package apiserver

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/yare-dev/yare/apiserver/aggregator"
	"github.com/yare-dev/yare/apiserver/audit"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/apiserver/authz"
	"github.com/yare-dev/yare/apiserver/fairness"
	"github.com/yare-dev/yare/apiserver/rest"
)

// call is one request on its way.
type call struct {
	s *Server
	// catalog is what was served when the request came.
	catalog *catalog
	w       *response
	r       *http.Request
	t       *target
	// svc is of the server that is to serve the request; nil: this one.
	svc  *aggregator.Service
	user *authn.User
	// attributes are what the request is classified and authorized by.
	attributes *authz.Attributes
	// record is what the audit log gets; nil where it gets nothing.
	record *audit.Record
	// begun gives back what the beginning of a watch took; it may be called again.
	begun func()
	// queued is how long the request waited for its turn.
	queued time.Duration
	// warnings are those that the answer has, whole.
	warnings []string
}

// response notes what was answered.
type response struct {
	http.ResponseWriter
	code  int
	bytes int64
	// started is told the code of a long answer as it begins; it may be nil.
	started func(code int)
}

func (w *response) WriteHeader(code int) {
	if w.code == 0 && code >= 200 {
		w.code = code
		if w.started != nil {
			w.started(code)
		}
	}
	w.ResponseWriter.WriteHeader(code)
}

func (w *response) Write(b []byte) (int, error) {
	if w.code == 0 {
		w.code = http.StatusOK
		if w.started != nil {
			w.started(w.code)
		}
	}
	n, err := w.ResponseWriter.Write(b)
	w.bytes += int64(n)
	return n, err
}

// Unwrap lets http.ResponseController and hijacking proxies reach the connection.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// requestTimeout bounds requests that are no watch or stream, as upstream.
const requestTimeout = time.Minute

// writeGrace is how much longer a client may take to read the answer of such a request. One that does not read it would keep
// its places for ever.
const writeGrace = 5 * time.Second

// ServeHTTP serves one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := &call{s: s, catalog: s.catalog.Load(), w: &response{ResponseWriter: w}, r: r, t: parse(r), begun: func() {}}
	begin := time.Now()
	defer func() {
		p := recover()
		defer func() { c.record.Complete(c.w.code, p) }()
		if p != nil {
			if p == http.ErrAbortHandler {
				panic(p) // net/http's own way to end a connection
			}
			s.deps.Log.Error("request panicked", "method", r.Method, "path", r.URL.Path, "err", p, "stack", string(debug.Stack()))
			if c.w.code == 0 {
				c.fail(apierrors.NewInternalError(errors.New("this request caused the apiserver to panic. Look in the logs for details")))
			}
		}
		s.meter.observe(c, time.Since(begin))
	}()
	if r.ProtoMajor == 1 { // the one before, on the same connection, has left its deadline there, which bounds its last bytes too
		_ = ignore(http.NewResponseController(w).SetWriteDeadline(time.Time{}))
	}
	c.w.Header().Set("Cache-Control", "no-cache, private")
	if s.deps.Led != nil && !s.deps.Led() {
		c.w.Header().Set(NoMajority, "true")
	}
	if err := c.serve(begin); err != nil {
		c.fail(err)
	}
}

func (c *call) serve(begin time.Time) error {
	if h := c.s.deps.Open[c.r.URL.Path]; h != nil {
		c.open(h)
		return nil
	}
	c.svc = c.s.deps.Aggregator.State().ForPath(c.t.path)
	u, err := c.s.authenticate(c.r)
	c.s.meter.gate.authenticated(c.r, u, err, time.Since(begin))
	if err != nil {
		c.audit(&authn.User{}, begin)
		return err
	}
	c.user = u
	c.audit(u, begin)
	// They have served their purpose.
	authn.DropTokens(c.r.Header)
	for i := range c.s.naming {
		c.s.naming[i].Drop(c.r.Header)
	}
	if err := c.impersonate(); err != nil {
		return err
	}
	ctx := authn.WithUser(c.r.Context(), c.user)
	c.attributes = c.t.attributes(c.user, c.r.URL.Query())
	release, err := c.enter(begin)
	if err != nil {
		return err
	}
	defer release()
	if !c.long() {
		limit, err := c.timeout()
		if err != nil {
			return err
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
		deadline := http.NewResponseController(c.w)
		_ = ignore(deadline.SetWriteDeadline(time.Now().Add(limit + writeGrace)))
		if c.r.ContentLength != 0 { // a body that trickles in must not hold a place for ever
			_ = ignore(deadline.SetReadDeadline(time.Now().Add(requestTimeout)))
		}
	}
	c.r = c.r.WithContext(ctx)
	asked := time.Now()
	reason, cause, err := c.s.decide(ctx, c.attributes)
	c.s.meter.gate.authorized(err, cause, time.Since(asked))
	decided(c.record, reason, err)
	if err != nil {
		return err
	}
	if c.svc != nil {
		c.elsewhere(c.svc)
		return nil
	}
	if c.t.isObject {
		return c.object()
	}
	return c.plain()
}

// elsewhere has another server serve the call.
func (c *call) elsewhere(svc *aggregator.Service) {
	if c.long() {
		c.begun() // the work is another's
		ctx, cancel := c.stream()
		defer cancel()
		c.r = c.r.WithContext(ctx)
	}
	c.s.deps.Aggregator.Serve(svc, c.user, c.w, c.r)
}

// timeout is for how long a request is served: what the client asks for, up to requestTimeout.
func (c *call) timeout() (time.Duration, error) {
	if !strings.Contains(c.r.URL.RawQuery, "timeout") {
		return requestTimeout, nil
	}
	text := c.r.URL.Query().Get("timeout")
	if text == "" {
		return requestTimeout, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0, apierrors.NewBadRequest("invalid timeout specified in the request URL - " + err.Error())
	}
	if d <= 0 {
		return requestTimeout, nil
	}
	return min(d, requestTimeout), nil
}

// audit begins the record of the request.
func (c *call) audit(u *authn.User, begin time.Time) {
	if c.s.deps.Audit == nil {
		return
	}
	c.record = c.s.deps.Audit.Begin(c.w, c.r, c.t.attributes(u, c.r.URL.Query()), begin)
	if c.record != nil && c.long() {
		c.w.started = c.record.Started
	}
}

// decided notes what the authorizer said.
func decided(record *audit.Record, reason string, err error) {
	if record == nil {
		return
	}
	decision := "allow"
	if err != nil {
		decision = "forbid"
	}
	record.Annotate("authorization.k8s.io/decision", decision)
	record.Annotate("authorization.k8s.io/reason", reason)
}

// long says that the request may go on for ever.
func (c *call) long() bool {
	// Which subresources of other servers are sessions is not known here.
	if c.t.watch || c.svc != nil && c.r.Header.Get("Upgrade") != "" {
		return true
	}
	switch c.t.sub {
	case "exec", "attach", "portforward", "proxy", "log":
		return true
	}
	return false
}

// authenticate finds the user. A request without credentials is anonymous; with bad ones it is refused.
func (s *Server) authenticate(r *http.Request) (*authn.User, error) {
	var bad error
	for _, a := range s.deps.Authenticators {
		u, err := a.Authenticate(r)
		if err != nil {
			bad = err
			continue
		}
		if u == nil {
			continue
		}
		if !u.In(authn.Authenticated) && u.Name != authn.Anonymous {
			v := *u
			v.Groups = append(append([]string(nil), u.Groups...), authn.Authenticated)
			u = &v
		}
		return u, nil
	}
	if bad != nil {
		s.deps.Log.Debug("credentials refused", "path", r.URL.Path, "err", bad)
		return nil, apierrors.NewUnauthorized("Unauthorized")
	}
	if s.deps.Anonymous != nil && !s.deps.Anonymous(r.URL.Path) {
		return nil, apierrors.NewUnauthorized("Unauthorized")
	}
	return &authn.User{Name: authn.Anonymous, Groups: []string{authn.Unauthenticated}}, nil
}

// authorize returns Forbidden unless the user may.
func (s *Server) authorize(ctx context.Context, a *authz.Attributes) error {
	_, _, err := s.decide(ctx, a)
	return err
}

// decide returns Forbidden unless the user may, and why; the cause is what the authorizer failed with.
func (s *Server) decide(ctx context.Context, a *authz.Attributes) (reason string, cause, err error) {
	if a.User.In(authn.Masters) {
		return "", nil, nil
	}
	ok, reason, cause := s.deps.Authorizer.Authorize(ctx, a)
	if ok {
		return reason, nil, nil
	}
	text := refusal(a)
	switch {
	case reason != "":
		text += ": " + reason
	case cause != nil:
		text += ": " + cause.Error()
	}
	if a.Path != "" {
		return reason, cause, apierrors.NewForbidden(schema.GroupResource{}, "", errors.New(text))
	}
	return reason, cause, apierrors.NewForbidden(schema.GroupResource{Group: a.Group, Resource: a.Resource}, a.Name, errors.New(text))
}

func refusal(a *authz.Attributes) string {
	if a.Path != "" {
		return fmt.Sprintf("User %q cannot %s path %q", a.User.Name, a.Verb, a.Path)
	}
	resource := a.Resource
	if a.Subresource != "" {
		resource += "/" + a.Subresource
	}
	where := "at the cluster scope"
	if a.Namespace != "" {
		where = fmt.Sprintf("in the namespace %q", a.Namespace)
	}
	return fmt.Sprintf("User %q cannot %s resource %q in API group %q %s", a.User.Name, a.Verb, resource, a.Group, where)
}

// impersonate makes the call another user's where the headers ask for it and its own user may.
func (c *call) impersonate() error {
	h := c.r.Header
	name, groups, uid := h.Get("Impersonate-User"), h["Impersonate-Group"], h.Get("Impersonate-Uid")
	var extra map[string][]string
	for k, vs := range h {
		if key, ok := strings.CutPrefix(k, "Impersonate-Extra-"); ok {
			key = strings.ToLower(key)
			if name, err := url.PathUnescape(key); err == nil {
				key = name
			}
			if extra == nil {
				extra = map[string][]string{}
			}
			extra[key] = vs
		}
	}
	if name == "" && len(groups) == 0 && uid == "" && len(extra) == 0 {
		return nil
	}
	if name == "" {
		return apierrors.NewBadRequest("requested impersonation of groups, a UID or extras without impersonating a user")
	}
	u := &authn.User{Name: name, UID: uid, Groups: groups, Extra: extra}
	for _, a := range c.needed(u) {
		if err := c.s.authorize(c.r.Context(), a); err != nil {
			return err
		}
	}
	if ns, _, ok := serviceAccount(name); ok && len(groups) == 0 {
		u.Groups = []string{authn.ServiceAccounts, authn.ServiceAccounts + ":" + ns}
	}
	// Who takes somebody's part is authenticated, unless the groups say that this one is not.
	switch known := u.In(authn.Authenticated); {
	case name == authn.Anonymous && !u.In(authn.Unauthenticated):
		u.Groups = append(slices.Clone(u.Groups), authn.Unauthenticated)
	case name != authn.Anonymous && !known && !u.In(authn.Unauthenticated):
		u.Groups = append(slices.Clone(u.Groups), authn.Authenticated)
	}
	c.record.Impersonate(u)
	for k := range h {
		if strings.HasPrefix(k, "Impersonate-") {
			h.Del(k)
		}
	}
	c.user = u
	return nil
}

// needed are the permissions that impersonating u takes.
func (c *call) needed(u *authn.User) []*authz.Attributes {
	ask := func(group, resource, sub, ns, name string) *authz.Attributes {
		return &authz.Attributes{User: c.user, Verb: "impersonate", Group: group, Version: "v1",
			Resource: resource, Subresource: sub, Namespace: ns, Name: name}
	}
	var as []*authz.Attributes
	if ns, sa, ok := serviceAccount(u.Name); ok {
		as = append(as, ask("", "serviceaccounts", "", ns, sa))
	} else {
		as = append(as, ask("", "users", "", "", u.Name))
	}
	for _, g := range u.Groups {
		as = append(as, ask("", "groups", "", "", g))
	}
	if u.UID != "" {
		as = append(as, ask("authentication.k8s.io", "uids", "", "", u.UID))
	}
	for k, vs := range u.Extra {
		for _, v := range vs {
			as = append(as, ask("authentication.k8s.io", "userextras", k, "", v))
		}
	}
	return as
}

func serviceAccount(user string) (ns, name string, ok bool) {
	rest, ok := strings.CutPrefix(user, "system:serviceaccount:")
	if !ok {
		return "", "", false
	}
	ns, name, ok = strings.Cut(rest, ":")
	return ns, name, ok
}

// limit counts the requests that are served at once, and bounds them where nothing else does.
type limit struct {
	served atomic.Int64
	most   int64
}

func newLimit(n int) *limit { return &limit{most: int64(n)} }

// enter takes a place among the requests that are served, or says that there are too many. Streams need none; without
// fairness neither do watches, masters and health checks: an overloaded server must still be looked after.
func (c *call) enter(begin time.Time) (release func(), err error) {
	fair := c.s.deps.Fairness
	if c.long() && (fair == nil || !c.t.watch) || fair == nil && (!c.t.isObject || c.user.In(authn.Masters)) {
		return func() {}, nil
	}
	var ticket fairness.Ticket
	if fair != nil {
		var refusal string
		asked := time.Now()
		ticket, refusal = fair.Enter(c.r.Context(), c.attributes, c.seats(), begin)
		c.queued = time.Since(asked)
		if ticket.SchemaUID != "" {
			c.w.Header()["X-Kubernetes-Pf-Flowschema-Uid"] = []string{ticket.SchemaUID}
			c.w.Header()["X-Kubernetes-Pf-Prioritylevel-Uid"] = []string{ticket.LevelUID}
		}
		if refusal != "" {
			return nil, c.tooMany(ticket.After)
		}
		if c.t.watch { // only its beginning is work, and does not go on for ever either
			leave := sync.OnceFunc(ticket.Leave)
			late := time.AfterFunc(requestTimeout, leave)
			c.begun = func() {
				late.Stop()
				leave()
			}
			return c.begun, nil
		}
	}
	l := c.s.reads
	if c.t.verb != "get" && c.t.verb != "list" {
		l = c.s.writes
	}
	if n := l.served.Add(1); fair == nil && n > l.most {
		l.served.Add(-1)
		return nil, c.tooMany(1)
	}
	return func() {
		l.served.Add(-1)
		if fair != nil {
			ticket.Leave()
		}
	}, nil
}

// tooMany refuses the call, which may come again after so many seconds.
func (c *call) tooMany(after int) error {
	if c.t.isObject {
		c.s.meter.gate.terminate(c.labels(), http.StatusTooManyRequests)
	}
	return tooMany(after)
}

// tooMany refuses a request that may come again after so many seconds.
func tooMany(after int) error {
	return apierrors.NewTooManyRequests("Too many requests, please try again later.", after)
}

// Lists take a seat for each objectsPerSeat of what there is, up to mostSeats.
const (
	objectsPerSeat = 100
	mostSeats      = 10
)

// seats is how much of the server the request takes.
func (c *call) seats() int {
	t := c.t
	if t.verb != "list" && !(t.watch && strings.Contains(c.r.URL.RawQuery, "sendInitialEvents")) || c.attributes.Name != "" {
		return 1
	}
	a, ok := c.catalog.at(t)
	if !ok || !a.Stored() {
		return 1
	}
	n := c.s.deps.Store.Snapshot(a.Kept()).Len()
	if limit, err := strconv.Atoi(c.r.URL.Query().Get("limit")); err == nil && limit > 0 {
		n = min(n, limit)
	}
	return max(1, min((n+objectsPerSeat-1)/objectsPerSeat, mostSeats))
}

// fail answers with the Status of err.
func (c *call) fail(err error) {
	status := statusOf(err)
	code := int(status.Code)
	if code >= http.StatusInternalServerError {
		c.s.deps.Log.Warn("request failed", "method", c.r.Method, "path", c.r.URL.Path, "code", code, "err", err)
	}
	if status.Details != nil && status.Details.RetryAfterSeconds > 0 {
		c.w.Header().Set("Retry-After", strconv.Itoa(int(status.Details.RetryAfterSeconds)))
	}
	c.record.Failed(&status)
	f := negotiateError(c.r)
	c.write(f, code, &status)
}

// statusOf is what a client is told of an error.
func statusOf(err error) metav1.Status {
	var st apierrors.APIStatus
	if !errors.As(err, &st) {
		if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
			st = rest.Timeout(err)
		} else {
			st = apierrors.NewInternalError(err)
		}
	}
	status := st.Status()
	status.Kind, status.APIVersion = "Status", "v1"
	if status.Code == 0 {
		status.Code = http.StatusInternalServerError
	}
	return status
}
