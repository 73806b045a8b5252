// Package differential asks our API server and upstream's kube-apiserver the same, and compares the answers.
//
// A Script is a list of requests of which later ones may depend on earlier ones. Scripts come from three places:
//
//   - the golden files of apiserver/builtin: each case is created and updated on both servers (golden.go);
//   - testdata/*.txt: requests as text, for everything that is not of one kind (text.go);
//   - discovery: each kind that is served is put through the same list of right and wrong requests (kinds.go), with the
//     golden file's document as the minimal object and k8s.io/api/testdata as the full one.
//
// Compared are the status code, the warnings, the content type and the body as a tree, without what differs from run to run
// (answer.go). Of a refused object the causes are compared and not the message that repeats them. A difference must be
// explained in testdata/differences.txt, and an explanation must be of a difference that there is. testdata/open.txt lists, without
// values, those that are neither mended nor explained yet; the test fails of others, and of those that are mended and still listed.
//
// Both servers run alone: no controller, so that nothing changes but by the requests. Objects that a script made are removed
// at its end.
package differential

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"k8s.io/client-go/tools/clientcmd"
)

// Server is one of the two.
type Server struct {
	url string
	web *http.Client
}

// Open returns the server of an administrator's kubeconfig.
func Open(kubeconfig string) (*Server, error) {
	cfg, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, err
	}
	cert, err := tls.X509KeyPair(cfg.CertData, cfg.KeyData)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(cfg.CAData)
	return &Server{url: cfg.Host, web: &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{cert}}, ForceAttemptHTTP2: true,
	}}}, nil
}

// Script is a list of requests.
type Script struct {
	Name  string
	Steps []Step
}

// Step is a request.
type Step struct {
	Name   string
	Method string
	Path   string // may have ${name}, like Body
	Header map[string]string
	Body   string
	// Object is the body; of an update a merge patch of the last object that was answered.
	Object map[string]any
	// Keep names parts of the answer, by path, for later steps.
	Keep map[string]string
}

// run asks a server the script's requests and removes what they made.
func (s *Server) run(ctx context.Context, script Script) ([]Answer, error) {
	answers := make([]Answer, 0, len(script.Steps))
	kept := map[string]string{}
	var last map[string]any // the last object
	var made []string
	for _, step := range script.Steps {
		fill := func(text string) string {
			for name, value := range kept {
				text = strings.ReplaceAll(text, "${"+name+"}", value)
			}
			return text
		}
		body := []byte(fill(step.Body))
		if step.Object != nil {
			object := step.Object
			if step.Method == http.MethodPut {
				object = merge(last, object)
			}
			var err error
			if body, err = json.Marshal(object); err != nil {
				return nil, err
			}
		}
		a, err := s.ask(ctx, step, fill(step.Path), body)
		if err != nil {
			return nil, fmt.Errorf("%s: %s: %w", script.Name, step.Name, err)
		}
		for name, path := range step.Keep {
			kept[name] = fmt.Sprint(at(a.Object, path))
		}
		if a.Object != nil && a.Object["kind"] != "Status" {
			last = a.Object
		}
		if name, ok := at(a.Object, "metadata.name").(string); ok && a.Code == http.StatusCreated && !strings.Contains(step.Path, "dryRun") {
			path, _, _ := strings.Cut(fill(step.Path), "?")
			if step.Method == http.MethodPost { // an update or apply names what it makes
				path = strings.TrimSuffix(path, "/") + "/" + name
			}
			made = append(made, path)
		}
		answers = append(answers, a)
	}
	var errs []error
	for i := len(made) - 1; i >= 0; i-- {
		errs = append(errs, s.remove(ctx, made[i]))
	}
	return answers, errors.Join(errs...)
}

func (s *Server) ask(ctx context.Context, step Step, path string, body []byte) (Answer, error) {
	r, err := http.NewRequestWithContext(ctx, step.Method, s.url+path, bytes.NewReader(body))
	if err != nil {
		return Answer{}, err
	}
	r.Header.Set("User-Agent", "differential/1")
	r.Header.Set("Accept", "application/json")
	if len(body) > 0 {
		r.Header.Set("Content-Type", "application/json")
	}
	for name, value := range step.Header {
		if value == "" {
			r.Header.Del(name)
		} else {
			r.Header.Set(name, value)
		}
	}
	response, err := s.web.Do(r)
	if err != nil {
		return Answer{}, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return Answer{}, err
	}
	return read(response, text), nil
}

// remove deletes an object for good: no grace, no finalizers. It need not be there any more.
func (s *Server) remove(ctx context.Context, path string) error {
	finalizers := Step{Method: http.MethodPatch, Header: map[string]string{"Content-Type": "application/merge-patch+json"}}
	if _, err := s.ask(ctx, finalizers, path, []byte(`{"metadata":{"finalizers":null}}`)); err != nil {
		return err
	}
	if _, err := s.ask(ctx, Step{Method: http.MethodDelete}, path+"?gracePeriodSeconds=0", nil); err != nil {
		return err
	}
	if name, ok := strings.CutPrefix(path, "/api/v1/namespaces/"); ok && !strings.Contains(name, "/") {
		body := fmt.Appendf(nil, `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":%q},"spec":{}}`, name)
		if _, err := s.ask(ctx, Step{Method: http.MethodPut}, path+"/finalize", body); err != nil {
			return err
		}
	}
	// Removing the finalizers may have been refused before the deletion and not be after it.
	if _, err := s.ask(ctx, finalizers, path, []byte(`{"metadata":{"finalizers":null}}`)); err != nil {
		return err
	}
	gone, err := s.ask(ctx, Step{Method: http.MethodGet}, path, nil)
	if err == nil && gone.Code != http.StatusNotFound {
		err = fmt.Errorf("%s is still there: %d", path, gone.Code)
	}
	return err
}
