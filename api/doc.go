// Package api is what Yare adds to the types of k8s.io/api: the table of kinds,
// the encodings of objects, and pure functions of one type that several
// components share.
//
// Types and wire formats are upstream's; nothing here redefines them. Every
// component knows a kind by its *Kind value (PodKind, ServiceKind, ...), never by
// a string or a reflect.Type.
//
// Vocabulary: a Kind is an API type with its names; a Key is namespace and name; an
// Object is a pointer to an upstream struct; a Revision is etcd's revision, which the
// API shows as resourceVersion.
//
// Invariant: an Object that was read from a store or a client is shared by every
// reader and must not be changed. Whoever wants to change one clones it first
// (client.Mutate does).
package api
