package redirect

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPlan(t *testing.T) {
	for _, tc := range []struct {
		reason string
		config Config
		want   string
	}{
		{"every sidecar's", Config{}, `table ip isthmus {
	chain output {
		type nat hook output priority -100; policy accept;
		meta mark 0x00001338 return
		meta mark 0x00001337 oifname "lo" ip daddr != 127.0.0.0/8 meta l4proto tcp redirect to :15006
		meta mark 0x00001337 return
		udp dport 53 redirect to :15053
		tcp dport 53 redirect to :15053
		oifname "lo" return
		meta l4proto tcp redirect to :15001
	}

	chain prerouting {
		type nat hook prerouting priority -100; policy accept;
		iifname "eth0" meta l4proto tcp redirect to :15006
	}
}
`},
		{"excluded ports come first, in order, once", Config{
			Mark: 7, InboundMark: 8, OutboundPort: 1, InboundPort: 2, DNSPort: 3, Interface: "net1", ExcludeInbound: []uint16{9090, 22, 9090},
		}, `table ip isthmus {
	chain output {
		type nat hook output priority -100; policy accept;
		meta mark 0x00000008 return
		meta mark 0x00000007 oifname "lo" ip daddr != 127.0.0.0/8 meta l4proto tcp redirect to :2
		meta mark 0x00000007 return
		udp dport 53 redirect to :3
		tcp dport 53 redirect to :3
		oifname "lo" return
		meta l4proto tcp redirect to :1
	}

	chain prerouting {
		type nat hook prerouting priority -100; policy accept;
		iifname "net1" tcp dport 22 return
		iifname "net1" tcp dport 9090 return
		iifname "net1" meta l4proto tcp redirect to :2
	}
}
`},
	} {
		plan, err := New(tc.config)
		if err != nil {
			t.Fatalf("%s: %v", tc.reason, err)
		}
		if diff := cmp.Diff(tc.want, plan.String()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tc.reason, diff)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	for _, tc := range []struct {
		reason string
		config Config
		says   string
	}{
		{"the kernel would cut the name", Config{Interface: "a-very-long-name"}, "at most 15 bytes"},
		{"no interface has such a name", Config{Interface: "eth 0"}, "without spaces"},
		{"loopback is never redirected", Config{Interface: "lo"}, "directly"},
		{"no port", Config{ExcludeInbound: []uint16{0}}, "port 0"},
		{"one mark for two purposes", Config{Mark: 7, InboundMark: 7}, "must differ"},
		{"one listener for two purposes", Config{OutboundPort: 15006}, "must differ"},
	} {
		if _, err := New(tc.config); err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: New(%+v) = %v, want an error with %q", tc.reason, tc.config, err, tc.says)
		}
	}
}
