package differential

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// kindsOf are the kinds of a discovery document.
func kindsOf(list map[string]any) (kinds []Kind) {
	byName := map[string]int{}
	resources, _ := list["resources"].([]any)
	version, _ := list["groupVersion"].(string)
	g, v, ok := strings.Cut(version, "/")
	if !ok {
		g, v = "", version
	}
	for _, r := range resources {
		m, _ := r.(map[string]any)
		name := fmt.Sprint(m["name"])
		plural, sub, isSub := strings.Cut(name, "/")
		if isSub {
			if i, ok := byName[plural]; ok {
				kinds[i].Subresources = append(kinds[i].Subresources, sub)
			}
			continue
		}
		var verbs []string
		list, _ := m["verbs"].([]any)
		for _, verb := range list {
			verbs = append(verbs, fmt.Sprint(verb))
		}
		byName[name] = len(kinds)
		kinds = append(kinds, Kind{Group: g, Version: v, Kind: fmt.Sprint(m["kind"]), Plural: name, Namespaced: m["namespaced"] == true, Verbs: verbs})
	}
	return kinds
}

// full is upstream's example of a kind with every field set.
func full(dir string, k Kind) (map[string]any, error) {
	group := k.Group
	if group == "" {
		group = "core"
	}
	text, err := os.ReadFile(filepath.Join(dir, group+"."+k.Version+"."+k.Kind+".json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	doc := map[string]any{}
	return doc, json.Unmarshal(text, &doc)
}

// kindScripts put a kind through everything that is the same for all. minimal is an object that the API accepts, or nil.
func kindScripts(k Kind, minimal, full map[string]any) (scripts []Script) {
	const namespace = "default"
	b := &builder{kind: k, at: k.collection(namespace)}
	if full != nil && slices.Contains(k.Verbs, "create") {
		doc := merge(full, map[string]any{"metadata": nil})
		doc["metadata"] = map[string]any{"name": "full"}
		b.add("full", Step{Name: "create", Method: "POST", Path: b.at + "?dryRun=All", Object: doc},
			Step{Name: "create, strictly", Method: "POST", Path: b.at + "?dryRun=All&fieldValidation=Strict", Object: doc})
	}
	if slices.Contains(k.Verbs, "list") {
		b.lists()
	}
	if minimal == nil || !slices.Contains(k.Verbs, "create") {
		return b.scripts
	}
	meta := map[string]any{"name": "x1", "labels": map[string]any{"one": "1"}}
	if name, ok := at(minimal, "metadata.name").(string); ok {
		meta["name"] = name
	}
	for _, keep := range []string{"labels", "annotations"} {
		if m, ok := at(minimal, "metadata."+keep).(map[string]any); ok {
			meta[keep] = m
		}
	}
	b.doc = maps.Clone(minimal)
	b.doc["metadata"] = meta
	b.name = fmt.Sprint(meta["name"])
	b.mistakes()
	if !slices.Contains(k.Verbs, "get") { // nothing is stored
		b.add("create", Step{Name: "create", Method: "POST", Path: b.at, Object: b.doc})
		return b.scripts
	}
	b.life()
	b.updates()
	b.patches()
	b.applies()
	b.deletions()
	b.subresources()
	return b.scripts
}

// builder collects scripts of a kind.
type builder struct {
	kind     Kind
	at, name string
	doc      map[string]any
	scripts  []Script
}

func (b *builder) add(name string, steps ...Step) {
	b.scripts = append(b.scripts, Script{Name: "kind/" + strings.ToLower(b.kind.Plural) + "." + b.kind.Version + group(b.kind) + "/" + name, Steps: steps})
}

func group(k Kind) string {
	if k.Group == "" {
		return ""
	}
	return "." + k.Group
}

// with is the minimal object with a merge patch.
func (b *builder) with(patch map[string]any) map[string]any { return merge(b.doc, patch) }

func (b *builder) object() string { return b.at + "/" + b.name }

func (b *builder) create() Step {
	return Step{Name: "create", Method: "POST", Path: b.at, Object: b.doc}
}

type tree = map[string]any

// lists are requests that need no object.
func (b *builder) lists() {
	get := func(name, query string, header ...string) Step {
		s := Step{Name: name, Method: "GET", Path: b.at + query}
		if len(header) > 0 {
			s.Header = map[string]string{"Accept": header[0]}
		}
		return s
	}
	b.add("list",
		get("table", "?limit=1", tables),
		get("nothing", "?fieldSelector=metadata.name%3Dnone"),
		get("nothing as a table", "?fieldSelector=metadata.name%3Dnone", tables),
		get("nothing as metadata", "?fieldSelector=metadata.name%3Dnone", "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"),
		get("unknown field", "?fieldSelector=spec.none%3D1"),
		get("malformed field selector", "?fieldSelector=metadata.name"),
		get("malformed label selector", "?labelSelector=a%20b"),
		get("label selector", "?labelSelector=none%20in%20(a,b),!c"),
		get("malformed limit", "?limit=x"),
		get("malformed revision", "?resourceVersion=x"),
		get("match without revision", "?resourceVersionMatch=Exact"),
		get("unknown match", "?resourceVersion=1&resourceVersionMatch=Some"),
		get("malformed token", "?limit=1&continue=x"),
		get("wanted as nothing that is served", "?limit=1", "application/x-none"),
		get("none by name", "/none"),
		get("none by name as a table", "/none", tables),
		Step{Name: "wrong method", Method: "PUT", Path: b.at, Body: "{}"},
		Step{Name: "wrong method on an object", Method: "POST", Path: b.at + "/none", Body: "{}"},
		Step{Name: "unknown subresource", Method: "GET", Path: b.at + "/none/none"},
	)
}

// mistakes are objects that are refused, whatever the kind.
func (b *builder) mistakes() {
	meta := func(m tree) tree { return b.with(tree{"metadata": m}) }
	var steps []Step
	post := func(name string, body tree, query ...string) {
		steps = append(steps, Step{Name: name, Method: "POST", Path: b.at + "?" + strings.Join(append(query, "dryRun=All"), "&"), Object: body})
	}
	raw := func(name, body string, header ...string) {
		s := Step{Name: name, Method: "POST", Path: b.at + "?dryRun=All", Body: body}
		if len(header) > 0 {
			s.Header = map[string]string{"Content-Type": header[0]}
		}
		steps = append(steps, s)
	}
	text, err := json.Marshal(b.doc)
	if err != nil {
		text = []byte(err.Error())
	}
	post("dry", b.doc)
	post("no name", meta(tree{"name": nil}))
	post("name that no kind allows", meta(tree{"name": "a/b"}))
	post("name with capitals", meta(tree{"name": "Abc_d"}))
	post("long name", meta(tree{"name": strings.Repeat("a", 254)}))
	post("generated name", meta(tree{"name": nil, "generateName": "generated-"}))
	post("wrong generated name", meta(tree{"name": nil, "generateName": "Generated_"}))
	post("label key", meta(tree{"labels": tree{"a b": "1"}}))
	post("label value", meta(tree{"labels": tree{"a": "b c"}}))
	post("labels that are no map", meta(tree{"labels": 5}))
	post("annotation key", meta(tree{"annotations": tree{"a b": "1"}}))
	post("long annotation", meta(tree{"annotations": tree{"a": strings.Repeat("x", 1<<18+1)}}))
	post("finalizer", meta(tree{"finalizers": []any{"a b"}}))
	post("finalizer without a domain", meta(tree{"finalizers": []any{"abc"}}))
	post("owner", meta(tree{"ownerReferences": []any{tree{"apiVersion": "v1", "kind": "", "name": "", "uid": ""}}}))
	post("owner of no version", meta(tree{"ownerReferences": []any{tree{"apiVersion": "a/b/c", "kind": "A", "name": "a", "uid": "u"}}}))
	post("two controllers", meta(tree{"ownerReferences": []any{
		tree{"apiVersion": "v1", "kind": "Pod", "name": "a", "uid": "u", "controller": true},
		tree{"apiVersion": "v1", "kind": "Pod", "name": "b", "uid": "w", "controller": true}}}))
	post("event as owner", meta(tree{"ownerReferences": []any{tree{"apiVersion": "v1", "kind": "Event", "name": "a", "uid": "u"}}}))
	post("revision", meta(tree{"resourceVersion": "5"}))
	post("fields of the system", meta(tree{"uid": "u", "generation": 7, "creationTimestamp": "2020-01-01T00:00:00Z", "selfLink": "/a",
		"deletionTimestamp": "2020-01-01T00:00:00Z", "deletionGracePeriodSeconds": 5}))
	post("managed fields", meta(tree{"managedFields": []any{tree{"manager": "m", "operation": "None", "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": tree{}}}}))
	post("other namespace", meta(tree{"namespace": "kube-system"}))
	post("unknown namespace", meta(tree{"namespace": "none"}))
	post("other kind", b.with(tree{"kind": "Other"}))
	post("other version", b.with(tree{"apiVersion": "other/v9"}))
	post("no kind", b.with(tree{"kind": nil}))
	post("no version", b.with(tree{"apiVersion": nil}))
	post("no kind and no version", b.with(tree{"kind": nil, "apiVersion": nil}))
	post("unknown field", b.with(tree{"none": 1}))
	post("unknown field, strictly", b.with(tree{"none": 1, "metadata": tree{"other": 2}}), "fieldValidation=Strict")
	post("unknown field, with a warning", b.with(tree{"none": 1, "metadata": tree{"other": 2}}), "fieldValidation=Warn")
	post("unknown field, ignored", b.with(tree{"none": 1}), "fieldValidation=Ignore")
	post("unknown validation", b.doc, "fieldValidation=Some")
	post("unknown dry run", b.doc, "dryRun=Some")
	post("long manager", b.doc, "fieldManager="+strings.Repeat("m", 129))
	post("unprintable manager", b.doc, "fieldManager=a%00b")
	raw("nothing", "")
	raw("no JSON", "{")
	raw("no object", "[]")
	raw("null", "null")
	raw("empty object", "{}")
	raw("field twice", `{"metadata":{"name":"a"},`+string(text[1:]))
	raw("protobuf that is none", "k8s\x00nonsense", "application/vnd.kubernetes.protobuf")
	raw("unknown type", string(text), "application/x-none")
	raw("no YAML", "a: b: c", "application/yaml")
	raw("YAML", string(text), "application/yaml")
	b.add("mistakes", steps...)
}

// life is an object's, without trouble.
func (b *builder) life() {
	accept := func(s string) map[string]string { return map[string]string{"Accept": s} }
	b.add("life", b.create(),
		Step{Name: "create again", Method: "POST", Path: b.at, Object: b.doc},
		Step{Name: "get", Method: "GET", Path: b.object()},
		Step{Name: "get as a table", Method: "GET", Path: b.object(), Header: accept(tables)},
		Step{Name: "get as a table with the object", Method: "GET", Path: b.object() + "?includeObject=Object", Header: accept(tables)},
		Step{Name: "get as metadata", Method: "GET", Path: b.object(), Header: accept("application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io")},
		Step{Name: "get as YAML", Method: "GET", Path: b.object(), Header: accept("application/yaml")},
		Step{Name: "list", Method: "GET", Path: b.at + "?fieldSelector=metadata.name%3D" + b.name},
		Step{Name: "list as metadata", Method: "GET", Path: b.at + "?fieldSelector=metadata.name%3D" + b.name,
			Header: accept("application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io")},
		Step{Name: "delete", Method: "DELETE", Path: b.object()},
	)
}

func (b *builder) updates() {
	var steps []Step
	put := func(name string, patch tree, query ...string) {
		steps = append(steps, Step{Name: name, Method: "PUT", Path: b.object() + "?" + strings.Join(query, "&"), Object: patch})
	}
	put("nothing changed", tree{})
	put("label", tree{"metadata": tree{"labels": tree{"two": "2"}}})
	put("dry", tree{"metadata": tree{"labels": tree{"three": "3"}}}, "dryRun=All")
	put("without a revision", tree{"metadata": tree{"resourceVersion": nil, "labels": tree{"three": "3"}}})
	put("other revision", tree{"metadata": tree{"resourceVersion": "1"}})
	put("malformed revision", tree{"metadata": tree{"resourceVersion": "x"}})
	put("other name", tree{"metadata": tree{"name": "other"}})
	put("no name", tree{"metadata": tree{"name": nil}})
	put("other uid", tree{"metadata": tree{"uid": "other", "resourceVersion": nil}})
	put("other namespace", tree{"metadata": tree{"namespace": "kube-system"}})
	put("other kind", tree{"kind": "Other"})
	put("label value", tree{"metadata": tree{"labels": tree{"two": "a b"}}})
	put("generation", tree{"metadata": tree{"generation": 77}})
	put("finalizer", tree{"metadata": tree{"finalizers": []any{"example.com/a"}}})
	put("deletion by update", tree{"metadata": tree{"deletionTimestamp": "2020-01-01T00:00:00Z"}})
	put("unknown field, strictly", tree{"none": 1}, "fieldValidation=Strict")
	put("status", tree{"status": nil})
	steps = append(steps, Step{Name: "none", Method: "PUT", Path: b.at + "/none", Object: tree{"metadata": tree{"name": "none", "uid": nil, "resourceVersion": nil}}},
		Step{Name: "none with a revision", Method: "PUT", Path: b.at + "/none", Object: tree{"metadata": tree{"name": "none", "uid": nil, "resourceVersion": "5"}}})
	b.add("update", append([]Step{b.create()}, steps...)...)
}

func (b *builder) patches() {
	steps := []Step{b.create()}
	patch := func(name, kind, body string, query ...string) {
		steps = append(steps, Step{Name: name, Method: "PATCH", Path: b.object() + "?" + strings.Join(query, "&"), Body: body,
			Header: map[string]string{"Content-Type": kind}})
	}
	const jsonPatch, mergePatch, strategic = "application/json-patch+json", "application/merge-patch+json", "application/strategic-merge-patch+json"
	patch("json", jsonPatch, `[{"op":"add","path":"/metadata/annotations","value":{"a":"b"}},{"op":"test","path":"/metadata/annotations/a","value":"b"}]`)
	patch("json test", jsonPatch, `[{"op":"test","path":"/metadata/name","value":"other"}]`)
	patch("json remove", jsonPatch, `[{"op":"remove","path":"/metadata/none"}]`)
	patch("json copy and move", jsonPatch, `[{"op":"copy","from":"/metadata/annotations/a","path":"/metadata/annotations/c"},{"op":"move","from":"/metadata/annotations/a","path":"/metadata/annotations/d"}]`)
	patch("json that is none", jsonPatch, `[{"op":"none","path":"/metadata"}]`)
	patch("json that is an object", jsonPatch, `{}`)
	patch("json name", jsonPatch, `[{"op":"replace","path":"/metadata/name","value":"other"}]`)
	patch("merge", mergePatch, `{"metadata":{"annotations":{"m":"1","d":null}}}`)
	patch("merge dry", mergePatch, `{"metadata":{"annotations":{"m":"2"}}}`, "dryRun=All")
	patch("merge with a manager", mergePatch, `{"metadata":{"annotations":{"m":"3"}}}`, "fieldManager=else")
	patch("merge revision", mergePatch, `{"metadata":{"resourceVersion":"1"}}`)
	patch("merge uid", mergePatch, `{"metadata":{"uid":"u"}}`)
	patch("merge wrong type", mergePatch, `{"metadata":{"labels":7}}`)
	patch("merge unknown field, strictly", mergePatch, `{"none":1}`, "fieldValidation=Strict")
	patch("merge unknown field, with a warning", mergePatch, `{"none":1}`, "fieldValidation=Warn")
	patch("merge of an array", mergePatch, `[]`)
	patch("merge of nonsense", mergePatch, `{`)
	patch("merge of YAML", mergePatch, `metadata: {labels: {a: b}}`)
	patch("strategic", strategic, `{"metadata":{"labels":{"s":"1"},"finalizers":["example.com/a"]}}`)
	patch("strategic deletion", strategic, `{"metadata":{"labels":{"s":null},"$deleteFromPrimitiveList/finalizers":["example.com/a"]}}`)
	patch("strategic replacement", strategic, `{"metadata":{"annotations":{"$patch":"replace","only":"this"}}}`)
	patch("strategic of nonsense", strategic, `{"$patch":"none"}`)
	patch("strategic unknown field, strictly", strategic, `{"none":1}`, "fieldValidation=Strict")
	patch("unknown type", "application/x-none", `{}`)
	patch("type of objects", "application/json", `{}`)
	patch("force without apply", mergePatch, `{}`, "force=true")
	steps = append(steps, Step{Name: "none", Method: "PATCH", Path: b.at + "/none", Body: "{}", Header: map[string]string{"Content-Type": mergePatch}})
	b.add("patch", steps...)
}

func (b *builder) applies() {
	head := tree{"apiVersion": b.doc["apiVersion"], "kind": b.doc["kind"]}
	var steps []Step
	apply := func(name string, body tree, query ...string) {
		text, err := json.Marshal(body)
		if err != nil {
			text = []byte(err.Error())
		}
		steps = append(steps, Step{Name: name, Method: "PATCH", Path: b.object() + "?" + strings.Join(query, "&"), Body: string(text),
			Header: map[string]string{"Content-Type": "application/apply-patch+yaml"}})
	}
	label := func(v string) tree {
		return merge(head, tree{"metadata": tree{"name": b.name, "labels": tree{"applied": v}}})
	}
	apply("create", b.doc, "fieldManager=a")
	apply("again", b.doc, "fieldManager=a")
	apply("label", label("1"), "fieldManager=b")
	apply("conflict", label("2"), "fieldManager=c")
	apply("force", label("2"), "fieldManager=c", "force=true")
	apply("dry", label("3"), "fieldManager=c", "dryRun=All")
	apply("no longer applied", head, "fieldManager=b")
	apply("no manager", label("4"))
	apply("managed fields", merge(label("5"), tree{"metadata": tree{"managedFields": []any{tree{"manager": "x"}}}}), "fieldManager=d")
	apply("other name", merge(label("6"), tree{"metadata": tree{"name": "other"}}), "fieldManager=d")
	apply("other kind", merge(label("7"), tree{"kind": "Other"}), "fieldManager=d")
	apply("no kind", merge(label("8"), tree{"kind": nil}), "fieldManager=d")
	apply("unknown field", merge(label("9"), tree{"none": 1}), "fieldManager=d")
	apply("unknown field, ignored", merge(label("9"), tree{"none": 1}), "fieldManager=d", "fieldValidation=Ignore")
	apply("revision", merge(label("10"), tree{"metadata": tree{"resourceVersion": "1"}}), "fieldManager=d")
	steps = append(steps, Step{Name: "update", Method: "PUT", Path: b.object() + "?fieldManager=e", Object: tree{"metadata": tree{"labels": tree{"applied": "11"}}}},
		Step{Name: "read", Method: "GET", Path: b.object()}, Step{Name: "delete", Method: "DELETE", Path: b.object()})
	b.add("apply", steps...)
}

func (b *builder) deletions() {
	var steps []Step
	remove := func(name, query, body string) {
		steps = append(steps, Step{Name: name, Method: "DELETE", Path: b.object() + query, Body: body})
	}
	steps = append(steps, b.create())
	remove("dry", "?dryRun=All", "")
	remove("other uid", "", `{"preconditions":{"uid":"other"}}`)
	remove("other revision", "", `{"preconditions":{"resourceVersion":"1"}}`)
	remove("unknown propagation", "?propagationPolicy=Some", "")
	remove("both propagations", "", `{"orphanDependents":true,"propagationPolicy":"Orphan"}`)
	remove("negative grace", "?gracePeriodSeconds=-5", "")
	remove("malformed grace", "?gracePeriodSeconds=x", "")
	remove("options of another kind", "", `{"apiVersion":"v1","kind":"Pod"}`)
	remove("options of the group", "", `{"apiVersion":"`+fmt.Sprint(b.doc["apiVersion"])+`","kind":"DeleteOptions","dryRun":["All"]}`)
	remove("nonsense", "", `{`)
	steps = append(steps,
		Step{Name: "finalizer", Method: "PATCH", Path: b.object(), Body: `{"metadata":{"finalizers":["example.com/a"]}}`, Header: map[string]string{"Content-Type": "application/merge-patch+json"}})
	remove("waits for the finalizer", "?gracePeriodSeconds=0", "")
	steps = append(steps,
		Step{Name: "another finalizer", Method: "PATCH", Path: b.object(), Body: `{"metadata":{"finalizers":["example.com/a","example.com/b"]}}`, Header: map[string]string{"Content-Type": "application/merge-patch+json"}},
		Step{Name: "last finalizer", Method: "PATCH", Path: b.object(), Body: `{"metadata":{"finalizers":null}}`, Header: map[string]string{"Content-Type": "application/merge-patch+json"}})
	remove("none", "", "")
	b.add("delete", steps...)
	for _, policy := range []string{"Foreground", "Background", "Orphan"} {
		b.add("delete "+policy, b.create(),
			Step{Name: "delete", Method: "DELETE", Path: b.object() + "?gracePeriodSeconds=0&propagationPolicy=" + policy},
			Step{Name: "get", Method: "GET", Path: b.object()})
	}
	if slices.Contains(b.kind.Verbs, "deletecollection") {
		labelled := b.with(tree{"metadata": tree{"labels": tree{"collection": "this"}}})
		b.add("delete collection", Step{Name: "create", Method: "POST", Path: b.at, Object: labelled},
			Step{Name: "dry", Method: "DELETE", Path: b.at + "?labelSelector=collection%3Dthis&dryRun=All"},
			Step{Name: "others", Method: "DELETE", Path: b.at + "?labelSelector=collection%3Dthat"},
			Step{Name: "malformed selector", Method: "DELETE", Path: b.at + "?labelSelector=a%20b"},
			Step{Name: "precondition", Method: "DELETE", Path: b.at + "?labelSelector=collection%3Dthis", Body: `{"preconditions":{"uid":"other"}}`},
			Step{Name: "delete", Method: "DELETE", Path: b.at + "?labelSelector=collection%3Dthis&gracePeriodSeconds=0"},
			Step{Name: "get", Method: "GET", Path: b.object()})
	}
}

// subresources are read, and written where they are objects.
func (b *builder) subresources() {
	for _, sub := range b.kind.Subresources {
		path := b.object() + "/" + sub
		switch sub {
		case "status", "scale", "ephemeralcontainers", "resize", "approval":
		default:
			continue
		}
		steps := []Step{b.create(), {Name: "get", Method: "GET", Path: path}, {Name: "nothing changed", Method: "PUT", Path: path, Object: tree{}},
			{Name: "merge", Method: "PATCH", Path: path, Body: `{"metadata":{"labels":{"l":"1"},"annotations":{"a":"1"}},"spec":{}}`, Header: map[string]string{"Content-Type": "application/merge-patch+json"}},
			{Name: "other revision", Method: "PUT", Path: path, Object: tree{"metadata": tree{"resourceVersion": "1"}}},
			{Name: "no object", Method: "PUT", Path: path, Body: `{}`},
			{Name: "delete", Method: "DELETE", Path: path},
			{Name: "of none", Method: "GET", Path: b.at + "/none/" + sub},
			{Name: "get the object", Method: "GET", Path: b.object()},
		}
		if sub == "scale" {
			steps = append(steps, Step{Name: "three", Method: "PATCH", Path: path, Body: `{"spec":{"replicas":3}}`, Header: map[string]string{"Content-Type": "application/merge-patch+json"}},
				Step{Name: "negative", Method: "PATCH", Path: path, Body: `{"spec":{"replicas":-1}}`, Header: map[string]string{"Content-Type": "application/merge-patch+json"}},
				Step{Name: "applied", Method: "PATCH", Path: path + "?fieldManager=s&force=true", Body: `{"apiVersion":"autoscaling/v1","kind":"Scale","metadata":{"name":"` + b.name + `"},"spec":{"replicas":2}}`,
					Header: map[string]string{"Content-Type": "application/apply-patch+yaml"}})
		}
		b.add("subresource "+sub, steps...)
	}
}
