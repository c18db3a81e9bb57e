// Package exit holds the exit codes other programs rely on (contract.md) and carries one along with an error.
package exit

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"isthmus.dev/isthmus/internal/hint"
)

// The exit codes. Some are those of sysexits.h; 79 is istioctl's for findings.
const (
	Done        = 0
	Failed      = 1
	Differences = 2   // differences were found
	Usage       = 64  // wrong usage: nothing was tried
	Unreachable = 69  // the control plane cannot be reached
	Timeout     = 75  // timed out; trying again may help
	NotAllowed  = 77  // the caller may not do this
	Findings    = 79  // findings of level error
	Interrupted = 130 // by a signal
)

// Codes of errors (hint.CodeOf) that decide the exit code. Every other code exits with Failed.
const (
	CodeUsage       = "usage"
	CodeUnreachable = "unreachable"
	CodeTimeout     = "timeout"
	CodeNotAllowed  = "not_allowed"
	CodeFindings    = "findings"
	CodeDifferences = "differences"
	CodeInterrupted = "interrupted"
	CodeFailed      = "failed" // of an error that was given none
)

var byCode = map[string]int{
	CodeUsage: Usage, CodeUnreachable: Unreachable, CodeTimeout: Timeout, CodeNotAllowed: NotAllowed,
	CodeFindings: Findings, CodeDifferences: Differences, CodeInterrupted: Interrupted,
}

// silent asks for an exit code and no message: the program that was run has said what there is to say.
type silent struct{ code int }

func (s silent) Error() string { return fmt.Sprintf("exit code %d", s.code) }

// Silently returns an error that ends isthmus with code and prints nothing; nil for 0. `workload run` passes on the
// exit code of the program it ran this way.
func Silently(code int) error {
	if code == 0 {
		return nil
	}
	return silent{code}
}

// numbered is an error with an exit code of its own.
type numbered struct {
	error
	number int
}

func (n numbered) Unwrap() error { return n.error }

// With returns err, which ends isthmus with number whatever its code is. `workload run` says with it, as shells do,
// that a program was not found.
func With(number int, err error) error {
	if err == nil {
		return nil
	}
	return numbered{err, number}
}

// Usagef makes an error about how the command was called.
func Usagef(format string, args ...any) error {
	return hint.Code(fmt.Errorf(format, args...), CodeUsage)
}

// Of returns the exit code for err and the stable code to print with it; quiet means that nothing is to be printed.
// A code that came with the error decides; without one, the kind of the gRPC status or of the context does.
func Of(err error) (number int, code string, quiet bool) {
	if err == nil {
		return Done, "", false
	}
	var asked silent
	if errors.As(err, &asked) {
		return asked.code, "", true
	}
	code = hint.CodeOf(err)
	if code == "" {
		code = kind(err)
	}
	var own numbered
	if errors.As(err, &own) {
		return own.number, code, false
	}
	if number, ok := byCode[code]; ok {
		return number, code, false
	}
	return Failed, code, false
}

// kind names what kind of error err is when nobody gave it a code.
func kind(err error) string {
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return CodeTimeout
	case errors.Is(err, context.Canceled):
		return CodeInterrupted
	}
	var wrapped interface{ GRPCStatus() *status.Status }
	if !errors.As(err, &wrapped) {
		return CodeFailed
	}
	switch wrapped.GRPCStatus().Code() {
	case codes.Unavailable:
		return CodeUnreachable
	case codes.DeadlineExceeded:
		return CodeTimeout
	case codes.PermissionDenied, codes.Unauthenticated:
		return CodeNotAllowed
	case codes.Canceled:
		return CodeInterrupted
	case codes.NotFound:
		return "not_found"
	case codes.AlreadyExists:
		return "already_exists"
	case codes.Aborted:
		return "conflict"
	case codes.InvalidArgument:
		return "invalid"
	case codes.Unimplemented:
		return "unsupported"
	}
	return CodeFailed
}
