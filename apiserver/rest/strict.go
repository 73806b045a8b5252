package rest

import (
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Strictness says what happens to fields that are unknown or given twice (fieldValidation).
type Strictness string

// check tells the client of strict errors as far as s asks for it. It returns what is an error.
func (s Strictness) check(r *Request, strict []error) []error {
	switch s {
	case metav1.FieldValidationStrict:
		return strict
	case metav1.FieldValidationWarn:
		for _, e := range strict {
			for _, text := range Warnings(e) {
				r.warn(text)
			}
		}
	}
	return nil
}

// Warnings are the texts in which a strict error is told to the client: one for each line of an error of YAML.
func Warnings(strict error) []string {
	text := strict.Error()
	lines, ok := strings.CutPrefix(strings.TrimPrefix(text, "error converting YAML to JSON: "), "yaml: unmarshal errors:\n")
	if !ok {
		return []string{text}
	}
	out := strings.Split(lines, "\n")
	for i := range out {
		out[i] = strings.TrimSpace(out[i])
	}
	return out
}
