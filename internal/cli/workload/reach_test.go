package workload

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"isthmus.dev/isthmus/internal/hint"
)

func TestWarnOfLoopback(t *testing.T) {
	up, down, loopback := PortHealth{Number: 8000, Up: true}, PortHealth{Number: 8000}, PortHealth{Number: 8000, LoopbackOnly: true}
	tests := []struct {
		why  string
		says []PortHealth // one look after the other, the last for ever; the zero value is no answer
		took time.Duration
		warn bool
	}{
		{"it answers at once", []PortHealth{up}, 0, false},
		{"it answers later", []PortHealth{{}, down, up}, 2 * reachEvery, false},
		{"it listens on loopback", []PortHealth{{}, down, loopback}, 2 * reachEvery, true},
		{"it never listens", []PortHealth{down}, time.Minute, false},
	}
	for _, test := range tests {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			looks, began, warned := 0, time.Now(), 0
			warnOfLoopback(ctx, "web-1", func(context.Context) ([]PortHealth, error) {
				now := test.says[min(looks, len(test.says)-1)]
				if looks++; now.Number == 0 {
					return nil, errors.New("not looked yet")
				}
				return []PortHealth{now}, nil
			}, func(err error) {
				if warned++; hint.Of(err) == "" {
					t.Errorf("%s: no hint with %v", test.why, err)
				}
			})
			if took := time.Since(began); took != test.took || (warned == 1) != test.warn {
				t.Errorf("%s: %d warnings after %v, want %v after %v", test.why, warned, took, test.warn, test.took)
			}
		})
	}
}
