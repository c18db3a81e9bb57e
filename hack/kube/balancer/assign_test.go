package balancer

import (
	"net/netip"
	"reflect"
	"testing"
)

func TestAssign(t *testing.T) {
	ip := func(last byte) netip.Addr { return netip.AddrFrom4([4]byte{172, 16, 1, last}) }
	for _, test := range []struct {
		reason string
		give   []Service
		want   map[string]netip.Addr
	}{
		{"nothing", nil, map[string]netip.Addr{}},
		{"lowest free ones, in the order of the keys", []Service{{Key: "b/b"}, {Key: "a/a"}}, map[string]netip.Addr{"a/a": ip(1), "b/b": ip(2)}},
		{"what is given stays", []Service{{Key: "a"}, {Key: "b", Current: ip(1)}}, map[string]netip.Addr{"a": ip(2), "b": ip(1)}},
		{"an address that is asked for comes before one that is chosen", []Service{{Key: "a"}, {Key: "b", Asked: ip(1)}}, map[string]netip.Addr{"a": ip(2), "b": ip(1)}},
		{"an address in use is not granted again", []Service{{Key: "a", Current: ip(1)}, {Key: "b", Asked: ip(1)}}, map[string]netip.Addr{"a": ip(1)}},
		{"whoever asks for another one moves", []Service{{Key: "a", Current: ip(1), Asked: ip(3)}}, map[string]netip.Addr{"a": ip(3)}},
		{"an address outside the range is not ours", []Service{{Key: "a", Current: ip(9)}, {Key: "b", Asked: ip(9)}}, map[string]netip.Addr{"a": ip(1)}},
		{"of two that claim one address the first keeps it", []Service{{Key: "a", Current: ip(2)}, {Key: "b", Current: ip(2)}}, map[string]netip.Addr{"a": ip(2), "b": ip(1)}},
		{"the pool ends", []Service{{Key: "a"}, {Key: "b"}, {Key: "c"}, {Key: "d"}}, map[string]netip.Addr{"a": ip(1), "b": ip(2), "c": ip(3)}},
	} {
		if got := Assign(ip(1), ip(3), test.give); !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s: Assign(%+v)\n got %v\nwant %v", test.reason, test.give, got, test.want)
		}
	}
}
