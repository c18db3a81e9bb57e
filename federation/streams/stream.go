package streams

import (
	"context"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "isthmus.dev/isthmus/api/catalogue"
	"isthmus.dev/isthmus/api/document"
	"isthmus.dev/isthmus/federation/catalog"
	"isthmus.dev/isthmus/internal/foreign"
	"isthmus.dev/isthmus/mesh"
)

// What one subscriber may ask for. A subscriber that keeps to the protocol sends one acknowledgement a message.
const (
	requestsPerSecond, requestsAtOnce = 50, 100
	wholePerSecond, wholeAtOnce       = 0.5, 4
)

type server = grpc.BidiStreamingServer[pb.SubscribeRequest, pb.SubscribeResponse]

// stream is one subscriber. Its fields are owned by the goroutine of Subscribe, but for acked (Publisher.mu).
type stream struct {
	publisher *Publisher
	peer      mesh.ClusterName
	grpc      server
	cancel    context.CancelCauseFunc
	whole     *rate.Limiter
	// held is what the subscriber has or is about to have; nil if that is not known.
	held *catalog.Holding
	// sent is the version it has or is about to have.
	sent mesh.CatalogueVersion
	// document is the newest document it has or is about to have.
	document DocumentVersion

	acked mesh.CatalogueVersion
}

// Subscribe implements syncrpc.SyncServer.
func (p *Publisher) Subscribe(g server) error {
	peer, ok := p.config.Peer(g.Context())
	if !ok {
		return status.Error(codes.Unauthenticated, "no member's certificate")
	}
	if err := p.member(peer); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(g.Context())
	defer cancel(nil)
	s := &stream{publisher: p, peer: peer, grpc: g, cancel: cancel, whole: rate.NewLimiter(wholePerSecond, wholeAtOnce)}
	p.enter(s)
	defer p.leave(s)
	p.config.Subscribed(peer)
	requests := make(chan *pb.SubscribeRequest)
	// It ends after Subscribe has returned, because gRPC only then ends Recv; nothing can wait for it here.
	go s.receive(ctx, requests)
	return s.run(ctx, requests)
}

// member refuses a peer that is not, or no longer, in the federation.
func (p *Publisher) member(peer mesh.ClusterName) error {
	t := p.config.Trust()
	if t == nil {
		return status.Error(codes.FailedPrecondition, "this cluster is in no federation")
	}
	if _, ok := t.Member(peer); !ok || peer == t.Self {
		return status.Errorf(codes.PermissionDenied, "cluster %q is not another member of %s", peer, t.Federation)
	}
	return nil
}

// enter makes s the one stream of its peer: an older one is what a lost connection left behind.
func (p *Publisher) enter(s *stream) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if old := p.streams[s.peer]; old != nil {
		old.cancel(status.Error(codes.Aborted, "a newer stream of the same cluster replaced this one"))
	}
	p.streams[s.peer] = s
}

func (p *Publisher) leave(s *stream) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.streams[s.peer] == s {
		delete(p.streams, s.peer)
	}
}

// Subscribers gives, for each cluster with a stream, the version it has acknowledged.
func (p *Publisher) Subscribers() map[mesh.ClusterName]mesh.CatalogueVersion {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make(map[mesh.ClusterName]mesh.CatalogueVersion, len(p.streams))
	for c, s := range p.streams {
		out[c] = s.acked
	}
	return out
}

// receive passes requests on, at the rate a subscriber may have.
func (s *stream) receive(ctx context.Context, requests chan<- *pb.SubscribeRequest) {
	var fault error
	defer func() {
		if fault != nil {
			s.cancel(fault)
		}
	}()
	defer foreign.Guard(s.publisher.config.Log, "request of a subscriber", string(s.peer), &fault)
	limit := rate.NewLimiter(requestsPerSecond, requestsAtOnce)
	for {
		r, err := s.grpc.Recv()
		if err != nil {
			s.cancel(err)
			return
		}
		if !limit.Allow() {
			s.cancel(status.Error(codes.ResourceExhausted, "too many requests"))
			return
		}
		select {
		case requests <- r:
		case <-ctx.Done():
			return
		}
	}
}

