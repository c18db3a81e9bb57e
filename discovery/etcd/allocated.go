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

// storedPlacement is a placement as it is kept. Before there was Served it was the list alone.
type storedPlacement struct {
	Served bool         `json:"served,omitempty"`
	Slots  []storedSlot `json:"slots"`
}

// storedSlot is the part of a slot that is kept; the rest follows from its pods.
type storedSlot struct {
	Index      uint32   `json:"index"`
	Generation uint32   `json:"generation"`
	Pods       []string `json:"pods,omitempty"` // in the service's namespace
}

// CommitAllocated writes a part of what is allocated, at most 100 entries, in one transaction that counts only while
// nobody else has written since version; else the error is [mesh.ErrAllocatedChanged]. It returns the next version.
func (s *Store) CommitAllocated(ctx context.Context, version int64, part mesh.Allocated) (int64, error) {
	ops := []clientv3.Op{clientv3.OpPut(allocatedAt, "")} // its revision is the version
	for host, addr := range part.VIPs {
		if !addr.IsValid() {
			ops = append(ops, clientv3.OpDelete(vips+string(host)))
			continue
		}
		ops = append(ops, clientv3.OpPut(vips+string(host), addr.String()))
	}
	for name, placement := range part.Slots {
		key := slotsAt + name.Namespace + "/" + name.Name
		if len(placement.Slots) == 0 && !placement.Served {
			ops = append(ops, clientv3.OpDelete(key))
			continue
		}
		value, err := json.Marshal(store(placement))
		if err != nil {
			return 0, fmt.Errorf("encode slots of %s: %w", name, err)
		}
		ops = append(ops, clientv3.OpPut(key, string(value)))
	}
	response, err := s.client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(allocatedAt), "=", version)).Then(ops...).Commit()
	if err != nil {
		return 0, explain(fmt.Errorf("save virtual addresses and slots: %w", err))
	}
	if !response.Succeeded {
		return 0, mesh.ErrAllocatedChanged
	}
	return response.Header.Revision, nil
}

func store(p mesh.Placement) storedPlacement {
	out := storedPlacement{Served: p.Served, Slots: []storedSlot{}}
	for _, slot := range p.Slots {
		one := storedSlot{Index: slot.Slot.Index, Generation: slot.Slot.Generation}
		for _, pod := range slot.Pods {
			one.Pods = append(one.Pods, pod.Name)
		}
		out.Slots = append(out.Slots, one)
	}
	return out
}

// LoadAllocated reads what CommitAllocated wrote, and its version. Entries it cannot read are left out: they are given
// out anew.
func (s *Store) LoadAllocated(ctx context.Context) (mesh.Allocated, int64, error) {
	a := mesh.Allocated{VIPs: map[mesh.Host]netip.Addr{}, Slots: map[mesh.ServiceName]mesh.Placement{}}
	// One transaction: the parts are of one moment.
	response, err := s.client.Txn(ctx).Then(
		clientv3.OpGet(vips, clientv3.WithPrefix()), clientv3.OpGet(slotsAt, clientv3.WithPrefix()), clientv3.OpGet(allocatedAt),
	).Commit()
	if err != nil {
		return a, 0, explain(fmt.Errorf("read virtual addresses and slots: %w", err))
	}
	for _, kv := range response.Responses[0].GetResponseRange().Kvs {
		if addr, err := netip.ParseAddr(string(kv.Value)); err == nil {
			a.VIPs[mesh.Host(strings.TrimPrefix(string(kv.Key), vips))] = addr
		}
	}
	for _, kv := range response.Responses[1].GetResponseRange().Kvs {
		namespace, service, ok := strings.Cut(strings.TrimPrefix(string(kv.Key), slotsAt), "/")
		name := mesh.ServiceName{Namespace: namespace, Name: service}
		if placement, err := readPlacement(namespace, kv.Value); ok && err == nil {
			a.Slots[name] = placement
		}
	}
	version := int64(0)
	for _, kv := range response.Responses[2].GetResponseRange().Kvs {
		version = kv.ModRevision
	}
	return a, version, nil
}

func readPlacement(namespace string, value []byte) (mesh.Placement, error) {
	var stored storedPlacement
	if err := json.Unmarshal(value, &stored); err != nil {
		// A list alone, of before.
		if err := json.Unmarshal(value, &stored.Slots); err != nil {
			return mesh.Placement{}, fmt.Errorf("decode slots: %w", err)
		}
	}
	out := mesh.Placement{Served: stored.Served}
	for _, one := range stored.Slots {
		slot := mesh.SlotPods{Slot: mesh.Slot{Index: one.Index, Generation: one.Generation}}
		for _, pod := range one.Pods {
			slot.Pods = append(slot.Pods, mesh.WorkloadName{Namespace: namespace, Name: pod})
		}
		out.Slots = append(out.Slots, slot)
	}
	return out, nil
}
