package wire_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/internal/hint/wire"
)

func TestAcross(t *testing.T) {
	plain := errors.New("no such thing")
	tests := []struct {
		why             string
		err             error
		text, fix, code string
		kind            codes.Code
	}{
		{"a plain error", plain, "no such thing", "", "", codes.Internal},
		{"hint and code arrive", hint.Wrap(hint.Code(plain, "x_y"), "do z"), "no such thing", "do z", "x_y", codes.FailedPrecondition},
		{"a hint alone arrives", hint.Wrap(plain, "do z"), "no such thing", "do z", "", codes.Internal},
		{"a status keeps kind and text", status.Error(codes.NotFound, "gone"), "gone", "", "", codes.NotFound},
		{"a wrapped status keeps its kind, the hint is added", hint.Wrap(status.Error(codes.NotFound, "gone"), "look"), "gone", "look", "", codes.NotFound},
		{"a deadline is told apart", fmt.Errorf("dial: %w", context.DeadlineExceeded), "dial: context deadline exceeded", "", "", codes.DeadlineExceeded},
		{"so is a refusal of the file system", fmt.Errorf("open key: %w", fs.ErrPermission), "open key: permission denied", "", "", codes.PermissionDenied},
	}
	for _, test := range tests {
		t.Run(test.why, func(t *testing.T) {
			got := wire.Error(wire.Status(test.err))
			if got.Error() != test.text || hint.Of(got) != test.fix || hint.CodeOf(got) != test.code || status.Code(got) != test.kind {
				t.Errorf("got %q, hint %q, code %q, %v", got, hint.Of(got), hint.CodeOf(got), status.Code(got))
			}
			if twice := wire.Error(wire.Status(wire.Status(test.err))); hint.Of(twice) != test.fix || hint.CodeOf(twice) != test.code {
				t.Errorf("answered twice over: hint %q, code %q", hint.Of(twice), hint.CodeOf(twice))
			}
			again := wire.Error(wire.Status(got)) // a control plane that passes on what another one answered
			if again.Error() != test.text || hint.Of(again) != test.fix || hint.CodeOf(again) != test.code || status.Code(again) != test.kind {
				t.Errorf("passed on: got %q, hint %q, code %q, %v", again, hint.Of(again), hint.CodeOf(again), status.Code(again))
			}
		})
	}
	if wire.Status(nil) != nil || wire.Error(nil) != nil {
		t.Error("no error became one")
	}
	if !errors.Is(wire.Error(plain), plain) {
		t.Error("an error that is no status was changed")
	}
}
