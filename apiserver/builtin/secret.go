package builtin

import (
	"encoding/json"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/apiserver/rest"
)

func secrets() *rest.Resource[*corev1.Secret] {
	return &rest.Resource[*corev1.Secret]{
		Default: func(s *corev1.Secret) {
			setDefault(&s.Type, corev1.SecretTypeOpaque)
			// stringData is for writers only.
			for k, v := range s.StringData {
				if s.Data == nil {
					s.Data = map[string][]byte{}
				}
				s.Data[k] = []byte(v)
			}
			s.StringData = nil
		},
		Validate:       validateSecret,
		ValidateUpdate: secretUpdate,
		Fields:         func(s *corev1.Secret) fields.Set { return fields.Set{"type": string(s.Type)} },
		Columns: []rest.Column[*corev1.Secret]{
			{Name: "Type", Description: corev1.Secret{}.SwaggerDoc()["type"], Cell: func(s *corev1.Secret) any { return string(s.Type) }},
			{Name: "Data", Description: corev1.Secret{}.SwaggerDoc()["data"], Cell: func(s *corev1.Secret) any { return len(s.Data) }},
			{Name: "Age"},
		},
	}
}

func validateSecret(s *corev1.Secret) (errs field.ErrorList) {
	data, size := field.NewPath("data"), 0
	for _, k := range sortedKeys(s.Data) {
		size += len(s.Data[k])
		errs = append(errs, texts(data.Key(k), k, validation.IsConfigMapKey(k))...)
	}
	if size > corev1.MaxSecretSize {
		errs = append(errs, field.TooLong(data, "", corev1.MaxSecretSize))
	}
	required := func(keys ...string) {
		for _, k := range keys {
			if _, ok := s.Data[k]; !ok {
				errs = append(errs, field.Required(data.Key(k), ""))
			}
		}
	}
	switch s.Type {
	case corev1.SecretTypeServiceAccountToken:
		if s.Annotations[corev1.ServiceAccountNameKey] == "" {
			errs = append(errs, field.Required(field.NewPath("metadata", "annotations").Key(corev1.ServiceAccountNameKey), ""))
		}
	case corev1.SecretTypeDockercfg:
		errs = append(errs, jsonKey(s, corev1.DockerConfigKey)...)
	case corev1.SecretTypeDockerConfigJson:
		errs = append(errs, jsonKey(s, corev1.DockerConfigJsonKey)...)
	case corev1.SecretTypeBasicAuth:
		_, user := s.Data[corev1.BasicAuthUsernameKey]
		_, password := s.Data[corev1.BasicAuthPasswordKey]
		if !user && !password {
			errs = append(errs, field.Required(data.Key(corev1.BasicAuthUsernameKey), ""), field.Required(data.Key(corev1.BasicAuthPasswordKey), ""))
		}
	case corev1.SecretTypeSSHAuth:
		if len(s.Data[corev1.SSHAuthPrivateKey]) == 0 {
			errs = append(errs, field.Required(data.Key(corev1.SSHAuthPrivateKey), ""))
		}
	case corev1.SecretTypeTLS:
		required(corev1.TLSCertKey, corev1.TLSPrivateKeyKey)
	}
	return errs
}

func jsonKey(s *corev1.Secret, key string) field.ErrorList {
	at := field.NewPath("data").Key(key)
	v, ok := s.Data[key]
	if !ok {
		return field.ErrorList{field.Required(at, "")}
	}
	if err := json.Unmarshal(v, &map[string]any{}); err != nil {
		// The content is secret, so that the parser's message, which quotes it, is not shown.
		return field.ErrorList{field.Invalid(at, "<secret contents redacted>", "must be a JSON object")}
	}
	return nil
}

func secretUpdate(now, old *corev1.Secret) (errs field.ErrorList) {
	errs = immutable(now.Type, old.Type, field.NewPath("type"))
	if !deref(old.Immutable) {
		return errs
	}
	const text = "field is immutable when `immutable` is set"
	if !deref(now.Immutable) {
		errs = append(errs, field.Forbidden(field.NewPath("immutable"), text))
	}
	if !equality.Semantic.DeepEqual(now.Data, old.Data) {
		errs = append(errs, field.Forbidden(field.NewPath("data"), text))
	}
	return errs
}
