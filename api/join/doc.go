// Package join holds the messages of first contact, renewal and farewell between a cluster and the authority (join.proto).
package join
