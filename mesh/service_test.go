package mesh

import "testing"

func TestTargetPort(t *testing.T) {
	w := &Workload{Ready: true, Ports: map[string]uint32{"web": 8443, "http": 9000, "": 1}}
	for _, tc := range []struct {
		why    string
		port   Port
		want   uint32
		serves bool
	}{
		{"a number", Port{Name: "admin", Number: 80, TargetPort: 8080}, 8080, true},
		{"a number, and the workload has a port called as the service's", Port{Name: "http", Number: 80, TargetPort: 8080}, 9000, true},
		{"a name that the workload has", Port{Name: "http", Number: 80, TargetName: "web"}, 8443, true},
		{"a name that it does not have: it does not serve the port", Port{Name: "http", Number: 80, TargetName: "other"}, 0, false},
		{"a service's port without a name", Port{Number: 80, TargetPort: 8080}, 8080, true},
	} {
		got := w.TargetPort(tc.port)
		if got != tc.want || w.Serves(got) != tc.serves {
			t.Errorf("%s: port %d, served %v; want %d, %v", tc.why, got, w.Serves(got), tc.want, tc.serves)
		}
	}
}
