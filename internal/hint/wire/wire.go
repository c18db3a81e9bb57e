// Package wire carries an error's hint and code over gRPC.
//
// A server answers with Status(err) (or installs ServerOptions, which does it for every method); a client passes what
// a call returned through Error. Between the two, the message, the stable code and the hint are those of internal/hint;
// on the wire they are a status with one google.rpc.ErrorInfo: reason = code, metadata["hint"] = hint.
package wire

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"isthmus.dev/isthmus/internal/foreign"
	"isthmus.dev/isthmus/internal/hint"
)

// domain tells our ErrorInfo from another program's.
const domain = "isthmus.dev"

// Status turns err into an error that gRPC sends with its hint and code. The kind is that of a status already in err's
// chain, else what the context or the file system says, else FailedPrecondition for an error that was given a code by
// us, else Internal. Status(nil) is nil, and what Status has made comes back unchanged: a method that calls it may be
// served with ServerOptions.
func Status(err error) error {
	if err == nil || made(err) {
		return err
	}
	st := status.New(kind(err), message(err))
	code, fix := hint.CodeOf(err), hint.Of(err)
	if code == "" && fix == "" {
		return st.Err()
	}
	info := &errdetails.ErrorInfo{Domain: domain, Reason: code, Metadata: map[string]string{"hint": fix}}
	if detailed, detailErr := st.WithDetails(info); detailErr == nil {
		st = detailed
	}
	return st.Err()
}

// made tells whether err is what Status gave.
func made(err error) bool {
	st, ok := err.(interface{ GRPCStatus() *status.Status })
	if !ok {
		return false
	}
	for _, detail := range st.GRPCStatus().Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok && info.GetDomain() == domain {
			return true
		}
	}
	return false
}

// message is err's text, without the "rpc error: code = … desc = " of a status that was returned unwrapped.
func message(err error) string {
	var wrapped interface{ GRPCStatus() *status.Status }
	if errors.As(err, &wrapped) && wrapped.(error).Error() == err.Error() {
		return wrapped.GRPCStatus().Message()
	}
	return err.Error()
}

func kind(err error) codes.Code {
	var wrapped interface{ GRPCStatus() *status.Status }
	switch {
	case errors.As(err, &wrapped):
		return wrapped.GRPCStatus().Code()
	case errors.Is(err, context.DeadlineExceeded):
		return codes.DeadlineExceeded
	case errors.Is(err, context.Canceled):
		return codes.Canceled
	case errors.Is(err, fs.ErrPermission):
		return codes.PermissionDenied
	case hint.CodeOf(err) != "":
		return codes.FailedPrecondition
	}
	return codes.Internal
}

// Failure is an error that came over the wire: the server's words, with the gRPC kind for who must branch on it.
type Failure struct {
	Kind    codes.Code
	Message string
}

func (f *Failure) Error() string { return f.Message }

// GRPCStatus lets status.FromError and Status see the kind.
func (f *Failure) GRPCStatus() *status.Status { return status.New(f.Kind, f.Message) }

// Error turns what a gRPC call returned into an error with the server's text, hint and code. Other errors are returned
// as they are.
func Error(err error) error {
	st, ok := status.FromError(err)
	if err == nil || !ok {
		return err
	}
	var failure error = &Failure{Kind: st.Code(), Message: st.Message()}
	for _, detail := range st.Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok && info.GetDomain() == domain {
			failure = hint.Wrap(hint.Code(failure, info.GetReason()), info.GetMetadata()["hint"])
		}
	}
	return failure
}

// ServerOptions make every method of a server answer through Status. A panic in a method ends that call and no more: it is
// logged with its peer. A nil log is none.
func ServerOptions(log *slog.Logger) []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(func(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
			response, err := guarded(ctx, log, info.FullMethod, func() (any, error) { return handle(ctx, request) })
			return response, Status(err)
		}),
		grpc.ChainStreamInterceptor(func(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
			_, err := guarded(stream.Context(), log, info.FullMethod, func() (any, error) { return nil, handle(server, stream) })
			return Status(err)
		}),
	}
}

// guarded runs one method. What has panicked is a fault of ours, and the caller learns no more than that.
func guarded(ctx context.Context, log *slog.Logger, method string, run func() (any, error)) (response any, err error) {
	finished := false
	defer func() {
		if !finished {
			response, err = nil, status.Error(codes.Internal, "a fault in the server ended this call")
		}
	}()
	defer foreign.Guard(log, method, peerName(ctx), nil)
	response, err = run()
	finished = true
	return response, err
}

// peerName is who calls, for the log: its certificate's identity, else its address.
func peerName(ctx context.Context) string {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return ""
	}
	if info, ok := p.AuthInfo.(credentials.TLSInfo); ok && len(info.State.PeerCertificates) > 0 && len(info.State.PeerCertificates[0].URIs) > 0 {
		return info.State.PeerCertificates[0].URIs[0].String()
	}
	return p.Addr.String()
}

// ClientOptions make every call of a connection return through Error. Errors of a stream's messages are the caller's
// to pass through Error.
func ClientOptions() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, request, response any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
			return Error(invoke(ctx, method, request, response, conn, options...))
		}),
	}
}
