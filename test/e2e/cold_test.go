package e2e

import (
	"testing"
	"time"
)

// TestColdStart restarts west's control plane while every peer is dead. West's own
// services answer at once, and the remote ones as soon as their data planes are back,
// though no other control plane lives: everything comes from disk.
func TestColdStart(t *testing.T) {
	d := up(t)
	for _, target := range []string{"east", "north", "west/controlplane"} {
		d.fault(t, "kill", target)
	}
	d.fault(t, "restore", "west/controlplane")
	if got := d.call(t, "west", "ratings"+domain, "--count", "50"); got.Failed != 0 || got.ByCluster["west"] != 50 {
		t.Errorf("west's own ratings with every peer dead: %v", got)
	}
	// A proxy that starts now knows the world only from the restarted control plane.
	d.fault(t, "kill", "west/caller-us-a/sidecar")
	d.fault(t, "restore", "west/caller-us-a/sidecar")
	for _, c := range d.cluster(t, "north").Components {
		if c.Kind != "controlplane" {
			d.fault(t, "restore", "north/"+c.Name)
		}
	}
	d.fault(t, "kill", "west/apps")
	eventually(t, 30*time.Second, func() string {
		if got := d.call(t, "west", "ratings"+domain, "--count", "20"); got.Failed != 0 || got.ByCluster["north"] != 20 {
			return got.String()
		}
		return ""
	})
}

// TestProxiesOutliveTheControlPlane restarts sidecar and gateway while their control
// plane is dead.
func TestProxiesOutliveTheControlPlane(t *testing.T) {
	d := up(t, "--clusters", "2")
	d.fault(t, "kill", "west/controlplane")
	for _, proxy := range []string{"west/gateway", "west/ledger-1/sidecar"} {
		d.fault(t, "kill", proxy)
		d.fault(t, "restore", proxy)
	}
	eventually(t, 30*time.Second, func() string {
		got := d.call(t, "east", "ledger"+domain, "--count", "20", "--protocol", "tcp")
		if got.Failed != 0 || got.ByInstance["west/ledger-1"] == 0 {
			return got.String()
		}
		return ""
	})
	// So does one that only calls: all that it knows is on its disk.
	d.fault(t, "kill", "west/caller-us-a/sidecar")
	d.fault(t, "restore", "west/caller-us-a/sidecar")
	eventually(t, 30*time.Second, func() string {
		if got := d.call(t, "west", "ratings"+domain, "--count", "10"); got.Failed != 0 {
			return got.String()
		}
		return ""
	})
}
