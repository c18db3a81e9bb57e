package etcd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"os"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"isthmus.dev/isthmus/internal/hint"
)

// ExternalConfig names an etcd cluster outside. All fields are needed: without
// mTLS whoever reaches its port could rewrite the mesh.
type ExternalConfig struct {
	Endpoints     []string // https://host:port
	Cert, Key, CA string   // PEM files: the client's certificate and key, the server's authority
	// DialTimeout bounds the first contact; 0 means 5 s.
	DialTimeout time.Duration
}

// Validate names the field that is wrong.
func (c ExternalConfig) Validate() error {
	if len(c.Endpoints) == 0 {
		return errors.New("no etcd endpoint is given")
	}
	for _, endpoint := range c.Endpoints {
		if u, err := url.Parse(endpoint); err != nil || u.Scheme != "https" || u.Host == "" {
			return hint.Wrap(fmt.Errorf("etcd endpoint %q is not https://host:port", endpoint), "etcd is used over mTLS only: start it with --client-cert-auth")
		}
	}
	for _, f := range []struct{ flag, value string }{{"--etcd-cert", c.Cert}, {"--etcd-key", c.Key}, {"--etcd-ca", c.CA}} {
		if f.value == "" {
			return hint.Wrap(fmt.Errorf("%s is missing", f.flag), "etcd endpoints need --etcd-cert, --etcd-key and --etcd-ca")
		}
	}
	return nil
}

// External connects to an etcd cluster and makes sure that it answers. The caller
// closes the client.
func External(ctx context.Context, config ExternalConfig) (*clientv3.Client, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	certificate, err := tls.LoadX509KeyPair(config.Cert, config.Key)
	if err != nil {
		return nil, hint.Wrap(fmt.Errorf("read etcd client certificate %s: %w", config.Cert, err), "check --etcd-cert and --etcd-key: PEM files that belong together")
	}
	authority, err := os.ReadFile(config.CA)
	if err != nil {
		return nil, hint.Wrap(fmt.Errorf("read etcd authority: %w", err), "check --etcd-ca")
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(authority) {
		return nil, hint.Wrap(fmt.Errorf("etcd authority %s holds no PEM certificate", config.CA), "check --etcd-ca")
	}
	client, err := clientv3.New(clientv3.Config{
		Endpoints:            config.Endpoints,
		DialKeepAliveTime:    5 * time.Second,
		DialKeepAliveTimeout: 3 * time.Second,
		TLS:                  &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{certificate}, RootCAs: roots},
		Logger:               zap.NewNop(),
	})
	if err != nil {
		return nil, fmt.Errorf("connect to etcd %v: %w", config.Endpoints, err)
	}
	ctx, cancel := context.WithTimeout(ctx, orDefault(config.DialTimeout, 5*time.Second))
	defer cancel()
	if _, err := client.Get(ctx, prefix, clientv3.WithLimit(1), clientv3.WithKeysOnly(), clientv3.WithPrefix()); err != nil {
		return nil, hint.Wrap(errors.Join(fmt.Errorf("etcd at %v does not answer: %w", config.Endpoints, err), client.Close()),
			"check that it runs, that --etcd-ca signed its certificate, and that it accepts --etcd-cert")
	}
	return client, nil
}
