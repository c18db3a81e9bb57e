// Package workloadrpc holds the gRPC stubs of what proxies ask their control plane.
package workloadrpc
