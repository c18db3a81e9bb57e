package join

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	pb "isthmus.dev/isthmus/api/join"
	"isthmus.dev/isthmus/trust/ca"
	"isthmus.dev/isthmus/trust/store"
)

// witness admits nobody, and checks what reaches it.
type witness struct{ t *testing.T }

var errWitness = errors.New("not admitted")

func (w witness) Check(a Admission) error {
	if a.Cluster != "west" || len(a.Namespaces) != 1 || ca.CheckKey(a.Key) != nil {
		w.t.Errorf("admission %+v", a)
	}
	return errWitness
}

func (w witness) Admit(context.Context, Admission) (*Admitted, error) {
	w.t.Error("admitted though Check refused")
	return nil, errWitness
}

// FuzzAdmit: whatever the holder of a token asks for, its name and grants are the token's and its key is a good one.
func FuzzAdmit(f *testing.F) {
	key, err := ca.NewKey()
	if err != nil {
		f.Fatal(err)
	}
	csr, err := ca.RequestFor(key)
	if err != nil {
		f.Fatal(err)
	}
	r := &pb.AdmitRequest{TokenId: make([]byte, idLen), Csr: csr, Nonce: make([]byte, nonceLen), Region: "us", Mac: make([]byte, 32), Gateways: []string{"192.0.2.1:15443"}}
	for _, more := range []int{0, 150} {
		for range more {
			r.Gateways = append(r.Gateways, "[2001:db8::1]:15443")
		}
		raw, err := proto.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Add(bytes.Repeat([]byte{0x12, 0}, maxRequest/2))
	dir, err := store.Open(filepath.Join(f.TempDir(), "tokens"))
	if err != nil {
		f.Fatal(err)
	}
	tokens, err := OpenTokens(dir, nil)
	if err != nil {
		f.Fatal(err)
	}
	s := NewServer(ServerConfig{Tokens: tokens, Log: slog.New(slog.DiscardHandler)})
	p := &proven{id: "00", rec: record{ID: "00", Key: make([]byte, keyLen), Cluster: "west", Namespaces: []string{"shop"}}}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var r pb.AdmitRequest
		if len(raw) > maxRequest || proto.Unmarshal(raw, &r) != nil {
			return
		}
		if _, err := tokens.prove(make([]byte, 32), &r); err == nil {
			t.Error("proved a token that there is not")
		}
		if _, err := s.admit(t.Context(), witness{t}, p, &r); err == nil {
			t.Error("admitted")
		}
	})
}

// FuzzAnswer: what an authority answers is refused by an error, if it is not what the token promises.
func FuzzAnswer(f *testing.F) {
	key, err := ca.NewKey()
	if err != nil {
		f.Fatal(err)
	}
	response := &pb.AdmitResponse{Chain: [][]byte{{0x30, 0}, {0x30, 0}}, Mac: make([]byte, 32)}
	for _, size := range []int{1, 64 << 10} {
		response.Chain[0] = make([]byte, size)
		raw, err := proto.Marshal(response)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	j := &joining{Config: Config{Now: time.Now}, key: key.Public(), token: &pb.Token{Federation: "fed.test", Cluster: "west", RootPins: [][]byte{make([]byte, 32)}}}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var r pb.AdmitResponse
		if proto.Unmarshal(raw, &r) != nil {
			return
		}
		if _, err := j.verify(&r); err == nil {
			t.Error("believed an authority whose root is not the token's")
		}
		_ = responseMAC(make([]byte, 32), make([]byte, 32), &pb.AdmitRequest{}, &r)
	})
}
