package wire

import (
	"errors"
	"reflect"
	"testing"
	"unsafe"
)

type sample struct {
	Name   string
	Count  int
	Wide   uint64
	On     bool
	Blob   []byte
	Words  []string
	Groups []uint32
	Maybe  *int
	Kids   []sample
}

func (s *sample) Fields(c *Codec) {
	c.String(&s.Name)
	Num(c, &s.Count)
	c.Uint64(&s.Wide)
	c.Bool(&s.On)
	c.Bytes(&s.Blob)
	c.Strings(&s.Words)
	Nums(c, &s.Groups)
	Optional(c, &s.Maybe, func(n *int) { Num(c, n) })
	List(c, &s.Kids, func(k *sample) { k.Fields(c) })
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	seven := -7
	for name, in := range map[string]sample{
		"zero": {},
		"full": {Name: "näme", Count: -1, Wide: 1<<64 - 1, On: true, Blob: []byte{0, 1}, Words: []string{"", "b"},
			Groups: []uint32{0, 1<<32 - 1}, Maybe: &seven, Kids: []sample{{Name: "kid"}, {}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var out sample
			if err := Unmarshal(Marshal(&in), &out); err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(in, out) {
				t.Errorf("got %+v, want %+v", out, in)
			}
			// And without memory of the Go runtime's.
			pool := make([]sample, 100)
			var c Codec
			var bare sample
			c.Read(Marshal(&in), func(n uintptr) unsafe.Pointer {
				part := pool[:n/unsafe.Sizeof(sample{})+1]
				pool = pool[len(part):]
				return unsafe.Pointer(&part[0])
			})
			bare.Fields(&c)
			if !c.Complete() || !reflect.DeepEqual(in, bare) {
				t.Errorf("got %+v, want %+v", bare, in)
			}
		})
	}
}

func TestTruncatedIsAnError(t *testing.T) {
	t.Parallel()
	b := Marshal(&sample{Name: "name", Words: []string{"a"}, Kids: []sample{{Name: "kid"}}})
	for i := range b {
		var out sample
		var c Codec
		c.Read(b[:i], nil)
		if out.Fields(&c); c.Complete() {
			t.Errorf("first %d of %d bytes are complete", i, len(b))
		}
		if err := Unmarshal(b[:i], &out); !errors.Is(err, ErrCorrupt) {
			t.Errorf("first %d of %d bytes: got %v, want ErrCorrupt", i, len(b), err)
		}
	}
	if err := Unmarshal(append(b, 0), &sample{}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("trailing byte: got %v, want ErrCorrupt", err)
	}
}

func FuzzUnmarshal(f *testing.F) {
	f.Add(Marshal(&sample{Name: "name", Kids: []sample{{Words: []string{"x"}}}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		_ = Unmarshal(b, &sample{}) // must neither panic nor allocate beyond the input's size
	})
}

func TestTextsWithoutZeroBytes(t *testing.T) {
	t.Parallel()
	for _, in := range []sample{{Name: "a\x00"}, {Words: []string{"a", "\x00"}}, {Kids: []sample{{Name: "\x00b"}}}} {
		if _, err := MarshalTexts(&in); err == nil {
			t.Errorf("%+v was taken", in)
		}
	}
	in := sample{Name: "name", Words: []string{"", "word"}}
	if b, err := MarshalTexts(&in); err != nil || !reflect.DeepEqual(b, Marshal(&in)) {
		t.Errorf("got %x, %v", b, err)
	}
}
