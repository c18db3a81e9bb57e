// Package shopv1 is the demo application's gRPC service, generated from shop.proto.
package shopv1
