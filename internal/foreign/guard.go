package foreign

import (
	"fmt"
	"log/slog"
	"runtime/debug"
)

// Guard is deferred, by itself, where a fault in a parser would end the process: it recovers the panic and logs it with
// its stack and with the peer whose bytes were read, empty if nobody knows. If to is not nil it becomes the error. A nil
// log is none.
//
//	defer foreign.Guard(log, "gossip frame", peer, &err)
func Guard(log *slog.Logger, what, peer string, to *error) {
	p := recover()
	if p == nil {
		return
	}
	if log != nil {
		log.Error("panic while reading what another sent", "what", what, "peer", peer, "err", fmt.Sprint(p), "stack", string(debug.Stack()))
	}
	if to != nil {
		*to = fmt.Errorf("%s: panic: %v", what, p)
	}
}
