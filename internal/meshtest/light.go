package meshtest

import (
	"fmt"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/anypb"

	"isthmus.dev/isthmus/xds"
	"isthmus.dev/isthmus/xds/stream"
)

// received is a response as it was read, with its size in bytes.
type received struct {
	xds.Response
	bytes int
}

// codec reads responses. With keep, only the bodies that it wants are read: hundreds of proxies in one process then cost
// little beside the control plane that they are there to measure.
type codec struct {
	encoding.CodecV2
	keep func(typeURL, name string) bool
}

func newCodec(keep func(typeURL, name string) bool) codec {
	return codec{encoding.GetCodecV2(proto.Name), keep}
}

func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	to, ok := v.(*received)
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	to.bytes = data.Len()
	if c.keep == nil {
		var m discoveryv3.DeltaDiscoveryResponse
		if err := c.CodecV2.Unmarshal(data, &m); err != nil {
			return err
		}
		to.Response = stream.Response(&m)
		return nil
	}
	buffer := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer buffer.Free()
	return c.skim(buffer.ReadOnlyData(), &to.Response)
}

// skim reads a DeltaDiscoveryResponse: field 1 system_version_info, 2 resources, 4 type_url, 5 nonce, 6 removed_resources.
func (c codec) skim(data []byte, to *xds.Response) error {
	var resources [][]byte
	err := fields(data, func(number protowire.Number, value []byte) {
		switch number {
		case 1:
			to.Version = string(value)
		case 2:
			resources = append(resources, value)
		case 4:
			to.TypeURL = string(value)
		case 5:
			to.Nonce = string(value)
		case 6:
			to.Removed = append(to.Removed, string(value))
		}
	})
	unread := &anypb.Any{TypeUrl: to.TypeURL}
	for _, one := range resources {
		r := xds.Resource{Body: unread}
		var body []byte // field 1 version, 2 resource, 3 name
		if bad := fields(one, func(number protowire.Number, value []byte) {
			switch number {
			case 1:
				r.Version = string(value)
			case 2:
				body = value
			case 3:
				r.Name = string(value)
			}
		}); bad != nil {
			err = bad
		}
		if c.keep(to.TypeURL, r.Name) {
			r.Body = &anypb.Any{TypeUrl: to.TypeURL}
			if bad := fields(body, func(number protowire.Number, value []byte) { // field 2 value
				if number == 2 {
					r.Body.Value = append([]byte(nil), value...)
				}
			}); bad != nil {
				err = bad
			}
		}
		to.Resources = append(to.Resources, r)
	}
	return err
}

// fields yields the fields of a message all of whose fields are strings, bytes or messages.
func fields(data []byte, yield func(protowire.Number, []byte)) error {
	for len(data) > 0 {
		number, kind, n := protowire.ConsumeTag(data)
		if n < 0 || kind != protowire.BytesType {
			return fmt.Errorf("a response with a field of kind %d", kind)
		}
		value, m := protowire.ConsumeBytes(data[n:])
		if m < 0 {
			return protowire.ParseError(m)
		}
		yield(number, value)
		data = data[n+m:]
	}
	return nil
}
