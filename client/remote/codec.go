package remote

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/yare-dev/yare/api"
)

const (
	protobuf = "application/vnd.kubernetes.protobuf"
	jsonType = "application/json"
)

// marshaler is what types with a protobuf form implement.
type marshaler interface{ MarshalTo([]byte) (int, error) }

func hasProtobuf(k *api.Kind) bool {
	_, ok := k.New().(marshaler)
	return ok
}

// accept returns the Accept header for k; suffix is ";stream=watch" or empty.
func accept(k *api.Kind, suffix string) string {
	if hasProtobuf(k) {
		return protobuf + suffix + "," + jsonType
	}
	return jsonType
}

func encode(k *api.Kind, o api.Object) (contentType string, data []byte, err error) {
	o.GetObjectKind().SetGroupVersionKind(k.GVK())
	if _, ok := o.(marshaler); ok {
		data, err = api.EncodeProto(o)
		return protobuf, data, err
	}
	data, err = api.EncodeJSON(o)
	return jsonType, data, err
}

// decode reads an answer into o, which must be what it says it is.
func decode(contentType string, data []byte, o runtime.Object) error {
	want := o.GetObjectKind().GroupVersionKind()
	if _, ok := o.(*metav1.Status); ok {
		want = metav1.SchemeGroupVersion.WithKind("Status")
		want.Group = ""
	}
	var tm runtime.TypeMeta
	var err error
	if isProtobuf(contentType) {
		tm, err = api.ProtoType(data)
	} else {
		err = json.Unmarshal(data, &tm)
	}
	if err != nil {
		return fmt.Errorf("read the type of an answer: %w", err)
	}
	if got := tm.GroupVersionKind(); got != want {
		return fmt.Errorf("answered by %v, want %v", got, want)
	}
	if isProtobuf(contentType) {
		return api.DecodeProto(data, o)
	}
	_, err = api.DecodeJSON(data, o)
	return err
}

func isProtobuf(contentType string) bool { return strings.HasPrefix(contentType, protobuf) }

// frame is one event of a watch.
type frame struct {
	op     string
	object []byte
}

// maxFrame bounds what is read for one event.
const maxFrame = 16 << 20

// frames returns a reader of a watch's events. Protobuf has each with its length before it, JSON one after the other.
func frames(contentType string, r io.Reader) func() (frame, error) {
	if isProtobuf(contentType) {
		br := bufio.NewReaderSize(r, 32<<10)
		return func() (frame, error) {
			var size [4]byte
			if _, err := io.ReadFull(br, size[:]); err != nil {
				return frame{}, err
			}
			n := binary.BigEndian.Uint32(size[:])
			if n > maxFrame {
				return frame{}, fmt.Errorf("event of %d bytes", n)
			}
			buf := make([]byte, n)
			if _, err := io.ReadFull(br, buf); err != nil {
				return frame{}, err
			}
			var ev metav1.WatchEvent
			if err := ev.Unmarshal(buf); err != nil {
				return frame{}, fmt.Errorf("decode event: %w", err)
			}
			return frame{ev.Type, ev.Object.Raw}, nil
		}
	}
	d := json.NewDecoder(r)
	return func() (frame, error) {
		var ev metav1.WatchEvent
		if err := d.Decode(&ev); err != nil {
			return frame{}, err
		}
		return frame{ev.Type, ev.Object.Raw}, nil
	}
}
