package hint_test

import (
	"errors"
	"fmt"
	"io/fs"
	"testing"

	"isthmus.dev/isthmus/internal/hint"
)

func TestChain(t *testing.T) {
	base := fmt.Errorf("open anchor.pem: %w", fs.ErrPermission)
	tests := []struct {
		why       string
		err       error
		text      string
		fix, code string
	}{
		{"a plain error has neither", base, base.Error(), "", ""},
		{"no error stays no error", hint.Wrapf(hint.Code(nil, "x"), "y"), "", "", ""},
		{"an empty fix or code attaches nothing", hint.Code(hint.Wrap(base, ""), ""), base.Error(), "", ""},
		{"the text is not changed by a fix", hint.Wrap(base, "chmod 0600 anchor.pem"), base.Error(), "chmod 0600 anchor.pem", ""},
		{"the fix survives a wrap", fmt.Errorf("start: %w", hint.Wrapf(base, "chmod %o", 0o600)), "start: " + base.Error(), "chmod 600", ""},
		{"fix and code at different levels", hint.Wrap(fmt.Errorf("join: %w", hint.Code(base, "denied")), "fix"), "join: " + base.Error(), "fix", "denied"},
		{"the outermost fix wins", hint.Wrap(hint.Wrap(base, "inner"), "outer"), base.Error(), "outer", ""},
		{"the outermost code wins", hint.Code(hint.Code(base, "inner"), "outer"), base.Error(), "", "outer"},
		{"in joined errors the first that has one", errors.Join(base, hint.Wrap(base, "second")), base.Error() + "\n" + base.Error(), "second", ""},
		{"two errors in one format", fmt.Errorf("%w; %w", base, hint.Code(base, "c")), base.Error() + "; " + base.Error(), "", "c"},
	}
	for _, test := range tests {
		t.Run(test.why, func(t *testing.T) {
			text := ""
			if test.err != nil {
				text = test.err.Error()
			}
			if text != test.text || hint.Of(test.err) != test.fix || hint.CodeOf(test.err) != test.code {
				t.Errorf("got text %q, fix %q, code %q\nwant text %q, fix %q, code %q",
					text, hint.Of(test.err), hint.CodeOf(test.err), test.text, test.fix, test.code)
			}
			if test.err != nil && !errors.Is(test.err, fs.ErrPermission) {
				t.Error("errors.Is does not find the cause any more")
			}
		})
	}
}
