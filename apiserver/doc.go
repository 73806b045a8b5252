// Package apiserver serves the Kubernetes API over HTTP, and in process to Yare's own components. It
// replaces kube-apiserver and k8s.io/apiserver.
//
// A request goes through
//
//	recover > count > parse URL > authenticate > audit > impersonate > fairness > authorize > serve
//
// where serving an API object means to negotiate formats, decode, call the pipeline (package rest) and encode. The
// in-process client (ClientAs) enters at authorize and neither decodes nor encodes.
//
// Vocabulary: a target is what a URL names; a format is an encoding with its shape (the object, a Table, only
// metadata); a kind's endpoint is its rest.Any.
//
// Invariants:
//   - An object is encoded once per format and revision, by its store.Entry; lists and watch events are made of those
//     bytes.
//   - Whatever a client sends, the answer is a metav1.Status with a 4xx code and never the end of the process.
//   - Nothing is computed at start that a request may not need: discovery and OpenAPI are made on the first request.
package apiserver
