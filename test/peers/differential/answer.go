package differential

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"sigs.k8s.io/yaml"
)

// Answer is what a server said.
type Answer struct {
	Code     int
	Type     string // of the content, without parameters
	Warnings []string
	Object   map[string]any // as it came
	Tree     any            // the body, to be compared
}

func read(r *http.Response, body []byte) Answer {
	a := Answer{Code: r.StatusCode, Warnings: r.Header.Values("Warning")}
	a.Type, _, _ = strings.Cut(r.Header.Get("Content-Type"), ";")
	_ = json.Unmarshal(body, &a.Object) // what is no object is compared as text
	switch {
	case a.Object != nil:
		var copied any
		_ = json.Unmarshal(body, &copied)
		a.Tree = settle(copied)
	case a.Type == "application/yaml":
		var tree any
		if err := yaml.Unmarshal(body, &tree); err != nil {
			tree = string(body)
		}
		a.Tree = settle(tree)
	case a.Type == "application/json" && bytes.Contains(bytes.TrimSpace(body), []byte("\n")):
		a.Tree = settle(lines(body)) // a watch
	case strings.HasPrefix(a.Type, "text/"):
		a.Tree = string(body)
	case len(body) > 0:
		a.Tree = "some bytes"
	}
	return a
}

func lines(body []byte) (events []any) {
	for _, line := range bytes.Split(bytes.TrimSpace(body), []byte("\n")) {
		var e any
		if err := json.Unmarshal(line, &e); err != nil {
			e = string(line)
		}
		events = append(events, e)
	}
	return events
}

var (
	uid       = regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`)
	address   = regexp.MustCompile(`\b10\.43\.0\.\d+`) // of Services: upstream draws lots
	record    = regexp.MustCompile(`(in record \(|in object meta: |current: )\d+`)
	token     = regexp.MustCompile(`^kube-api-access-[a-z0-9]{5}$`)
	generated = regexp.MustCompile(`\b([Gg]enerated[-_])[a-z0-9]{5}\b`)
	age       = regexp.MustCompile(`^([0-9.]+(ms|[smhdy]))+$|^<invalid>$`)
	moment    = regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$`)
)

// settle takes out of a tree what differs from run to run: names of objects' lives, times, revisions.
func settle(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for name, x := range v {
			switch name {
			case "uid":
				v[name] = "UID"
			case "resourceVersion", "continue":
				if x != "" && x != "0" {
					v[name] = "SOME"
				}
			case "creationTimestamp", "deletionTimestamp", "time", "expirationTimestamp", "requestReceivedTimestamp":
				if x != nil {
					v[name] = "TIME"
				}
			case "token":
				v[name] = "TOKEN"
			case "authentication.kubernetes.io/credential-id":
				v[name] = "CREDENTIAL"
			case "managedFields":
				v[name] = settleOwners(x)
			default:
				v[name] = settle(x)
			}
		}
		if v["kind"] == "Status" {
			settleStatus(v)
		}
		return v
	case []any:
		for i := range v {
			v[i] = settle(v[i])
		}
		return v
	case string:
		return settleText(v)
	}
	return v
}

// settleOwners orders entries, whose order depends on the second in which they were made.
func settleOwners(x any) any {
	list, ok := settle(x).([]any)
	if !ok {
		return x
	}
	slices.SortFunc(list, func(a, b any) int { return strings.Compare(owner(a), owner(b)) })
	return list
}

func owner(entry any) string {
	m, _ := entry.(map[string]any)
	return fmt.Sprint(m["operation"], m["manager"], m["subresource"])
}

func settleText(s string) string {
	switch {
	case age.MatchString(s):
		return "AGE"
	case token.MatchString(s):
		return "kube-api-access-XXXXX"
	case moment.MatchString(s):
		return "TIME"
	}
	s = address.ReplaceAllString(s, "10.43.0.N")
	s = record.ReplaceAllString(uid.ReplaceAllString(s, "UID"), "${1}SOME")
	return generated.ReplaceAllString(s, "${1}XXXXX")
}

