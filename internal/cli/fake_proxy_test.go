package cli_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"isthmus.dev/isthmus/api/admin"
	"isthmus.dev/isthmus/internal/hint"
)

// InspectProxy answers for a sidecar with the pages of testdata/envoy.json, for a gateway whose Envoy has nothing of the
// kind, and for proxies that are not as they should be.
func (f *fake) InspectProxy(request *admin.InspectProxyRequest, stream grpc.ServerStreamingServer[admin.InspectProxyPart]) error {
	if err := f.note("Mesh/InspectProxy", request); err != nil {
		return err
	}
	var page []byte
	var err error
	switch request.GetNamespace() + "/" + request.GetName() {
	case "shop/reviews-v1-1":
		page, err = envoyPage(request)
	case "isthmus-system/gateway":
		page = []byte(`{"configs":[]}`)
	case "shop/frozen":
		err = hint.Wrap(hint.Code(errors.New("sidecar shop/frozen is connected and does not answer within 10s"), "proxy_away"), "see whether it stands still")
	case "shop/bomb":
		page = make([]byte, 64<<20+1)
	case "shop/strange": // JSON, but nothing is what it should be
		page = []byte(`{"configs":[null,{"bootstrap":7,"static_clusters":{"cluster":1},"dynamic_listeners":[null,1,{"active_state":{"listener":{"name":["x"],"address":"y","filter_chains":[{"filters":[3]}]}}}],"static_route_configs":[{"route_config":{"name":"a\n\u001b[2Jb","virtual_hosts":[0,{"routes":["r"]}]}}],"static_secrets":[{"secret":{"tls_certificate":{"certificate_chain":{"inline_bytes":"&"}}}}]}],"cluster_statuses":[{"host_statuses":[9,{"address":{"socket_address":[]}}]}]}`)
	case "shop/noise":
		page = []byte("<html>")
	case "shop/stranger":
		return stream.Send(&admin.InspectProxyPart{Gzip: []byte("no gzip")})
	default:
		err = hint.Wrap(status.Errorf(codes.NotFound, "there is no proxy %s.%s in this cluster", request.GetName(), request.GetNamespace()), "did you mean reviews-v1-1.shop?")
	}
	if err != nil {
		return err
	}
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	if _, err := z.Write(page); err != nil {
		return err
	}
	if err := z.Close(); err != nil {
		return err
	}
	for part := make([]byte, 1000); ; {
		n, err := zipped.Read(part)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err := stream.Send(&admin.InspectProxyPart{Gzip: part[:n]}); err != nil {
			return err
		}
	}
}

// envoyPage is a page of Envoy's that has only what was asked for.
func envoyPage(request *admin.InspectProxyRequest) ([]byte, error) {
	if request.GetSubject() == "loggers" {
		levels := request.GetLevels()
		if _, ok := levels["nope"]; ok {
			return nil, hint.Wrap(hint.Code(errors.New("sidecar shop/reviews-v1-1: envoy answers 400: error: unknown logger name"), "proxy_refused"), "the log may say more")
		}
		page := "active loggers:\n"
		for _, logger := range []string{"admin", "http", "router"} {
			level := "warning"
			for _, name := range []string{"", logger} {
				if set := levels[name]; set != "" {
					level = set
				}
			}
			page += fmt.Sprintf("  %s: %s\n", logger, level)
		}
		return []byte(page), nil
	}
	whole, err := os.ReadFile("testdata/envoy.json")
	if err != nil {
		return nil, err
	}
	var d struct {
		Configs []map[string]any `json:"configs,omitempty"`
		Hosts   []any            `json:"cluster_statuses,omitempty"`
	}
	if err := json.Unmarshal(whole, &d); err != nil {
		return nil, err
	}
	switch subject := request.GetSubject(); subject {
	case "hosts":
		d.Configs = nil
	case "all":
		d.Hosts = nil
	default:
		d.Hosts = nil
		d.Configs = slices.DeleteFunc(d.Configs, func(c map[string]any) bool {
			return !strings.HasSuffix(strings.ToLower(c["@type"].(string)), "."+subject+"configdump")
		})
	}
	return json.Marshal(d)
}
