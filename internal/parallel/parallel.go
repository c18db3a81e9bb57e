// Package parallel does the same to many things on several processors.
package parallel

import (
	"sync"
	"sync/atomic"
)

// For calls do once for each i below n, on as many goroutines as there are workers, and returns when all calls have. worker
// (below workers) tells the goroutines apart: what belongs to one needs no lock. One worker is the caller itself.
func For(workers, n int, do func(worker, i int)) {
	var taken atomic.Int64
	work := func(worker int) {
		for i := int(taken.Add(1)) - 1; i < n; i = int(taken.Add(1)) - 1 {
			do(worker, i)
		}
	}
	var others sync.WaitGroup
	for worker := 1; worker < workers; worker++ {
		others.Go(func() { work(worker) })
	}
	work(0)
	others.Wait()
}
