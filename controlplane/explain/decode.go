package explain

import (
	"fmt"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"isthmus.dev/isthmus/xds"
)

// decode reads a message that has to be an M.
func decode[M proto.Message](body *anypb.Any) (M, error) {
	var none M
	m := none.ProtoReflect().New().Interface().(M)
	if err := body.UnmarshalTo(m); err != nil {
		return none, fmt.Errorf("read %s: %w", proto.MessageName(none), err)
	}
	return m, nil
}

// resource gives one resource of a proxy, decoded; ok is false if it has none of that name.
func resource[M proto.Message](s xds.State, typeURL, name string) (m M, ok bool, err error) {
	r, ok := s.Get(typeURL, name)
	if !ok {
		return m, false, nil
	}
	m, err = decode[M](r.Body)
	return m, true, err
}
