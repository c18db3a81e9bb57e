package parallel

import "testing"

func TestFor(t *testing.T) {
	for _, workers := range []int{0, 1, 2, 7} {
		for _, n := range []int{0, 1, 1000} {
			times, by := make([]int, n), make([]int, max(1, workers))
			For(workers, n, func(worker, i int) {
				times[i]++
				by[worker]++
			})
			calls := 0
			for _, k := range by {
				calls += k
			}
			for i, k := range times {
				if k != 1 {
					t.Errorf("%d workers, %d things: %d was done %d times", workers, n, i, k)
				}
			}
			if calls != n {
				t.Errorf("%d workers, %d things: %d calls", workers, n, calls)
			}
		}
	}
}
