// Package answer is what every program of the shop answers with, and how a request shapes it.
package answer

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Bounds on what a request may ask for: one request must not be able to take an instance down.
const (
	MaxDelay = time.Minute
	MaxSize  = 10 << 20 // bytes of a whole answer, or of a gRPC answer's padding
)

// Instance is who answers: the fields that are the same in every answer of one program.
type Instance struct {
	Service string `json:"service"`
	Version string `json:"version"`
	Cluster string `json:"cluster"`
	Zone    string `json:"zone"`
	// Instance is the name of the instance in its cluster ("reviews-v1-1").
	Instance string `json:"instance"`
}

// Answer is one answer. It says who answered and what the request looked like when it arrived there.
type Answer struct {
	Instance
	// Peer is the caller's SPIFFE id as the sidecar saw it; nil where there was none.
	Peer *string `json:"peer"`
	// Headers have lower-case names; several values of one name are joined by ", ". HTTP's Host is "host".
	Headers map[string]string `json:"headers"`
	Method  string            `json:"method"`
	// Path is without the query.
	Path string `json:"path"`
	// Received is the number of bytes of the request's body.
	Received int64 `json:"received"`
	// Posts is the number of POST requests that the instance has been sent since it started, this one included:
	// the sum over a service's instances shows a request that arrived twice.
	Posts int64 `json:"posts"`
	// Calls is what the other services answered, by service; only the storefront calls any.
	Calls map[string]Call `json:"calls,omitempty"`
	// Error says why the request could not be understood (status 400, 413).
	Error string `json:"error,omitempty"`
	// Padding fills the answer up to the size that was asked for.
	Padding string `json:"padding,omitempty"`
}

// Call is what came of calling another service: the instance that answered, or why none did.
type Call struct {
	Instance
	Error string  `json:"error,omitempty"`
	Ms    float64 `json:"ms"`
}

// JSON returns the answer on one line, ending in a newline, padded to size bytes in total where it is shorter.
func (a Answer) JSON(size int) ([]byte, error) {
	line, err := json.Marshal(a)
	if err != nil {
		return nil, fmt.Errorf("encode the answer of %q: %w", a.Instance.Instance, err)
	}
	const field = len(`,"padding":""`)
	if fill := size - len(line) - len("\n"); fill > 0 {
		a.Padding = strings.Repeat("x", max(fill-field, 1))
		if line, err = json.Marshal(a); err != nil {
			return nil, fmt.Errorf("encode the padded answer of %q: %w", a.Instance.Instance, err)
		}
	}
	return append(line, '\n'), nil
}

// Shape is what a request asks of its answer.
type Shape struct {
	// Status is the HTTP status, 200 where the request names none.
	Status int
	// Delay is waited before the answer.
	Delay time.Duration
	// Size is the least length of the whole body, in bytes.
	Size int
}

// ParseShape reads the query parameters status, delay and size ("503", "200ms", "10k"). Other parameters are left to
// whoever sent them; one of these that cannot be honoured is an error, never ignored.
func ParseShape(query url.Values) (Shape, error) {
	shape := Shape{Status: 200}
	if text := query.Get("status"); text != "" {
		status, err := strconv.Atoi(text)
		if err != nil || status < 200 || status > 599 {
			return Shape{}, fmt.Errorf("status=%q: want 200 to 599", text)
		}
		shape.Status = status
	}
	if text := query.Get("delay"); text != "" {
		delay, err := time.ParseDuration(text)
		if err != nil || delay < 0 || delay > MaxDelay {
			return Shape{}, fmt.Errorf("delay=%q: want a duration such as 200ms, at most %s", text, MaxDelay)
		}
		shape.Delay = delay
	}
	if text := query.Get("size"); text != "" {
		size, err := ParseSize(text)
		if err != nil {
			return Shape{}, err
		}
		shape.Size = size
	}
	return shape, nil
}

// ParseSize reads a number of bytes, with k for 1024 and m for 1024² of them.
func ParseSize(text string) (int, error) {
	number, unit := strings.ToLower(text), 1
	if rest, ok := strings.CutSuffix(number, "k"); ok {
		number, unit = rest, 1<<10
	} else if rest, ok := strings.CutSuffix(number, "m"); ok {
		number, unit = rest, 1<<20
	}
	n, err := strconv.ParseUint(number, 10, 32)
	if err != nil || n > uint64(MaxSize/unit) {
		return 0, fmt.Errorf("size=%q: want bytes such as 512, 10k or 1m, at most %d", text, MaxSize)
	}
	return int(n) * unit, nil
}
