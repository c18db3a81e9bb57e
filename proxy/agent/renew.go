package agent

import (
	"context"
	"time"

	"isthmus.dev/isthmus/internal/hint"
	proxyid "isthmus.dev/isthmus/trust/identity"
)

// Times of renewals.
const (
	// lookEvery is how often the clock on the wall is looked at: timers stand still while the machine is suspended, and
	// clocks are set.
	lookEvery = time.Minute
	// leastBetween keeps two renewals apart that both succeed, whatever the clocks here and at the control plane say.
	leastBetween = time.Minute
	// retryMost is the longest pause after a failure, long before the end.
	retryMost = 5 * time.Minute
	// retryAway is the longest pause after the end while the control plane does not answer: nothing works until it does,
	// and knocking costs next to nothing. What it refuses is asked again every RetryLate of trust/identity.
	retryAway = 5 * time.Second
)

// renewal decides when a certificate is renewed. It is a value; the clock and the time that has passed are told.
type renewal struct {
	due, end time.Time     // of the certificate, by the clock on the wall
	pause    time.Duration // wanted between the last attempt and the next
	refused  bool          // the last attempt was, by the control plane
}

// wait is how long to do nothing before looking again, lookEvery at most; 0: now is the time. since is how long ago the
// last attempt was, by a clock that nobody sets.
func (r renewal) wait(wall time.Time, since time.Duration) time.Duration {
	left := max(r.due.Sub(wall), min(r.pause, r.longest(wall))-since)
	return min(max(left, 0), lookEvery)
}

// longest is the longest pause between two attempts: a tenth of what is left, but no longer than retryMost and no shorter
// than what is right after the end.
func (r renewal) longest(wall time.Time) time.Duration {
	left := r.end.Sub(wall)
	if left <= 0 && !r.refused {
		return retryAway
	}
	return min(max(left/10, proxyid.RetryLate), retryMost)
}

// renew replaces the identity when the issuer said it should be, for ever. attempt tries once; told of it are the logs
// and, of a success, rotated.
func (s *identities) renew(ctx context.Context, attempt func(context.Context) error) error {
	wait := backoff{least: time.Second, most: retryMost}
	var next renewal
	said := ""
	for {
		id := s.current.Load()
		next.due, next.end = id.renew, id.chain[0].NotAfter
		for since := time.Duration(0); ; {
			pause := next.wait(s.wall(), since)
			if pause == 0 {
				break
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(pause):
				since += pause
			}
		}
		err := attempt(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err == nil {
			wait.reset()
			next, said = renewal{pause: leastBetween}, ""
			select {
			case s.rotated <- struct{}{}:
			default:
			}
			continue
		}
		next.pause, next.refused = wait.next(), refused(err)
		// The same again and again is said once before the end and once after it.
		expired := s.wall().After(next.end)
		text := err.Error()
		if expired {
			text += " (expired)"
		}
		if text != said {
			s.cfg.Log.Warn("certificate not renewed", "err", err, "expires", next.end, "expired", expired, "hint", hint.Of(err))
			said = text
		}
	}
}