// settleStatus orders causes. The message of an invalid object is made of them, and not compared again.
func settleStatus(s map[string]any) {
	details, _ := s["details"].(map[string]any)
	causes, _ := details["causes"].([]any)
	if len(causes) == 0 {
		return
	}
	byText := map[string]any{}
	for i, c := range causes {
		if m, ok := c.(map[string]any); ok {
			byText[fmt.Sprint(m["field"], m["reason"], m["message"], i)] = c
		}
	}
	var sorted []any
	for _, text := range slices.Sorted(maps.Keys(byText)) {
		sorted = append(sorted, byText[text])
	}
	tree := map[string]any{}
	for _, c := range sorted {
		m := c.(map[string]any)
		first, text := fmt.Sprintf("%v %v", m["field"], m["reason"]), cause(fmt.Sprint(m["message"]))
		key := first
		for n := 2; tree[key] != nil; n++ {
			if tree[key] == text {
				key = first + " again"
				break
			}
			key = fmt.Sprintf("%s %d", first, n)
		}
		tree[key] = text
	}
	details["causes"] = tree
	if s["reason"] == "Invalid" {
		delete(s, "message")
	}
}

var (
	badValue  = regexp.MustCompile(`(?s)^(Invalid value|Too long|Too many|Unsupported value|Duplicate value|Not found): .*?(: [^"{}]*|: supported values: .*)?$`)
	supported = regexp.MustCompile(`supported values: (.*)$`)
)

// cause is the message of a cause without the bad value and without the comparison of two states that may follow a line break, which
// upstream writes as its internal types have them, and with the supported values in order, which upstream has as a map or a list gives
// them.
func cause(message string) string {
	message, _, _ = strings.Cut(message, "\n")
	message = badValue.ReplaceAllString(message, "$1$2")
	return supported.ReplaceAllStringFunc(message, func(list string) string {
		values := strings.Split(strings.TrimPrefix(list, "supported values: "), ", ")
		slices.Sort(values)
		return "supported values: " + strings.Join(values, ", ")
	})
}

// Differences are lines "path: ours | theirs".
func Differences(ours, theirs Answer) (lines []string) {
	if ours.Code != theirs.Code { // the rest is of different kinds
		return []string{fmt.Sprintf("code: %s | %s", ours.outcome(), theirs.outcome())}
	}
	if ours.Type != theirs.Type {
		lines = append(lines, fmt.Sprintf("type: %s | %s", ours.Type, theirs.Type))
	}
	if a, b := fmt.Sprint(ours.Warnings), fmt.Sprint(theirs.Warnings); a != b {
		lines = append(lines, fmt.Sprintf("warnings: %s | %s", a, b))
	}
	return compare(lines, "", ours.Tree, theirs.Tree)
}

// outcome is the code with what is said of it.
func (a Answer) outcome() string {
	if a.Object["kind"] != "Status" {
		return strconv.Itoa(a.Code)
	}
	return fmt.Sprintf("%d %v %v %s", a.Code, a.Object["reason"], brief(at(a.Tree, "details.causes")), brief(a.Object["message"]))
}

func compare(lines []string, path string, a, b any) []string {
	switch x := a.(type) {
	case map[string]any:
		if y, ok := b.(map[string]any); ok {
			keys := map[string]bool{}
			for k := range x {
				keys[k] = true
			}
			for k := range y {
				keys[k] = true
			}
			for _, k := range slices.Sorted(maps.Keys(keys)) {
				lines = compare(lines, strings.TrimPrefix(path+"."+k, "."), x[k], y[k])
			}
			return lines
		}
	case []any:
		if y, ok := b.([]any); ok && len(x) == len(y) {
			for i := range x {
				lines = compare(lines, path+"["+strconv.Itoa(i)+"]", x[i], y[i])
			}
			return lines
		}
	}
	if s, t := brief(a), brief(b); s != t {
		lines = append(lines, fmt.Sprintf("%s: %s | %s", path, s, t))
	}
	return lines
}

// brief is a part of a tree in one line.
func brief(v any) string {
	if v == nil {
		return "-"
	}
	text, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	const most = 400
	if len(text) > most {
		return string(text[:most]) + "..."
	}
	return string(text)
}

// at returns the part of a tree at a path like metadata.name.
func at(v any, path string) any {
	for part := range strings.SplitSeq(path, ".") {
		switch x := v.(type) {
		case map[string]any:
			v = x[part]
		case []any:
			i, err := strconv.Atoi(part)
			if err != nil || i >= len(x) {
				return nil
			}
			v = x[i]
		default:
			return nil
		}
	}
	return v
}

// merge applies a JSON merge patch.
func merge(into, patch map[string]any) map[string]any {
	out := maps.Clone(into)
	if out == nil {
		out = map[string]any{}
	}
	for k, v := range patch {
		sub, isMap := v.(map[string]any)
		old, wasMap := out[k].(map[string]any)
		switch {
		case v == nil:
			delete(out, k)
		case isMap && wasMap:
			out[k] = merge(old, sub)
		default:
			out[k] = v
		}
	}
	return out
}
