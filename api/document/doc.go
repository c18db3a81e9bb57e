// Package document holds the wire form of the federation document (document.proto).
package document
