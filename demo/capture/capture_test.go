package capture

import (
	"encoding/hex"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestCount(t *testing.T) {
	texts := []string{"marker", "other"}
	counts := make([]int, 2)
	for _, packet := range []string{"..marker..", "marker marker", "mark", "er other", ""} {
		count([]byte(packet), texts, counts)
	}
	if diff := cmp.Diff([]int{2, 1}, counts); diff != "" {
		t.Errorf("packets with each text (-want +got):\n%s", diff)
	}
}

// The bytes are those of draft-ietf-opsawg-pcap, section 4 and 5, little endian.
func TestPcap(t *testing.T) {
	if got := hex.EncodeToString(pcapHeader()); got != "d4c3b2a1"+"02000400"+"00000000"+"00000000"+"00000400"+"01000000" {
		t.Errorf("file header %s", got)
	}
	p := Packet{Time: time.Unix(0x01020304, 5_000_999), Data: make([]byte, 60)}
	if got := hex.EncodeToString(pcapRecord(p)); got != "04030201"+"88130000"+"3c000000"+"3c000000" {
		t.Errorf("packet header %s", got)
	}
}
