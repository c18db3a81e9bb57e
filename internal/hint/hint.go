// Package hint carries the third part of a message for a person along with an error: how to fix it.
//
// An error says what failed and on which object; it is read by people and by code above it. The hint says what to do
// next and the code names the kind of failure for programs (contract.md: {"error":{"code","message","hint"}}). Both
// travel inside the error chain, so any layer may attach them and only the outermost one prints them:
//
//	return hint.Wrap(hint.Code(err, "token_expired"), "make a new one on the authority: isthmus cluster token create west")
//
// Where several layers attach one, the outermost wins: it knows most about what the person was doing.
package hint

import (
	"errors"
	"fmt"
)

// hinted adds a fix, a code or both to an error without changing its text.
type hinted struct {
	err  error
	fix  string // empty: none at this level
	code string // empty: none at this level
}

func (h *hinted) Error() string { return h.err.Error() }
func (h *hinted) Unwrap() error { return h.err }

// Wrap attaches to err how a person fixes it: one sentence, lower case, commands written so that they can be pasted.
// The error's own text does not change. Wrap(nil, …) is nil, and an empty fix attaches nothing.
func Wrap(err error, fix string) error {
	if err == nil || fix == "" {
		return err
	}
	return &hinted{err: err, fix: fix}
}

// Wrapf is Wrap with a formatted fix; the format is that of fmt.Sprintf (%w means nothing in it).
func Wrapf(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return Wrap(err, fmt.Sprintf(format, args...))
}

// Code attaches the stable name of the kind of failure, in lower_snake_case ("token_expired"). Programs branch on it,
// so a code that has been released is never renamed. Code(nil, …) is nil, and an empty code attaches nothing.
func Code(err error, code string) error {
	if err == nil || code == "" {
		return err
	}
	return &hinted{err: err, code: code}
}

// Of returns the outermost fix in err's chain, or "".
func Of(err error) string {
	return outermost(err, func(h *hinted) string { return h.fix })
}

// CodeOf returns the outermost code in err's chain, or "".
func CodeOf(err error) string {
	return outermost(err, func(h *hinted) string { return h.code })
}

// outermost walks err's chain from the outside, joined errors in order, to the first level where get is not empty.
func outermost(err error, get func(*hinted) string) string {
	for err != nil {
		if h, ok := err.(*hinted); ok {
			if value := get(h); value != "" {
				return value
			}
		}
		if joined, ok := err.(interface{ Unwrap() []error }); ok {
			for _, part := range joined.Unwrap() {
				if value := outermost(part, get); value != "" {
					return value
				}
			}
			return ""
		}
		err = errors.Unwrap(err)
	}
	return ""
}
