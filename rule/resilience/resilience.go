// Package resilience has the settings by which calls survive what breaks under them: those that count where no rule says
// anything, as Envoy messages that a rule may change.
//
// A call leaves an endpoint that is dead, frozen or cut off by what the sidecar itself sees (passive health); nothing here
// waits for a control plane. retry.go says when a request is tried again, budget.go how often at most after an answer,
// cluster.go when a connection is given up and an endpoint left out. docs/adr/0008, 0018 and 0019 say what was measured.
package resilience

import (
	"time"

	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"google.golang.org/protobuf/proto"
)

// SpeakingTimeout ends connections on which nothing is said, where both ends say something more often: control planes
// speak at every heartbeat, sidecars at every keepalive.
const SpeakingTimeout = time.Minute

func duration(d time.Duration) *durationpb.Duration { return durationpb.New(d) }
func u32(v uint32) *wrapperspb.UInt32Value          { return wrapperspb.UInt32(v) }

// pack encodes a message of ours deterministically.
func pack(m proto.Message) *anypb.Any {
	out := &anypb.Any{}
	if err := anypb.MarshalFrom(out, m, proto.MarshalOptions{Deterministic: true}); err != nil {
		panic(err) // no string of ours is invalid UTF-8
	}
	return out
}
