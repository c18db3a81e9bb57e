package agent

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	proxyid "isthmus.dev/isthmus/trust/identity"
)

// TestRenewalWait: what is decided at one moment.
func TestRenewalWait(t *testing.T) {
	zero := time.Unix(1e9, 0)
	r := renewal{due: zero.Add(6 * time.Hour), end: zero.Add(12 * time.Hour)}
	failed := func(pause time.Duration, refused bool) renewal {
		r := r
		r.pause, r.refused = pause, refused
		return r
	}
	tests := []struct {
		why         string
		r           renewal
		wall, since time.Duration // wall from zero
		want        time.Duration
	}{
		{"long before, it looks every minute", r, 0, 0, lookEvery},
		{"just before", r, 6*time.Hour - time.Second, 0, time.Second},
		{"now", r, 6 * time.Hour, 0, 0},
		{"the clock has jumped to after the end", r, 100 * time.Hour, 0, 0},
		{"the clock was set back an hour", r, 5 * time.Hour, 0, lookEvery},
		{"a long pause in the middle of life", failed(retryMost, false), 7 * time.Hour, 0, lookEvery},
		{"and its last second", failed(retryMost, false), 7 * time.Hour, retryMost - time.Second, time.Second},
		{"an hour before the end it stays long", failed(retryMost, false), 11 * time.Hour, retryMost - time.Second, time.Second},
		{"twenty minutes before, a tenth of that", failed(retryMost, false), 11*time.Hour + 40*time.Minute, 119 * time.Second, time.Second},
		{"five minutes before, half a minute", failed(retryMost, false), 11*time.Hour + 55*time.Minute, 0, proxyid.RetryLate},
		{"a second before", failed(retryMost, false), 12*time.Hour - time.Second, 0, proxyid.RetryLate},
		{"after the end nobody answers", failed(retryMost, false), 13 * time.Hour, 0, retryAway},
		{"after the end it is refused", failed(retryMost, true), 13 * time.Hour, 0, proxyid.RetryLate},
		{"the end came during the pause", failed(retryMost, false), 13 * time.Hour, time.Minute, 0},
	}
	for _, test := range tests {
		if got := test.r.wait(zero.Add(test.wall), test.since); got != test.want {
			t.Errorf("%s: %v, want %v", test.why, got, test.want)
		}
	}
}

// renewing runs renew with a clock on the wall that can be set, in fake time, and notes the attempts.
type renewing struct {
	ids    *identities
	start  time.Time
	mu     sync.Mutex      // guards what the test and the attempts share: offset, at, answer
	offset time.Duration   // of the clock on the wall
	at     []time.Duration // of the attempts, since the start, by a clock that nobody sets
	answer func() error
	life   time.Duration
	log    strings.Builder
}

func newRenewing(life time.Duration) *renewing {
	r := &renewing{start: time.Now(), life: life, answer: func() error { return nil }}
	r.ids = &identities{cfg: &Config{Log: slog.New(slog.NewTextHandler(&r.log, nil))}, wall: r.wall, rotated: make(chan struct{}, 1)}
	r.issue()
	return r
}

// wall has no other clock in it, as time from a file has none.
func (r *renewing) wall() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return time.Now().Add(r.offset).Round(0)
}

// turn sets the clock on the wall.
func (r *renewing) turn(by time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.offset += by
}

// attempts counts those so far.
func (r *renewing) attempts() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.at)
}

// says is how attempts end from now on.
func (r *renewing) says(answer func() error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answer = answer
}

func (r *renewing) issue() {
	now := r.wall()
	r.ids.current.Store(&identity{renew: now.Add(r.life / 2), chain: []*x509.Certificate{{NotBefore: now, NotAfter: now.Add(r.life)}}})
}

func (r *renewing) attempt(context.Context) error {
	r.mu.Lock()
	r.at = append(r.at, time.Since(r.start))
	answer := r.answer
	r.mu.Unlock()
	err := answer()
	if err == nil {
		r.issue()
	}
	return err
}

// run calls play while renew runs.
func (r *renewing) run(t *testing.T, play func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	group.Go(func() {
		if err := r.ids.renew(ctx, r.attempt); !errors.Is(err, context.Canceled) {
			t.Errorf("ended with %v", err)
		}
	})
	play()
	synctest.Wait()
	cancel()
	group.Wait()
}

var away = status.Error(codes.Unavailable, "nobody is there")

