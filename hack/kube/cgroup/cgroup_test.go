package cgroup

import (
	"reflect"
	"testing"
)

func TestParseMounts(t *testing.T) {
	for _, test := range []struct {
		reason string
		give   string
		want   []Mount
	}{
		{"version 2 as systemd mounts it", "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n",
			[]Mount{{Path: "/sys/fs/cgroup", Unified: true}}},
		{"version 1 with an empty version 2 beside it; other file systems are no hierarchy", `26 25 0:23 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
27 26 0:24 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
28 26 0:25 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd
29 26 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
`, []Mount{
			{Path: "/sys/fs/cgroup/cpu,cpuacct", Controllers: []string{"cpu", "cpuacct"}},
			{Path: "/sys/fs/cgroup/systemd", Controllers: []string{"name=systemd"}},
			{Path: "/sys/fs/cgroup/unified", Unified: true},
		}},
		{"a bind mount of the same hierarchy counts once", "30 23 0:26 / /a rw - cgroup2 x rw\n31 23 0:26 / /b rw - cgroup2 x rw\n",
			[]Mount{{Path: "/a", Unified: true}}},
		{"no optional field, cut off line", "30 23 0:26 / /a rw\n\n", nil},
	} {
		if got := ParseMounts(test.give); !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s:\n got %+v\nwant %+v", test.reason, got, test.want)
		}
	}
}
