package catalog

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	pb "isthmus.dev/isthmus/api/catalogue"
)

// FuzzBounds: a message that passes the bounds decodes into no more than they allow; one that has them is not refused.
func FuzzBounds(f *testing.F) {
	hash := make([]byte, sha256.Size)
	large, signed := &pb.Snapshot{}, &pb.Manifest{}
	for i := range MaxServices {
		large.Services = append(large.Services, []byte{byte(i)})
		signed.Entries = append(signed.Entries, &pb.Entry{Namespace: "shop", Name: fmt.Sprint(i), Hash: hash})
	}
	payload, err := proto.Marshal(signed)
	if err != nil {
		f.Fatal(err)
	}
	large.Manifest = &pb.SignedManifest{Payload: payload, Chain: [][]byte{hash}}
	for _, m := range []proto.Message{
		&pb.SubscribeResponse{Kind: &pb.SubscribeResponse_Snapshot{Snapshot: large}},
		&pb.SubscribeResponse{Kind: &pb.SubscribeResponse_Delta{Delta: &pb.Delta{Changed: large.Services[:9]}}},
		&pb.SubscribeRequest{Kind: &pb.SubscribeRequest_Evidence{Evidence: large.Manifest}},
	} {
		raw, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Add([]byte{0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01})
	f.Add(bytes.Repeat([]byte{0x0b}, 20_000)) // groups in groups
	f.Fuzz(func(t *testing.T, raw []byte) {
		seen := 0
		err := scan(raw, nil, func(_ protowire.Number, value []byte) error { seen += len(value); return nil })
		if err == nil && seen > len(raw) {
			t.Errorf("%d bytes were seen of %d", seen, len(raw))
		}
		var response pb.SubscribeResponse
		if CheckResponse(raw) == nil && proto.Unmarshal(raw, &response) == nil {
			if n := max(len(response.GetSnapshot().GetServices()), len(response.GetDelta().GetChanged())); n > maxFields*MaxServices {
				t.Errorf("%d services passed", n)
			}
		}
		var request pb.SubscribeRequest
		if CheckRequest(raw) == nil && proto.Unmarshal(raw, &request) == nil && len(request.GetEvidence().GetChain()) > maxFields*maxChain {
			t.Errorf("%d certificates passed", len(request.GetEvidence().GetChain()))
		}
	})
}

// FuzzSigned: a member signs whatever it likes; Verify refuses it or gives what can be announced again.
func FuzzSigned(f *testing.F) {
	w := newWorld(f)
	largest := service("shop", "reviews", 1)
	largest.Slots = nil
	for i := range MaxSlots {
		slot := service("shop", "reviews", 1).Slots[1]
		slot.Index = uint32(i)
		largest.Slots = append(largest.Slots, slot)
	}
	largest.VirtualServices = [][]byte{bytes.Repeat([]byte{'x'}, MaxRouteBytes)}
	for _, h := range []*Holding{w.sign(f, 1, 1, service("shop", "reviews", 1)), w.sign(f, 1, 1, largest)} {
		f.Add(h.Wire().Manifest.Payload, h.Wire().Services[0])
	}
	f.Fuzz(func(t *testing.T, payload, encoded []byte) {
		// The first hash becomes right, so that the service is looked at however it was changed.
		var m pb.Manifest
		if proto.Unmarshal(payload, &m) == nil && len(m.Entries) > 0 && m.Entries[0] != nil {
			hash := sha256.Sum256(encoded)
			m.Entries[0].Hash = hash[:]
			if again, err := proto.Marshal(&m); err == nil {
				payload = again
			}
		}
		signature, err := w.signer.Key.Sign(rand.Reader, digest(payload), crypto.SHA256)
		if err != nil {
			t.Fatal(err)
		}
		s := &pb.Snapshot{Manifest: &pb.SignedManifest{Payload: payload, Signature: signature, Chain: w.signer.Chain}, Services: [][]byte{encoded}}
		h, err := Verify(s, w.from, nil)
		if err != nil {
			return
		}
		for _, service := range h.Catalogue.Services {
			if _, err := encode(service); err != nil {
				t.Errorf("took a service that cannot be announced: %v", err)
			}
		}
	})
}
