package agent

import (
	"math/rand/v2"
	"time"
)

// backoff spaces attempts: each pause is twice the one before, between least and most, less up to a quarter by chance so
// that many proxies do not come back at the same moment.
type backoff struct {
	least, most time.Duration
	pause       time.Duration
}

func (b *backoff) next() time.Duration {
	b.pause = min(max(b.pause*2, b.least), b.most)
	return b.pause - rand.N(b.pause/4+1)
}

func (b *backoff) reset() { b.pause = 0 }
