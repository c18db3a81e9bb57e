// Package joinrpc holds the gRPC stubs of joining and of membership.
package joinrpc
