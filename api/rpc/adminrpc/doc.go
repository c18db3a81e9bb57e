// Package adminrpc holds the gRPC stubs of the admin API, apart from its messages so that pure packages can use those.
package adminrpc
