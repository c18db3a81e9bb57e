package app

import (
	"strings"
	"testing"

	"isthmus.dev/isthmus/mesh"
)

func TestCheckAddresses(t *testing.T) {
	if c := checkAddresses(nil); c.Status != "ok" {
		t.Errorf("nothing is short: %v", c)
	}
	c := checkAddresses(map[mesh.ClusterName]int{"west": 12, "": 3})
	if c.Status != "warn" || !strings.Contains(c.Message, "3 of this cluster, 12 of west") || c.Hint == "" {
		t.Errorf("12 of west and 3 of this cluster have none: %v", c)
	}
}
