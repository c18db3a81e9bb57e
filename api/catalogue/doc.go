// Package catalogue holds what one cluster tells the others of its exports, and the stream it travels on (catalogue.proto).
package catalogue
