package stream

import (
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
)

// ServerOptions are what a gRPC server needs that serves these streams.
func ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.MaxRecvMsgSize(MaxMessage), grpc.ForceServerCodecV2(encoded{encoding.GetCodecV2(proto.Name)}),
		// Clients are many, say little and are silent most of the time: 32 KiB for each of them is gRPC's default.
		grpc.ReadBufferSize(readBuffer),
	}
}

// readBuffer is how much of a connection is read at a time, in bytes.
const readBuffer = 4 << 10

// encoded is gRPC's codec, but for messages that are encoded already, in pieces that many streams share: they are neither
// copied nor kept once more for each client.
type encoded struct{ encoding.CodecV2 }

func (c encoded) Marshal(v any) (mem.BufferSlice, error) {
	if pieces, ok := v.(mem.BufferSlice); ok {
		return pieces, nil
	}
	return c.CodecV2.Marshal(v)
}
