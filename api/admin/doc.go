// Package admin holds the messages of the admin API behind the command line (admin.proto).
package admin
