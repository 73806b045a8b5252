package remote

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/yare-dev/yare/api"
)

// maxAnswer bounds what Ask reads.
const maxAnswer = 32 << 20

// Ask gets the JSON below the path of a group's version, /apis/GROUP/VERSION/PATH, which need be of no kind that is known here. It is not
// served where the API server knows no such group.
func (c *Client) Ask(ctx context.Context, gv schema.GroupVersion, path string, query url.Values) (body []byte, served bool, err error) {
	at := c.base.JoinPath("apis", gv.Group, gv.Version, path)
	at.RawQuery = query.Encode()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, at.String(), http.NoBody)
	if err != nil {
		return nil, false, err
	}
	r.Header.Set("Accept", jsonType)
	answer, err := c.http.Do(r)
	if err != nil {
		return nil, false, fmt.Errorf("get %s: %w", at.Path, err)
	}
	defer answer.Body.Close()
	if body, err = io.ReadAll(io.LimitReader(answer.Body, maxAnswer)); err != nil {
		return nil, false, fmt.Errorf("get %s: read the answer: %w", at.Path, err)
	}
	switch answer.StatusCode {
	case http.StatusOK:
		return body, true, nil
	case http.StatusNotFound:
		// Whoever serves the group says what he did not find; nobody says nothing.
		if decode(answer.Header.Get("Content-Type"), body, &metav1.Status{}) != nil {
			return nil, false, nil
		}
	}
	return nil, true, status(answer, body, "get", target{kind: &api.Kind{Group: gv.Group, Version: gv.Version}})
}
