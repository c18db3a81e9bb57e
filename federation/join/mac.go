package join

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"fmt"

	pb "isthmus.dev/isthmus/api/join"
	"isthmus.dev/isthmus/mesh"
)

// exporterLabel names the TLS exporter (RFC 8446 §7.5) both MACs are bound to.
const exporterLabel = "EXPORTER-isthmus-join"

// exporter gives 32 bytes that only the two ends of this TLS session know. It passes SNI pass-through
// proxies; whoever terminates TLS in between has two sessions and two exporters.
func exporter(state *tls.ConnectionState) ([]byte, error) {
	if state.Version != tls.VersionTLS13 {
		return nil, fmt.Errorf("TLS version %x, want 1.3", state.Version)
	}
	return state.ExportKeyingMaterial(exporterLabel, nil, 32)
}

// transcript is an HMAC over parts that cannot run into each other: each is preceded by its length.
func transcript(key []byte, label string, parts ...[]byte) []byte {
	mac := hmac.New(sha256.New, key)
	write := func(p []byte) {
		mac.Write(binary.BigEndian.AppendUint64(nil, uint64(len(p))))
		mac.Write(p)
	}
	write([]byte(label))
	for _, p := range parts {
		write(p)
	}
	return mac.Sum(nil)
}

func requestMAC(key, exporter []byte, cluster mesh.ClusterName, r *pb.AdmitRequest) []byte {
	parts := [][]byte{exporter, r.TokenId, r.Csr, []byte(cluster), []byte(r.Region), r.Nonce}
	for _, g := range r.Gateways {
		parts = append(parts, []byte(g))
	}
	return transcript(key, "isthmus join request v1", parts...)
}

func responseMAC(key, exporter []byte, request *pb.AdmitRequest, r *pb.AdmitResponse) []byte {
	parts := [][]byte{exporter, request.Mac}
	for _, c := range r.Chain {
		parts = append(parts, []byte("certificate"), c)
	}
	for _, d := range r.Documents {
		parts = append(parts, []byte("document"), d.GetPayload())
		for _, s := range d.GetSignatures() {
			parts = append(parts, s.GetRootId(), s.GetSignature())
		}
	}
	return transcript(key, "isthmus join response v1", parts...)
}