func (s *stream) run(ctx context.Context, requests <-chan *pb.SubscribeRequest) error {
	select {
	case r := <-requests:
		hello := r.GetHello()
		if hello == nil {
			return status.Error(codes.InvalidArgument, "a stream starts with a hello")
		}
		s.document = documentFromWire(hello.Document)
		s.sent = catalog.VersionFromWire(hello.Have)
		s.held = s.publisher.find(s.sent)
	case <-time.After(helloWithin):
		return status.Error(codes.DeadlineExceeded, "no hello came")
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	beat := time.NewTicker(Heartbeat)
	defer beat.Stop()
	// The first heartbeat answers the hello at once.
	for due := true; ; due = false {
		present, changed := s.publisher.look()
		if err := s.publisher.member(s.peer); err != nil {
			return err
		}
		if err := s.sendDocuments(); err != nil {
			return err
		}
		if err := s.sendCatalogue(present); err != nil {
			return err
		}
		if due {
			if err := s.beat(present); err != nil {
				return err
			}
		}
		select {
		case <-changed:
		case <-beat.C:
			if err := s.beat(present); err != nil {
				return err
			}
		case r := <-requests:
			if err := s.handle(r, present); err != nil {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (s *stream) beat(present *catalog.Holding) error {
	return s.grpc.Send(&pb.SubscribeResponse{Kind: &pb.SubscribeResponse_Heartbeat{Heartbeat: &pb.Heartbeat{
		Current: catalog.VersionToWire(present.Version()), Document: documentToWire(s.publisher.config.Document()),
	}}})
}

// sendDocuments sends what the subscriber lacks, before any catalogue that may rest on it. A subscriber that is ahead
// gets nothing: its own publisher will tell this cluster.
func (s *stream) sendDocuments() error {
	newest := s.publisher.config.Document()
	if s.document == newest || newest.Less(s.document) {
		return nil
	}
	chain := s.publisher.config.ChainAfter(s.document)
	s.document = newest
	for len(chain) > 0 {
		n := fitting(chain)
		if err := s.grpc.Send(&pb.SubscribeResponse{Kind: &pb.SubscribeResponse_Documents{Documents: &pb.Documents{Chain: chain[:n]}}}); err != nil {
			return err
		}
		chain = chain[n:]
	}
	return nil
}

// sendCatalogue sends what leads to the present catalogue: a delta where it is known what the subscriber holds. A
// subscriber that holds a newer one keeps it, and will say so (evidence).
func (s *stream) sendCatalogue(present *catalog.Holding) error {
	if present == nil || present == s.held || present.Version().Compare(s.sent) <= 0 {
		return nil
	}
	if s.held == nil {
		return s.sendWhole(present)
	}
	delta := catalog.Diff(s.held, present)
	s.held, s.sent = present, present.Version()
	return s.grpc.Send(&pb.SubscribeResponse{Kind: &pb.SubscribeResponse_Delta{Delta: delta}})
}

func (s *stream) sendWhole(present *catalog.Holding) error {
	if !s.whole.Allow() {
		return status.Error(codes.ResourceExhausted, "the whole catalogue was asked for too often")
	}
	s.held, s.sent = present, present.Version()
	return s.grpc.Send(&pb.SubscribeResponse{Kind: &pb.SubscribeResponse_Snapshot{Snapshot: present.Wire()}})
}

func (s *stream) handle(r *pb.SubscribeRequest, present *catalog.Holding) error {
	switch k := r.GetKind().(type) {
	case *pb.SubscribeRequest_Ack:
		s.publisher.mu.Lock()
		s.acked = catalog.VersionFromWire(k.Ack)
		s.publisher.mu.Unlock()
	case *pb.SubscribeRequest_Mismatch:
		s.publisher.config.Log.Info("subscriber could not use a delta", "peer", s.peer, "err", trim(k.Mismatch.GetReason()))
		if present != nil {
			return s.sendWhole(present)
		}
	case *pb.SubscribeRequest_Evidence:
		if !s.whole.Allow() {
			return status.Error(codes.ResourceExhausted, "too much evidence")
		}
		if err := s.publisher.believe(k.Evidence); err != nil {
			return status.Errorf(codes.InvalidArgument, "evidence: %v", err)
		}
		s.held = nil
	}
	// Unknown kinds are of a newer version.
	return nil
}

// trim bounds a foreign text for the log.
func trim(s string) string {
	if len(s) > 200 {
		return s[:200] + "…"
	}
	return s
}

// fitting is how many documents of a chain go into one message: the receiver bounds both size and number.
func fitting(chain []*document.Signed) int {
	const most, number = 8 << 20, 512
	size := 0
	for i, d := range chain {
		if size += proto.Size(d); i > 0 && size > most || i == number {
			return i
		}
	}
	return len(chain)
}
