package translate

import (
	"testing"
	"time"

	"isthmus.dev/isthmus/mesh"
)

// TestKeepaliveLeavesTheConnectTimeout: Envoy starts the keepalive when it begins a connection, so it bounds the
// handshake too.
func TestKeepaliveLeavesTheConnectTimeout(t *testing.T) {
	for _, want := range []time.Duration{0, 100 * time.Millisecond, time.Second, 2 * time.Second, 10 * time.Second} {
		pool := &mesh.ConnectionPool{ConnectTimeout: want}
		k := sidecarHTTP(pool).GetExplicitHttpConfig().GetHttp2ProtocolOptions().GetConnectionKeepalive()
		if interval, least := k.GetInterval().AsDuration(), connectTimeout(pool)+200*time.Millisecond; interval < least {
			t.Errorf("connectTimeout %v: the first PING after %v, want %v or more", connectTimeout(pool), interval, least)
		}
		if found := k.GetInterval().AsDuration() + k.GetTimeout().AsDuration(); connectTimeout(pool) <= time.Second && found > 2*time.Second {
			t.Errorf("connectTimeout %v: a frozen peer is found after %v, want at most 2 s", connectTimeout(pool), found)
		}
	}
}

// TestQuietConnectionsSpeak: gateways end what says nothing for a minute.
func TestQuietConnectionsSpeak(t *testing.T) {
	for _, timeout := range []time.Duration{time.Second, 50 * time.Second, time.Minute, time.Hour} {
		k := keepalive(&mesh.ConnectionPool{ConnectTimeout: timeout})
		if silent := k.GetInterval().AsDuration() + k.GetTimeout().AsDuration(); silent > speakingTimeout-10*time.Second {
			t.Errorf("connectTimeout %v: silent for %v, a gateway waits %v", timeout, silent, speakingTimeout)
		}
	}
}
