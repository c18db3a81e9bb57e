package join_test

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	pb "isthmus.dev/isthmus/api/join"
	"isthmus.dev/isthmus/federation/join"
	"isthmus.dev/isthmus/internal/hint"
)

func sample() *pb.Token {
	return &pb.Token{
		Federation: "fed.test", Cluster: "west", Authority: "east", Gateways: []string{"192.0.2.1:15443"},
		RootPins: [][]byte{make([]byte, 32)}, Term: 1, Seq: 1, Id: make([]byte, 16), Secret: []byte(strings.Repeat("s", 32)),
		ExpiresUnix: time.Now().Add(time.Minute).Unix(), Namespaces: []string{"shop"},
	}
}

func encode(t testing.TB, change func(*pb.Token)) string {
	t.Helper()
	tok := sample()
	if change != nil {
		change(tok)
	}
	s, err := join.Encode(tok)
	must(t, err)
	return s
}

// TestDecode: what is wrong with a token is said locally, with a way out, and without repeating it.
func TestDecode(t *testing.T) {
	whole := encode(t, nil)
	tests := []struct {
		why, token, code string
	}{
		{"whole", whole, ""},
		{"with the line end of a copy", whole + "\n", ""},
		{"empty", "", join.CodeMalformed},
		{"something else", "eyJhbGciOi", join.CodeMalformed},
		{"of a later version", "isth2." + whole[6:], join.CodeMalformed},
		{"only the prefix", "isth1.", join.CodeTruncated},
		{"cut in the middle", whole[:len(whole)/2], join.CodeTruncated},
		{"cut before the checksum", whole[:strings.LastIndex(whole, ".")], join.CodeTruncated},
		{"cut by one character", whole[:len(whole)-1], join.CodeTruncated},
		{"one character changed", strings.Replace(whole, whole[20:21], flip(whole[20]), 1), join.CodeTruncated},
		{"a space within", whole[:20] + " " + whole[20:], join.CodeMalformed},
		{"huge", "isth1." + strings.Repeat("A", 1<<20), join.CodeMalformed},
		{"no pin", encode(t, func(t *pb.Token) { t.RootPins = nil }), join.CodeMalformed},
		{"a short secret", encode(t, func(t *pb.Token) { t.Secret = t.Secret[:8] }), join.CodeMalformed},
		{"a cluster name that is none", encode(t, func(t *pb.Token) { t.Cluster = "West!" }), join.CodeMalformed},
		{"a gateway that is none", encode(t, func(t *pb.Token) { t.Gateways = []string{"gw"} }), join.CodeMalformed},
	}
	for _, test := range tests {
		t.Run(test.why, func(t *testing.T) {
			got, err := join.Decode(test.token)
			if hint.CodeOf(err) != test.code || (err == nil) != (test.code == "") {
				t.Fatalf("error %v with code %q, want code %q", err, hint.CodeOf(err), test.code)
			}
			if err == nil {
				if !proto.Equal(got, sample()) && got.ExpiresUnix == 0 {
					t.Errorf("decoded %v", got)
				}
				return
			}
			if hint.Of(err) == "" {
				t.Errorf("error %v has no hint", err)
			}
			if len(test.token) > 30 && strings.Contains(err.Error()+hint.Of(err), test.token[10:30]) {
				t.Errorf("error %v repeats the token", err)
			}
		})
	}
}

func flip(b byte) string {
	if b == 'A' {
		return "B"
	}
	return "A"
}

func TestCheck(t *testing.T) {
	now := time.Now()
	tests := []struct {
		why, code string
		self      string
		change    func(*pb.Token)
	}{
		{"good", "", "", nil},
		{"for this cluster", "", "west", nil},
		{"for another cluster", join.CodeOther, "north", nil},
		{"expired", join.CodeExpired, "", func(t *pb.Token) { t.ExpiresUnix = now.Unix() }},
		{"without a gateway", join.CodeMalformed, "", func(t *pb.Token) { t.Gateways = nil }},
	}
	for _, test := range tests {
		t.Run(test.why, func(t *testing.T) {
			tok := sample()
			if test.change != nil {
				test.change(tok)
			}
			err := join.Check(tok, clusterName(test.self), now)
			if hint.CodeOf(err) != test.code || err != nil && hint.Of(err) == "" {
				t.Errorf("error %v, code %q, hint %q; want code %q and a hint", err, hint.CodeOf(err), hint.Of(err), test.code)
			}
		})
	}
}

// TestBadTokenAsksNobody: a token that cannot be good makes no key and no connection.
func TestBadTokenAsksNobody(t *testing.T) {
	for _, test := range []struct{ why, token, code string }{
		{"cut short", "isth1.", join.CodeTruncated},
		{"for another cluster", encode(t, nil), join.CodeOther},
		{"expired", encode(t, func(t *pb.Token) { t.Cluster, t.ExpiresUnix = "north", 1 }), join.CodeExpired},
	} {
		_, err := join.Join(t.Context(), join.Config{
			Token: test.token, Self: "north",
			Key:  func() (crypto.Signer, error) { return nil, errors.New("asked for a key") },
			Dial: func(context.Context, string) (net.Conn, error) { return nil, errors.New("connected") },
		})
		if hint.CodeOf(err) != test.code {
			t.Errorf("%s: error %v, code %q; want code %q", test.why, err, hint.CodeOf(err), test.code)
		}
	}
}

func FuzzDecode(f *testing.F) {
	whole := encode(f, nil)
	f.Add(whole)
	f.Add(whole[:len(whole)-3])
	f.Add("isth1..")
	f.Add(encode(f, func(tok *pb.Token) {
		for i := range 300 {
			tok.Namespaces = append(tok.Namespaces, fmt.Sprintf("namespace-%030d", i))
		}
	}))
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := join.Decode(s)
		if err != nil {
			if hint.Of(err) == "" || hint.CodeOf(err) == "" {
				t.Errorf("token %q: error %v without hint or code", s, err)
			}
			return
		}
		again, err := join.Encode(tok)
		if err != nil {
			t.Fatalf("token %q: accepted but not encoded: %v", s, err)
		}
		if back, err := join.Decode(again); err != nil || !proto.Equal(back, tok) {
			t.Errorf("token %q: read back as %v, %v", s, back, err)
		}
	})
}
