package exit_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"isthmus.dev/isthmus/internal/cli/exit"
	"isthmus.dev/isthmus/internal/hint"
)

func TestOf(t *testing.T) {
	plain := errors.New("x")
	tests := []struct {
		why    string
		err    error
		number int
		code   string
		quiet  bool
	}{
		{"no error", nil, 0, "", false},
		{"an error without a code", plain, 1, "failed", false},
		{"wrong usage", fmt.Errorf("apply: %w", exit.Usagef("no file")), 64, "usage", false},
		{"a known failure is an ordinary failure", hint.Code(plain, "token_used"), 1, "token_used", false},
		{"even if gRPC would call it a refusal", hint.Code(status.Error(codes.PermissionDenied, "x"), "token_used"), 1, "token_used", false},
		{"a refusal without a code", status.Error(codes.PermissionDenied, "x"), 77, "not_allowed", false},
		{"unreachable", status.Error(codes.Unavailable, "x"), 69, "unreachable", false},
		{"timed out at the server", status.Error(codes.DeadlineExceeded, "x"), 75, "timeout", false},
		{"timed out here", fmt.Errorf("x: %w", context.DeadlineExceeded), 75, "timeout", false},
		{"interrupted", context.Canceled, 130, "interrupted", false},
		{"findings", hint.Code(plain, exit.CodeFindings), 79, "findings", false},
		{"differences", hint.Code(plain, exit.CodeDifferences), 2, "differences", false},
		{"not found", status.Error(codes.NotFound, "x"), 1, "not_found", false},
		{"the exit code of a program that was run", fmt.Errorf("run: %w", exit.Silently(7)), 7, "", true},
		{"an exit code of its own", fmt.Errorf("run: %w", exit.With(127, hint.Code(plain, "not_found"))), 127, "not_found", false},
		{"which may be 0", exit.Silently(0), 0, "", false},
	}
	for _, test := range tests {
		t.Run(test.why, func(t *testing.T) {
			number, code, quiet := exit.Of(test.err)
			if number != test.number || code != test.code || quiet != test.quiet {
				t.Errorf("got %d %q %v, want %d %q %v", number, code, quiet, test.number, test.code, test.quiet)
			}
		})
	}
}
