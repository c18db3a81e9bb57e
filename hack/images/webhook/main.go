// Command webhook is an admission webhook for tests, on :8443 with the key pair in the variables CERT and KEY. /validate
// refuses objects with the label deny=yes, /mutate gives every object the annotation mutated=yes.
package main

import (
	"crypto/tls"
	"encoding/json"
	"log"
	"net/http"
	"os"
	"time"
)

// review is what this program reads and writes of admission.k8s.io/v1 AdmissionReview.
type review struct {
	APIVersion string    `json:"apiVersion"`
	Kind       string    `json:"kind"`
	Request    *request  `json:"request,omitempty"`
	Response   *response `json:"response,omitempty"`
}

type request struct {
	UID    string `json:"uid"`
	Object struct {
		Metadata struct {
			Labels      map[string]string `json:"labels"`
			Annotations map[string]string `json:"annotations"`
		} `json:"metadata"`
	} `json:"object"`
}

type response struct {
	UID       string         `json:"uid"`
	Allowed   bool           `json:"allowed"`
	Status    map[string]any `json:"status,omitempty"`
	PatchType string         `json:"patchType,omitempty"`
	Patch     []byte         `json:"patch,omitempty"`
}

func main() {
	pair, err := tls.X509KeyPair([]byte(os.Getenv("CERT")), []byte(os.Getenv("KEY")))
	if err != nil {
		log.Fatalf("webhook: read CERT and KEY: %v", err)
	}
	server := &http.Server{Addr: ":8443", Handler: http.HandlerFunc(serve), ReadHeaderTimeout: 10 * time.Second,
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}}
	log.Fatal(server.ListenAndServeTLS("", ""))
}

func serve(w http.ResponseWriter, r *http.Request) {
	var in review
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4<<20)).Decode(&in); err != nil || in.Request == nil {
		http.Error(w, "want an AdmissionReview", http.StatusBadRequest)
		return
	}
	out := &response{UID: in.Request.UID, Allowed: true}
	meta := in.Request.Object.Metadata
	switch r.URL.Path {
	case "/validate":
		if meta.Labels["deny"] == "yes" {
			out.Allowed, out.Status = false, map[string]any{"message": "denied by the test webhook"}
		}
	case "/mutate":
		out.PatchType, out.Patch = "JSONPatch", []byte(`[{"op":"add","path":"/metadata/annotations","value":{"mutated":"yes"}}]`)
		if meta.Annotations != nil {
			out.Patch = []byte(`[{"op":"add","path":"/metadata/annotations/mutated","value":"yes"}]`)
		}
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(review{APIVersion: in.APIVersion, Kind: in.Kind, Response: out}) // the API server has gone when this fails
}
