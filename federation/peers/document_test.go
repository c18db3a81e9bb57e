package peers

import (
	"errors"
	"strings"
	"testing"

	"isthmus.dev/isthmus/federation/document"
	"isthmus.dev/isthmus/federation/streams"
	"isthmus.dev/isthmus/internal/hint"
)

// TestRefusals: what is wrong with documents reaches the operator, and goes away when it is repaired.
func TestRefusals(t *testing.T) {
	held := streams.DocumentVersion{Term: 1, Seq: 4, Hash: [32]byte{1}}
	other := streams.DocumentVersion{Term: 1, Seq: 4, Hash: [32]byte{2}}
	fork := hint.Wrap(&document.Alarm{Version: document.Version{Term: 1, Seq: 4}}, "compare")
	var r refusals
	if got := r.check(held); got.Status != OK {
		t.Errorf("at first: %v", got)
	}
	if !r.note("west", errors.New("no root has signed it")) || r.note("west", errors.New("no root has signed it")) {
		t.Error("the same refusal is news once")
	}
	if got := r.check(held); got.Status != Warn || !strings.Contains(got.Message, "west") || got.Hint == "" {
		t.Errorf("what anybody could have sent: %v, want a warning that names west", got)
	}
	r.note("north", fork)
	if got := r.check(held); got.Status != Fail || !strings.Contains(got.Message, "both signed") || got.Hint != "compare" {
		t.Errorf("two truths: %v, want a failure with its hint", got)
	}
	r.settled(held, []streams.PeerStatus{{Cluster: "west", Document: held}, {Cluster: "north", Document: other}})
	if got := r.check(held); got.Status != Fail || strings.Contains(got.Message, "west") {
		t.Errorf("west is repaired: %v, want north alone", got)
	}
	r.settled(held, nil)
	if got := r.check(held); got.Status != OK {
		t.Errorf("north has left: %v", got)
	}
}
