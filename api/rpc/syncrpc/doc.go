// Package syncrpc holds the gRPC stubs of the catalogue streams.
package syncrpc
