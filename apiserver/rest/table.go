package rest

import (
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/duration"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/store"
)

// NameText describes the first column of every table.
const NameText = "Name must be unique within a namespace. Is required when creating resources, although some resources may allow a client to request the generation of an appropriate name automatically. Name is primarily intended for creation idempotence and configuration definition. Cannot be updated. More info: https://kubernetes.io/docs/concepts/overview/working-with-objects/names#names"

const ageText = "CreationTimestamp is a timestamp representing the server time when this object was created. It is not guaranteed to be set in happens-before order across separate operations. Clients may not set this value. It is represented in RFC3339 form and is in UTC.\n\nPopulated by the system. Read-only. Null for lists. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata"

// Table returns the entries in the form that `kubectl get` prints. Each row carries the object as policy asks: nothing,
// its metadata (the default), or all of it. A kind that declares no column gets its name and "Created At".
func (a Any) Table(entries []*store.Entry, policy metav1.IncludeObjectPolicy, headers bool) *metav1.Table {
	t := &metav1.Table{
		TypeMeta: metav1.TypeMeta{APIVersion: metav1.SchemeGroupVersion.String(), Kind: "Table"},
		Rows:     make([]metav1.TableRow, 0, len(entries)),
	}
	if headers {
		t.ColumnDefinitions = a.columns()
	}
	now := time.Now()
	for _, e := range entries {
		from := e.Object
		switch {
		case a.r.custom != nil:
		case e.Of != nil:
			from = e.Of.Object
		case a.Kind.Of() != nil: // a bookmark's
			from = a.Kind.Store(from)
		}
		t.Rows = append(t.Rows, a.row(from, e.Object, policy, now))
	}
	return t
}

func (a Any) columns() []metav1.TableColumnDefinition {
	var cs []metav1.TableColumnDefinition
	if !a.namesItself() {
		cs = append(cs, metav1.TableColumnDefinition{Name: "Name", Type: "string", Format: "name", Description: NameText})
	}
	if len(a.r.columns) == 0 {
		return append(cs, metav1.TableColumnDefinition{Name: "Created At", Type: "date", Description: ageText})
	}
	for _, c := range a.r.columns {
		d := c.TableColumnDefinition
		if d.Name == "Age" && d.Description == "" {
			d.Description = ageText
		}
		cs = append(cs, d)
	}
	return cs
}

// namesItself says that the kind declares where its name stands, as Events do, whose names tell nothing.
func (a Any) namesItself() bool {
	return a.r.custom == nil && slices.ContainsFunc(a.r.columns, func(c erasedColumn) bool { return c.Name == "Name" })
}

// row makes the cells of o, in the stored form. Shown is what the client sees of the object itself.
func (a Any) row(o, shown api.Object, policy metav1.IncludeObjectPolicy, now time.Time) metav1.TableRow {
	row := metav1.TableRow{Cells: make([]any, 0, len(a.r.columns)+2)}
	if !a.namesItself() {
		row.Cells = append(row.Cells, o.GetName())
	}
	if len(a.r.columns) == 0 {
		row.Cells = append(row.Cells, o.GetCreationTimestamp().Time.UTC().Format(time.RFC3339))
	}
	for _, c := range a.r.columns {
		if c.cell == nil {
			row.Cells = append(row.Cells, age(o.GetCreationTimestamp(), now))
			continue
		}
		row.Cells = append(row.Cells, c.cell(o))
	}
	switch policy {
	case metav1.IncludeNone:
	case metav1.IncludeObject:
		row.Object = runtime.RawExtension{Object: shown}
	default:
		row.Object = runtime.RawExtension{Object: Metadata(o)}
	}
	return row
}

func age(t metav1.Time, now time.Time) string {
	if t.IsZero() {
		return "<unknown>"
	}
	return duration.HumanDuration(now.Sub(t.Time))
}

// Metadata returns o without spec and status.
func Metadata(o api.Object) *metav1.PartialObjectMetadata {
	return &metav1.PartialObjectMetadata{
		TypeMeta:   metav1.TypeMeta{APIVersion: metav1.SchemeGroupVersion.String(), Kind: "PartialObjectMetadata"},
		ObjectMeta: api.ObjectMeta(o),
	}
}
