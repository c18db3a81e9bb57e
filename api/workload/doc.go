// Package workload holds what a proxy agent and its control plane say to each other besides xDS (workload.proto).
package workload
