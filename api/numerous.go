package api

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// MostValues bounds how many values a client sends in one object or patch: scalars, lists and objects. An empty container is two bytes
// of protobuf and kilobytes when it is read and has its defaults, and the sets that tell who manages which field take time by
// the square of their size. What a database takes has far fewer in earnest.
const MostValues = 100_000

var errNumerous = fmt.Errorf("more than %d values", MostValues)

// FewJSON refuses JSON of more than MostValues. Text that is no JSON is the decoder's to refuse.
func FewJSON(data []byte) error {
	if len(data) <= MostValues {
		return nil
	}
	count, quoted := 0, false
	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case quoted:
			if c == '\\' {
				i++
			}
			quoted = c != '"'
		case c == '"':
			quoted = true
		case c == ',', (c == '{' || c == '[') && i+1 < len(data) && data[i+1] != '}' && data[i+1] != ']': // a value follows
			if count++; count > MostValues {
				return errNumerous
			}
		}
	}
	return nil
}

// FewCBOR refuses CBOR of more than MostValues, where of the texts as many may be keys. What is no CBOR is the decoder's to refuse.
func FewCBOR(data []byte) error {
	data = bytes.TrimPrefix(data, []byte(cborMagic))
	texts, others := 0, 0
	for len(data) > 0 {
		if others > MostValues || texts > 2*MostValues {
			return errNumerous
		}
		major, info := data[0]>>5, data[0]&31
		data = data[1:]
		var n uint64
		switch {
		case info < 24:
			n = uint64(info)
		case info < 28:
			size := 1 << (info - 24)
			if len(data) < size {
				return nil
			}
			var whole [8]byte
			copy(whole[8-size:], data)
			n, data = binary.BigEndian.Uint64(whole[:]), data[size:]
		}
		if major == 2 || major == 3 { // bytes and text; of those without a length their parts follow, as items
			if n > uint64(len(data)) {
				return nil
			}
			data = data[n:]
			texts++
		} else {
			others++
		}
	}
	return nil
}

// FewProto refuses protobuf, as EncodeProto writes it, of more than MostValues that have a length. What reads as a message is taken
// for one, as shallowProto does.
func FewProto(data []byte) error {
	if len(data) <= MostValues {
		return nil
	}
	u, err := envelope(data)
	if err == nil && countProto(u.Raw, MostNested) > MostValues {
		return errNumerous
	}
	return nil
}

// countProto counts what has a length in a message, and in what is in it; 0 when data is no message.
func countProto(data []byte, levels int) (count int) {
	if levels == 0 {
		return 0
	}
	for len(data) > 0 && count <= MostValues {
		tag, n := binary.Uvarint(data)
		if n <= 0 || tag>>3 == 0 {
			return 0
		}
		data, n = data[n:], 0
		switch tag & 7 {
		case 0:
			if _, n = binary.Uvarint(data); n <= 0 {
				return 0
			}
		case 1:
			n = 8
		case 2:
			size, w := binary.Uvarint(data)
			if w <= 0 || size > uint64(len(data)-w) {
				return 0
			}
			n = w + int(size)
			count += 1 + countProto(data[w:n], levels-1)
		case 5:
			n = 4
		}
		if n > len(data) {
			return 0
		}
		data = data[n:]
	}
	return count
}
