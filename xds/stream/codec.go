package stream

import (
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	protobuf "google.golang.org/protobuf/proto"
)

// ServerOptions are what a gRPC server needs that serves these streams.
func ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.MaxRecvMsgSize(MaxMessage), grpc.ForceServerCodecV2(exact{encoding.GetCodecV2(proto.Name)}),
	}
}

// exact is gRPC's codec, but each message gets a buffer of its size. gRPC takes one of 1 MiB for all above 32 KiB: hundreds
// of clients that come at once would hold many times what they are sent.
type exact struct{ encoding.CodecV2 }

func (c exact) Marshal(v any) (mem.BufferSlice, error) {
	m, ok := v.(protobuf.Message)
	if !ok {
		return c.CodecV2.Marshal(v)
	}
	b, err := protobuf.Marshal(m)
	if err != nil {
		return nil, err
	}
	return mem.BufferSlice{mem.SliceBuffer(b)}, nil
}
