// Package streams carries catalogues and federation documents between control planes.
//
// Every control plane runs one [Publisher] and one [Subscriber]. The publisher serves this cluster's catalogue to the
// other members: the whole or a delta first, then deltas, a heartbeat each second, and documents the peer lacks. The
// subscriber keeps one stream to every other member, verifies what comes, keeps it on disk and hands it out; the
// loss of heartbeats is the failure signal between control planes. What a slow peer has not taken yet is not queued:
// it gets the newest state when it is ready.
package streams

import (
	"fmt"
	"log/slog"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	pb "isthmus.dev/isthmus/api/catalogue"
	"isthmus.dev/isthmus/federation/catalog"
	"isthmus.dev/isthmus/federation/tunnel"
	"isthmus.dev/isthmus/internal/foreign"
	"isthmus.dev/isthmus/mesh"
)

// Timing of a stream. Both ends rely on these.
const (
	// Heartbeat is how often a publisher speaks, whatever else it sends.
	Heartbeat = time.Second
	// Lost is the silence after which a subscriber takes the publisher for unreachable.
	Lost = 3 * time.Second
	// helloWithin bounds how long a publisher waits for the first message.
	helloWithin = 5 * time.Second
)

// DocumentVersion orders federation documents by term and sequence.
type DocumentVersion struct {
	Term, Seq uint64
	// Hash tells two documents of one version apart; zero where a peer does not tell it.
	Hash [32]byte
}

// Less tells whether v is before w.
func (v DocumentVersion) Less(w DocumentVersion) bool {
	return v.Term < w.Term || v.Term == w.Term && v.Seq < w.Seq
}

func documentToWire(v DocumentVersion) *pb.DocumentVersion {
	return &pb.DocumentVersion{Term: v.Term, Seq: v.Seq, Hash: v.Hash[:]}
}

func documentFromWire(w *pb.DocumentVersion) DocumentVersion {
	v := DocumentVersion{Term: w.GetTerm(), Seq: w.GetSeq()}
	if h := w.GetHash(); len(h) == len(v.Hash) {
		copy(v.Hash[:], h)
	}
	return v
}

// ServerOptions are those of the gRPC server behind the tunnel: the peer's identity, bounds, and a keepalive that
// frees the streams of peers that vanished. A nil log is none.
func ServerOptions(log *slog.Logger) []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.Creds(tunnel.Credentials()),
		grpc.ForceServerCodecV2(codec{CodecV2: encoding.GetCodecV2("proto"), log: log}),
		grpc.MaxRecvMsgSize(4 << 20), // evidence: one manifest
		grpc.MaxSendMsgSize(catalog.MaxBytes),
		grpc.MaxConcurrentStreams(16),
		grpc.ConnectionTimeout(helloWithin),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 5 * time.Second, Timeout: 5 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	}
}

// codec bounds what comes before it is decoded. gRPC calls it outside of every interceptor.
type codec struct {
	encoding.CodecV2
	log  *slog.Logger
	peer mesh.ClusterName // empty: a server's, which has many
}

func (c codec) Unmarshal(data mem.BufferSlice, v any) (err error) {
	defer foreign.Guard(c.log, "message of a stream", string(c.peer), &err)
	switch m := v.(type) {
	case *pb.SubscribeResponse:
		if data.Len() > catalog.MaxBytes {
			return fmt.Errorf("message has %d bytes, %d at most", data.Len(), catalog.MaxBytes)
		}
		raw := data.Materialize()
		if err := catalog.CheckResponse(raw); err != nil {
			return err
		}
		return proto.Unmarshal(raw, m)
	case *pb.SubscribeRequest:
		raw := data.Materialize()
		if err := catalog.CheckRequest(raw); err != nil {
			return err
		}
		return proto.Unmarshal(raw, m)
	}
	return c.CodecV2.Unmarshal(data, v)
}
