package etcd

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"

	"isthmus.dev/isthmus/mesh"
)

// Allocated is what the control plane gave out and must find again after a
// restart: virtual addresses, and which pods are behind which slot.
type Allocated struct {
	VIPs  map[mesh.Host]netip.Addr
	Slots map[mesh.ServiceName][]mesh.SlotPods
}

// storedSlot is the part of a slot that is kept; the rest follows from its pods.
type storedSlot struct {
	Index      uint32   `json:"index"`
	Generation uint32   `json:"generation"`
	Pods       []string `json:"pods,omitempty"` // in the service's namespace
}

// SaveAllocated writes addresses, and the slots of each service (none: they are
// forgotten). Large sets take several transactions; each part is true by itself.
func (s *Store) SaveAllocated(ctx context.Context, a Allocated) error {
	var ops []clientv3.Op
	for host, addr := range a.VIPs {
		ops = append(ops, clientv3.OpPut(vips+string(host), addr.String()))
	}
	for name, slots := range a.Slots {
		key := slotsAt + name.Namespace + "/" + name.Name
		if len(slots) == 0 {
			ops = append(ops, clientv3.OpDelete(key))
			continue
		}
		stored := []storedSlot{}
		for _, slot := range slots {
			one := storedSlot{Index: slot.Slot.Index, Generation: slot.Slot.Generation}
			for _, pod := range slot.Pods {
				one.Pods = append(one.Pods, pod.Name)
			}
			stored = append(stored, one)
		}
		value, err := json.Marshal(stored)
		if err != nil {
			return fmt.Errorf("encode slots of %s: %w", name, err)
		}
		ops = append(ops, clientv3.OpPut(key, string(value)))
	}
	const chunk = 100 // below the 128 a server outside allows by default
	for len(ops) > 0 {
		n := min(chunk, len(ops))
		if _, err := s.client.Txn(ctx).Then(ops[:n]...).Commit(); err != nil {
			return explain(fmt.Errorf("save virtual addresses and slots: %w", err))
		}
		ops = ops[n:]
	}
	return nil
}

// LoadAllocated reads what SaveAllocated wrote. Entries it cannot read are left out:
// they are given out anew.
func (s *Store) LoadAllocated(ctx context.Context) (Allocated, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	a := Allocated{VIPs: map[mesh.Host]netip.Addr{}, Slots: map[mesh.ServiceName][]mesh.SlotPods{}}
	response, err := s.client.Get(ctx, vips, clientv3.WithPrefix())
	if err != nil {
		return a, explain(fmt.Errorf("read virtual addresses: %w", err))
	}
	for _, kv := range response.Kvs {
		if addr, err := netip.ParseAddr(string(kv.Value)); err == nil {
			a.VIPs[mesh.Host(strings.TrimPrefix(string(kv.Key), vips))] = addr
		}
	}
	response, err = s.client.Get(ctx, slotsAt, clientv3.WithPrefix())
	if err != nil {
		return a, explain(fmt.Errorf("read slots: %w", err))
	}
	for _, kv := range response.Kvs {
		namespace, service, ok := strings.Cut(strings.TrimPrefix(string(kv.Key), slotsAt), "/")
		var stored []storedSlot
		if !ok || json.Unmarshal(kv.Value, &stored) != nil {
			continue
		}
		name := mesh.ServiceName{Namespace: namespace, Name: service}
		for _, one := range stored {
			slot := mesh.SlotPods{Slot: mesh.Slot{Index: one.Index, Generation: one.Generation}}
			for _, pod := range one.Pods {
				slot.Pods = append(slot.Pods, mesh.WorkloadName{Namespace: namespace, Name: pod})
			}
			a.Slots[name] = append(a.Slots[name], slot)
		}
	}
	return a, nil
}
