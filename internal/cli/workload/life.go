package workload

import (
	"os"
	"syscall"
	"time"
)

const (
	// drainLimit is how long requests under way may take after TERM.
	drainLimit = 5 * time.Second
	// endedLimit is how long those may take whose program has ended: the sidecar answers them.
	endedLimit = time.Second
	// stopLimit is how long the program may take to end by TERM before it is killed.
	stopLimit = 10 * time.Second
)

// life is that of a program with its registration.
type life struct {
	workload Workload
	program  Program
	signals  <-chan os.Signal
	// warn is told what goes wrong without keeping the program from running or ending.
	warn func(error)
}

// ended is how the program ended.
type ended struct {
	code int
	err  error
}

// run returns the program's exit code when it has ended and nothing of it is left.
func (l life) run() (int, error) {
	done := make(chan ended, 1)
	go func() {
		code, err := l.program.Wait()
		done <- ended{code, err}
	}()
	end, left := l.await(done)
	if end.err == nil && !left {
		l.leave(endedLimit)
	}
	if err := l.workload.Release(); err != nil {
		l.warn(err)
	}
	return end.code, end.err
}

// await passes signals on until the program has ended. The first TERM makes the workload leave before the program
// gets it; left tells whether it has left.
func (l life) await(done <-chan ended) (end ended, left bool) {
	var leaving chan struct{} // closed when it has left; nil while nobody asked
	var gone <-chan struct{}  // leaving, until that was seen
	var overdue <-chan time.Time
	stop := func() {
		l.signal(syscall.SIGTERM)
		if overdue == nil {
			overdue = time.After(stopLimit)
		}
	}
	for {
		select {
		case end = <-done:
			if leaving != nil {
				<-leaving
			}
			return end, leaving != nil
		case s := <-l.signals:
			switch {
			case s != syscall.SIGTERM:
				l.signal(s.(syscall.Signal))
			case leaving != nil:
				stop() // asked again: at once
			default:
				leaving = make(chan struct{})
				gone = leaving
				go func() {
					defer close(leaving)
					l.leave(drainLimit)
				}()
			}
		case <-gone:
			gone = nil
			stop()
		case <-overdue:
			l.signal(syscall.SIGKILL)
		}
	}
}

func (l life) leave(limit time.Duration) {
	if err := l.workload.Leave(limit); err != nil {
		l.warn(err)
	}
}

// signal fails only if the program has just ended, which is noticed elsewhere.
func (l life) signal(s syscall.Signal) { _ = l.program.Signal(s) }
