// Package allocate decides what a cluster gives out and must not give out twice: the virtual addresses of hosts
// (address.go) and which pods stand behind which slot of an exported service (slot.go). It is pure: equal arguments
// give equal results.
//
// An address is chosen by the hash of the host's name, so that a registry that was lost gives most hosts the address
// they had; where two hosts hash alike, the next free address is taken, so the result is to be stored. Addresses mean
// something only inside one cluster.
//
// A slot is one share of a service that other clusters balance over: it has its own server name, its own connection
// and its own Envoy cluster at the gateway (see mesh.Slot). What costs is moving a pod from one slot to another, because
// every client then opens a new connection; so [Slots] moves as little as it can. Invariants of its result, each of them
// a property in the tests:
//   - every pod is behind exactly one index, and indices are below the limit;
//   - as long as the limit allows it, a slot has one pod; beyond, the pods of a slot have the same zone and the same
//     labels, unless there are more such classes than slots;
//   - an index keeps its generation exactly while it keeps its pods;
//   - assigning again changes nothing.
package allocate
