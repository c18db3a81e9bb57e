package nearest

import (
	"slices"
	"strings"
	"testing"
)

func TestOf(t *testing.T) {
	proxies := []string{"gateway.isthmus-system", "ratings-1.shop", "ratings-2.shop", "reviews-v1-1.shop", "reviews-v1-2.shop", "reviews-v2-1.shop"}
	tests := []struct {
		why, word string
		want      []string
	}{
		{"a letter is wrong", "ratimgs-1.shop", []string{"ratings-1.shop", "ratings-2.shop"}},
		{"the service in place of an instance", "reviews.shop", []string{"reviews-v1-1.shop", "reviews-v1-2.shop", "reviews-v2-1.shop"}},
		{"another namespace", "gateway.default", []string{"gateway.isthmus-system"}},
		{"nothing alike", "frontend.web", nil},
		{"nothing at all", "", nil},
		{"longer than any name", strings.Repeat("x", 1<<20), nil},
	}
	for _, test := range tests {
		if got := Of(test.word, proxies, 3); !slices.Equal(got, test.want) {
			t.Errorf("%s: %.40q is like %v, want %v", test.why, test.word, got, test.want)
		}
	}
}
