package api

import (
	"reflect"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TruncateTimes makes the times in o what its encodings keep of them: seconds of a metav1.Time, microseconds of a MicroTime. An object
// that stays in memory is then the same as one that was read: otherwise a client that sends back what it was told would seem to
// have changed it. Only o itself is changed; what it leads to may be somebody else's too, and is replaced.
func TruncateTimes(o Object) {
	if v := reflect.ValueOf(o); v.Kind() == reflect.Pointer && !v.IsNil() {
		if f := truncaterOf(v.Type().Elem()); f != nil {
			f(v.Elem(), true)
		}
	}
}

// truncater says whether times in a value are to be truncated, and does so if asked: in the value, which can be set then, and in copies
// of what it leads to.
type truncater func(v reflect.Value, do bool) bool

// truncaters are by type; nil where a type has no times.
var truncaters sync.Map

// truncaterOf returns the truncater of a type. Types that contain themselves must have no times: the inner one would have no
// truncater while the outer one's is being made.
func truncaterOf(t reflect.Type) truncater {
	if f, known := truncaters.Load(t); known {
		return f.(truncater)
	}
	f := makeTruncater(t, map[reflect.Type]bool{})
	truncaters.Store(t, f)
	return f
}

func makeTruncater(t reflect.Type, within map[reflect.Type]bool) truncater {
	switch t {
	case reflect.TypeFor[metav1.Time]():
		return timeTruncater(time.Second)
	case reflect.TypeFor[metav1.MicroTime]():
		return timeTruncater(time.Microsecond)
	}
	if within[t] {
		return nil
	}
	within[t] = true
	defer delete(within, t)
	switch t.Kind() {
	case reflect.Struct:
		return structTruncater(t, within)
	case reflect.Pointer:
		return pointerTruncater(makeTruncater(t.Elem(), within))
	case reflect.Slice:
		return sliceTruncater(makeTruncater(t.Elem(), within))
	case reflect.Map:
		return mapTruncater(makeTruncater(t.Elem(), within))
	}
	return nil
}

// timeTruncater is that of a struct with a time as its only field.
func timeTruncater(to time.Duration) truncater {
	return func(v reflect.Value, do bool) bool {
		if !v.CanAddr() { // in a map
			return v.Field(0).Interface().(time.Time).Nanosecond()%int(to) != 0
		}
		t := v.Field(0).Addr().Interface().(*time.Time)
		due := t.Nanosecond()%int(to) != 0
		if due && do {
			*t = t.Truncate(to)
		}
		return due
	}
}

func structTruncater(t reflect.Type, within map[reflect.Type]bool) truncater {
	type field struct {
		index int
		f     truncater
	}
	var fields []field
	for i := range t.NumField() {
		if f := makeTruncater(t.Field(i).Type, within); f != nil && t.Field(i).IsExported() {
			fields = append(fields, field{i, f})
		}
	}
	if fields == nil {
		return nil
	}
	return func(v reflect.Value, do bool) (due bool) {
		for _, x := range fields {
			due = x.f(v.Field(x.index), do) || due
			if due && !do {
				break
			}
		}
		return due
	}
}

func pointerTruncater(f truncater) truncater {
	if f == nil {
		return nil
	}
	return func(v reflect.Value, do bool) bool {
		due := !v.IsNil() && f(v.Elem(), false)
		if due && do {
			own := reflect.New(v.Type().Elem())
			own.Elem().Set(v.Elem())
			f(own.Elem(), true)
			v.Set(own)
		}
		return due
	}
}

func sliceTruncater(f truncater) truncater {
	if f == nil {
		return nil
	}
	return func(v reflect.Value, do bool) (due bool) {
		for i := 0; i < v.Len() && !due; i++ {
			due = f(v.Index(i), false)
		}
		if due && do {
			own := reflect.MakeSlice(v.Type(), v.Len(), v.Len())
			reflect.Copy(own, v)
			for i := range own.Len() {
				f(own.Index(i), true)
			}
			v.Set(own)
		}
		return due
	}
}

func mapTruncater(f truncater) truncater {
	if f == nil {
		return nil
	}
	return func(v reflect.Value, do bool) (due bool) {
		for it := v.MapRange(); it.Next() && !due; {
			due = f(it.Value(), false)
		}
		if due && do {
			own := reflect.MakeMapWithSize(v.Type(), v.Len())
			for it := v.MapRange(); it.Next(); {
				e := reflect.New(v.Type().Elem()).Elem()
				e.Set(it.Value())
				f(e, true)
				own.SetMapIndex(it.Key(), e)
			}
			v.Set(own)
		}
		return due
	}
}
