package differential

import "testing"

func TestCause(t *testing.T) {
	for message, want := range map[string]string{
		`Invalid value: "a: b": must be good`:                     `Invalid value: must be good`,
		`Invalid value: {"Type":"x","A":{"B":1}}: may not be set`: `Invalid value: may not be set`,
		`Unsupported value: "x": supported values: "b", "a"`:      `Unsupported value: supported values: "a", "b"`,
		`Required value`:                `Required value`,
		`Duplicate value: {"name":"a"}`: `Duplicate value`,
		`Forbidden: field is immutable`: `Forbidden: field is immutable`,
		`Invalid value: "x": one (e.g. 'my-name', regex used is '[a-z]([-a-z0-9]*[a-z0-9])?')`: `Invalid value: one (e.g. 'my-name', regex used is '[a-z]([-a-z0-9]*[a-z0-9])?')`,
	} {
		if got := cause(message); got != want {
			t.Errorf("%s\n got %s\nwant %s", message, got, want)
		}
	}
}
