package rest

import (
	"context"
	"fmt"
	"net/url"
	"reflect"
	"strconv"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/conversion/queryparams"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/yare-dev/yare/api"
)

// Connect asks admission whether a subresource may be opened by the query, and returns the query that it is to be opened by instead, nil
// where admission did not change it. The kind's Connect is the caller's to run.
func (p *Pipeline) Connect(ctx context.Context, r *Request, parent api.Object, q url.Values) (url.Values, error) {
	sub := r.Any.Sub(r.Sub)
	if sub == nil || sub.Opens == nil { // what is only read
		return nil, nil
	}
	opens := sub.Opens()
	if err := readQuery(q, opens); err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	opens.GetObjectKind().SetGroupVersionKind(r.Any.Kind.GroupVersion().WithKind(sub.Kind))
	a := p.admitting(ctx, r, OpConnect, nil, parent)
	a.Opens = opens
	if err := p.mutate(ctx, a); err != nil {
		return nil, err
	}
	if err := p.validate(ctx, a); err != nil {
		return nil, err
	}
	if !a.taken {
		return nil, nil
	}
	made, err := queryparams.Convert(a.Opens)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	return made, nil
}

// readQuery sets the fields of o, a struct of strings, booleans and lists of strings and numbers, to the values of q that have
// their names.
func readQuery(q url.Values, o runtime.Object) error {
	v := reflect.ValueOf(o).Elem()
	for i := range v.NumField() {
		name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
		values, given := q[name]
		if name == "" || !given {
			continue
		}
		switch f := v.Field(i); f.Interface().(type) {
		case string:
			f.SetString(q.Get(name))
		case bool: // set also by its mere presence
			text := strings.ToLower(q.Get(name))
			f.SetBool(text != "false" && text != "0")
		case []string:
			f.Set(reflect.ValueOf(values))
		case []int32:
			var all []int32
			for _, list := range values {
				for text := range strings.SplitSeq(list, ",") {
					n, err := strconv.ParseInt(text, 10, 32)
					if err != nil {
						return fmt.Errorf("%s: %q is no number", name, text)
					}
					all = append(all, int32(n))
				}
			}
			f.Set(reflect.ValueOf(all))
		}
	}
	return nil
}
