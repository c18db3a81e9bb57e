package server

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	"isthmus.dev/isthmus/demo/shop/answer"
	"isthmus.dev/isthmus/demo/shop/shopv1"
)

// callTimeout bounds one call to another service: a storefront whose suppliers are gone still answers.
const callTimeout = 2 * time.Second

// maxAnswer bounds what is read of another service's answer, in bytes.
const maxAnswer = 1 << 20

// caller is a Target with what it needs to be called again and again.
type caller struct {
	target Target
	http   *http.Client     // HTTP only
	grpc   *grpc.ClientConn // gRPC only
}

// newCallers prepares the targets; it connects to none.
func newCallers(targets []Target) ([]caller, error) {
	callers := make([]caller, 0, len(targets))
	for _, target := range targets {
		c := caller{target: target}
		switch target.Protocol {
		case HTTP:
			c.http = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 16}}
		case GRPC:
			// A name that did not resolve a moment ago may by now: do not sit out gRPC's minutes of back-off.
			conn, err := grpc.NewClient("passthrough:///"+target.Address,
				grpc.WithTransportCredentials(insecure.NewCredentials()),
				grpc.WithConnectParams(grpc.ConnectParams{
					Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.5, MaxDelay: time.Second},
					MinConnectTimeout: callTimeout,
				}))
			if err != nil {
				return nil, fmt.Errorf("prepare calls to %s at %s: %w", target.Service, target.Address, err)
			}
			c.grpc = conn
		case TCP:
		default:
			return nil, fmt.Errorf("prepare calls to %s: protocol %q is unknown", target.Service, target.Protocol)
		}
		callers = append(callers, c)
	}
	return callers, nil
}

func (c caller) close() {
	if c.http != nil {
		c.http.CloseIdleConnections()
	}
	if c.grpc != nil {
		_ = c.grpc.Close()
	}
}

// callAll calls every target at once and returns what came of it, by service.
func callAll(ctx context.Context, callers []caller) map[string]answer.Call {
	results := make([]answer.Call, len(callers))
	var done sync.WaitGroup
	for i, c := range callers {
		done.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, callTimeout)
			defer cancel()
			begin := time.Now()
			who, err := c.call(ctx)
			results[i] = answer.Call{Instance: who, Ms: float64(time.Since(begin).Microseconds()) / 1000}
			if err != nil {
				results[i].Error = err.Error()
			}
		})
	}
	done.Wait()
	byService := make(map[string]answer.Call, len(callers))
	for i, c := range callers {
		byService[c.target.Service] = results[i]
	}
	return byService
}

// call asks the target once who it is.
func (c caller) call(ctx context.Context) (answer.Instance, error) {
	switch c.target.Protocol {
	case HTTP:
		return c.callHTTP(ctx)
	case GRPC:
		reply, err := shopv1.NewEchoClient(c.grpc).Call(ctx, &shopv1.CallRequest{})
		if err != nil {
			return answer.Instance{}, err
		}
		return answer.Instance{
			Service: reply.GetService(), Version: reply.GetVersion(),
			Cluster: reply.GetCluster(), Zone: reply.GetZone(), Instance: reply.GetInstance(),
		}, nil
	default:
		return callTCP(ctx, c.target.Address)
	}
}

func (c caller) callHTTP(ctx context.Context) (answer.Instance, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+c.target.Address+"/", nil)
	if err != nil {
		return answer.Instance{}, err
	}
	response, err := c.http.Do(request)
	if err != nil {
		return answer.Instance{}, err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return answer.Instance{}, fmt.Errorf("read the answer of %s: %w", c.target.Address, err)
	}
	var who answer.Instance
	if response.StatusCode != http.StatusOK {
		return who, fmt.Errorf("%s answered %s: %.200s", c.target.Address, response.Status, body)
	}
	if err := json.Unmarshal(body, &who); err != nil {
		return who, fmt.Errorf("decode the answer of %s: %w", c.target.Address, err)
	}
	return who, nil
}

func callTCP(ctx context.Context, address string) (answer.Instance, error) {
	var who answer.Instance
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return who, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer func() {
		stop()
		_ = conn.Close()
	}()
	line, err := bufio.NewReader(io.LimitReader(conn, maxAnswer)).ReadBytes('\n')
	if err != nil {
		return who, errors.Join(fmt.Errorf("read the first line of %s: %w", address, err), ctx.Err())
	}
	if err := json.Unmarshal(line, &who); err != nil {
		return who, fmt.Errorf("decode the first line of %s: %w", address, err)
	}
	return who, nil
}
