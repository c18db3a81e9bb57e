package main

import (
	"context"
	"errors"
	"io"
	"testing"

	"isthmus.dev/isthmus/demo/shop/server"
)

func TestParsePort(t *testing.T) {
	for _, tc := range []struct {
		reason, text string
		want         port
		fails        bool
	}{
		{reason: "as the demo writes it", text: "http:8080:http", want: port{"http", 8080, server.HTTP}},
		{reason: "protocols in any case", text: "g:9090:GRPC", want: port{"g", 9090, server.GRPC}},
		{reason: "no protocol", text: "http:8080", fails: true},
		{reason: "no name", text: ":8080:http", fails: true},
		{reason: "a port that does not exist", text: "http:65536:http", fails: true},
		{reason: "port 0 is any port, which nobody could call", text: "http:0:http", fails: true},
		{reason: "a protocol that the shop lacks", text: "dns:53:udp", fails: true},
	} {
		got, err := parsePort(tc.text)
		if (err != nil) != tc.fails || got != tc.want {
			t.Errorf("%s: parsePort(%q) = %v, %v", tc.reason, tc.text, got, err)
		}
	}
}

func TestWrongUsageIsTold(t *testing.T) {
	for _, args := range [][]string{
		{},
		{"--service", "ratings"},
		{"--service", "ratings", "--instance", "ratings-1", "--port", "x"},
		{"--nosuch"},
	} {
		cmd := command(io.Discard)
		cmd.SetArgs(args)
		cmd.SetOut(io.Discard)
		cmd.SetErr(io.Discard)
		if err := cmd.ExecuteContext(context.Background()); !errors.Is(err, errUsage) {
			t.Errorf("isthmus-shop %q = %v, want wrong usage", args, err)
		}
	}
}
