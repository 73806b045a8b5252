// Package wire encodes small structures in binary, for what Yare's server, its
// shim and its container init say to each other. It takes the place of
// encoding/json there, which would double the init's size.
//
// A type has one method that visits its fields in order, and the Codec either
// writes or reads them, so the two directions cannot drift apart:
//
//	func (m *Mount) Fields(c *wire.Codec) { c.String(&m.Source); c.Int(&m.Flags) }
//
// Numbers are varints, strings are length and bytes. Both ends come from the
// same build or from one that Version tells apart; there is no field numbering.
package wire

import (
	"encoding/binary"
	"slices"
	"strconv"
	"strings"
	"unsafe"
)

// ErrCorrupt means that the bytes are not an encoding of the type.
var ErrCorrupt error = corrupt{} // a value that the compiler knows: see [Codec.Read]

type corrupt struct{}

func (corrupt) Error() string { return "corrupt message" }

// Message is a type that visits its fields.
type Message interface{ Fields(c *Codec) }

// Codec is one encoding or decoding under way.
type Codec struct {
	buf     []byte // written so far, or left to read
	reading bool
	err     error
	// allocate, if not nil, has the memory for what is read: zeros that stay.
	allocate func(bytes uintptr) unsafe.Pointer
	// text, if not nil, is told of each string that is written.
	text func(string)
}

// Marshal encodes.
func Marshal(m Message) []byte {
	var c Codec
	m.Fields(&c)
	return c.buf
}

// MarshalTexts is Marshal for what goes to the kernel, to which a string ends at its first zero byte: it refuses those.
func MarshalTexts(m Message) ([]byte, error) {
	var err error
	c := Codec{text: func(s string) {
		if err == nil && strings.IndexByte(s, 0) >= 0 {
			err = zeroByte(s)
		}
	}}
	m.Fields(&c)
	return c.buf, err
}

// zeroByte is a string with a zero byte.
type zeroByte string

func (s zeroByte) Error() string { return strconv.Quote(string(s)) + " contains a zero byte" }

// Unmarshal decodes all of b into m.
func Unmarshal(b []byte, m Message) error {
	c := Codec{buf: b, reading: true}
	m.Fields(&c)
	if c.err == nil && len(c.buf) != 0 {
		c.err = ErrCorrupt
	}
	return c.err
}

// Read makes the codec read b, with memory that is not the Go runtime's: for a program that does without that. What is
// read aliases b, strings too.
func (c *Codec) Read(b []byte, allocate func(bytes uintptr) unsafe.Pointer) {
	c.buf, c.reading, c.err, c.allocate = b, true, nil, allocate
}

// Complete reports whether all has been read without an error.
func (c *Codec) Complete() bool { return c.err == nil && len(c.buf) == 0 }

// Uint64 visits a number.
func (c *Codec) Uint64(v *uint64) {
	if !c.reading {
		c.buf = binary.AppendUvarint(c.buf, *v)
		return
	}
	n, size := binary.Uvarint(c.buf)
	if size <= 0 {
		c.err, c.buf, *v = ErrCorrupt, nil, 0
		return
	}
	*v, c.buf = n, c.buf[size:]
}

// integer is what Num visits.
type integer interface {
	~int | ~int8 | ~int16 | ~int32 | ~int64 | ~uint8 | ~uint16 | ~uint32 | ~uint64
}

// Num visits a number of any type; negative ones take ten bytes.
func Num[T integer](c *Codec, v *T) {
	n := uint64(int64(*v))
	c.Uint64(&n)
	*v = T(n)
}

// Bool visits a truth value.
func (c *Codec) Bool(v *bool) {
	var n uint8
	if *v {
		n = 1
	}
	Num(c, &n)
	*v = n != 0
}

// Bytes visits a byte string; what is read aliases the input.
func (c *Codec) Bytes(v *[]byte) {
	n := len(*v)
	Num(c, &n)
	if !c.reading {
		c.buf = append(c.buf, *v...)
		return
	}
	if n < 0 || n > len(c.buf) {
		c.err, c.buf, *v = ErrCorrupt, nil, nil
		return
	}
	*v = nil
	if n > 0 {
		*v = c.buf[:n:n]
	}
	c.buf = c.buf[n:]
}

// String visits a string.
func (c *Codec) String(v *string) {
	b := unsafe.Slice(unsafe.StringData(*v), len(*v)) // only read
	c.Bytes(&b)
	switch {
	case !c.reading:
		if c.text != nil {
			c.text(*v)
		}
	case c.allocate != nil:
		*v = unsafe.String(unsafe.SliceData(b), len(b))
	default:
		*v = string(b)
	}
}

// List visits a slice by visiting its elements.
func List[T any](c *Codec, v *[]T, element func(*T)) {
	length(c, v)
	for i := range *v {
		element(&(*v)[i])
	}
}

// length visits a slice's length.
func length[T any](c *Codec, v *[]T) {
	n := len(*v)
	Num(c, &n)
	if !c.reading {
		return
	}
	// Every element takes at least one byte, so a wrong count cannot
	// make us allocate much.
	if n < 0 || n > len(c.buf) {
		c.err, c.buf, n = ErrCorrupt, nil, 0
	}
	*v = nil
	if n > 0 {
		*v = slice[T](c, n)
	}
}

// slice returns n zeros.
func slice[T any](c *Codec, n int) []T {
	if c.allocate == nil {
		return make([]T, n)
	}
	var t T
	return unsafe.Slice((*T)(c.allocate(uintptr(n)*unsafe.Sizeof(t))), n)
}

// Fail ends the encoding or decoding with an error.
func (c *Codec) Fail(err error) {
	if c.err == nil {
		c.err, c.buf = err, nil
	}
}

// StringMap visits a map of strings, in the order of its keys.
func StringMap(c *Codec, v *map[string]string) {
	var keys []string
	for k := range *v {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	type pair struct{ key, value string }
	list := make([]pair, len(keys))
	for i, k := range keys {
		list[i] = pair{k, (*v)[k]}
	}
	List(c, &list, func(p *pair) { c.String(&p.key); c.String(&p.value) })
	if c.reading && len(list) > 0 {
		*v = make(map[string]string, len(list))
		for _, p := range list {
			(*v)[p.key] = p.value
		}
	}
}

// Strings visits a list of strings.
func (c *Codec) Strings(v *[]string) {
	length(c, v)
	for i := range *v {
		c.String(&(*v)[i])
	}
}

// Nums visits a list of numbers.
func Nums[T integer](c *Codec, v *[]T) { List(c, v, func(n *T) { Num(c, n) }) }

// Optional visits a pointer that may be nil.
func Optional[T any](c *Codec, v **T, element func(*T)) {
	present := *v != nil
	c.Bool(&present)
	if !present {
		*v = nil
		return
	}
	if c.reading {
		*v = &slice[T](c, 1)[0]
	}
	element(*v)
}