func TestRenew(t *testing.T) {
	const life = 12 * time.Hour
	t.Run("at half its life, again and again", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newRenewing(life)
			r.run(t, func() { time.Sleep(25 * time.Hour) })
			if len(r.at) != 4 || r.at[0] != 6*time.Hour || len(r.ids.rotated) != 1 || r.log.Len() > 0 {
				t.Errorf("attempts at %v, log %q", r.at, r.log.String())
			}
		})
	})
	t.Run("a machine that was suspended beyond the end", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newRenewing(life)
			r.run(t, func() {
				time.Sleep(time.Hour)
				r.turn(20 * time.Hour) // no timer has seen it
				time.Sleep(lookEvery)
			})
			if len(r.at) != 1 || r.at[0] > time.Hour+lookEvery {
				t.Errorf("attempts at %v, want one within a minute of waking up", r.at)
			}
		})
	})
	t.Run("suspended in the middle of a long pause", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newRenewing(life)
			r.answer = func() error { return away }
			r.run(t, func() {
				time.Sleep(8 * time.Hour)
				r.turn(20 * time.Hour)
				before := r.attempts()
				time.Sleep(lookEvery + 2*retryAway)
				if r.attempts() < before+2 {
					t.Errorf("%d attempts after waking up", r.attempts()-before)
				}
			})
		})
	})
	for why, test := range map[string]struct {
		err  error
		most time.Duration
	}{
		"nobody there":          {away, retryAway},
		"refused":               {status.Error(codes.PermissionDenied, "no"), proxyid.RetryLate},
		"nothing can be issued": {status.Error(codes.ResourceExhausted, "full"), retryAway},
	} {
		t.Run("pauses while it fails: "+why, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRenewing(life)
				r.answer = func() error { return test.err }
				r.run(t, func() { time.Sleep(16 * time.Hour) })
				for i, at := range r.at[1:] {
					gap, most := at-r.at[i], retryMost
					switch {
					case r.at[i] >= life:
						most = test.most
					case r.at[i] >= life-5*time.Minute:
						most = proxyid.RetryLate
					}
					if gap > most || gap < 700*time.Millisecond {
						t.Fatalf("a pause of %v before %v, want 0.75 s to %v", gap, at, most)
					}
				}
				if n := strings.Count(r.log.String(), "level=WARN"); n != 2 {
					t.Errorf("said %d times, want once before the end and once after it:\n%s", n, r.log.String())
				}
			})
		})
	}
	t.Run("the control plane comes back after the end", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newRenewing(life)
			r.answer = func() error { return away }
			r.run(t, func() {
				time.Sleep(20 * time.Hour)
				r.says(func() error { return nil })
				time.Sleep(retryAway)
				if len(r.ids.rotated) != 1 {
					t.Errorf("no new certificate within %v", retryAway)
				}
			})
		})
	})
}

// TestRenewClockSet: whatever the clock does, nothing spins.
func TestRenewClockSet(t *testing.T) {
	const life = 12 * time.Hour
	tests := []struct {
		why    string
		answer func(*renewing) error
		play   func(*renewing)
		most   int // attempts within an hour of the play; 960 is one every 3.75 s, retryAway less a quarter
	}{
		{"set back an hour while all is well", func(*renewing) error { return nil }, func(r *renewing) { r.turn(-time.Hour) }, 0},
		{"set back an hour just before it is due", func(*renewing) error { return nil }, func(r *renewing) {
			time.Sleep(5*time.Hour - time.Second)
			r.turn(-time.Hour)
		}, 1},
		{"set back an hour while it fails", func(*renewing) error { return away }, func(r *renewing) {
			time.Sleep(7 * time.Hour)
			r.turn(-time.Hour)
		}, 16},
		{"set back an hour after the end, nobody there", func(*renewing) error { return away }, func(r *renewing) {
			time.Sleep(12 * time.Hour)
			r.turn(-time.Hour)
		}, 960},
		{"the control plane's clock is hours behind: what it issues is due at once", func(r *renewing) error {
			r.turn(7 * time.Hour) // each certificate is old already when it comes
			return nil
		}, func(r *renewing) { time.Sleep(6 * time.Hour) }, 61},
	}
	for _, test := range tests {
		t.Run(test.why, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRenewing(life)
				r.answer = func() error { return test.answer(r) }
				r.run(t, func() {
					time.Sleep(time.Hour)
					test.play(r)
					before := r.attempts()
					time.Sleep(time.Hour)
					if n := r.attempts() - before; n > test.most {
						t.Errorf("%d attempts within an hour, want %d at most", n, test.most)
					}
				})
			})
		})
	}
}
