package etcd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"isthmus.dev/isthmus/config"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/mesh"
)

// Keys. Objects are at objects/<Kind>/<namespace>/<name>, what the control plane
// allocated is beside them.
const (
	prefix  = "/isthmus/"
	objects = prefix + "objects/"
	vips    = prefix + "vips/"
	slotsAt = prefix + "slots/"
)

// callTimeout bounds one call of the store.
const callTimeout = 5 * time.Second

// Errors callers branch on.
var (
	// ErrNotFound is returned for an object that does not exist.
	ErrNotFound = errors.New("not found")
	// ErrCompacted is returned by Watch for a revision that is no longer kept: list again.
	ErrCompacted = errors.New("the revision to watch from is no longer kept")
)

// ConflictError says that an object is not of the version that was expected.
type ConflictError struct {
	Object mesh.ObjectName
	// Want and Have are versions; 0 means that the object does not exist.
	Want, Have int64
}

func (e *ConflictError) Error() string {
	switch {
	case e.Want == 0:
		return fmt.Sprintf("%s exists already (version %d)", e.Object, e.Have)
	case e.Have == 0:
		return fmt.Sprintf("%s does not exist, version %d was expected", e.Object, e.Want)
	}
	return fmt.Sprintf("%s has version %d, %d was expected", e.Object, e.Have, e.Want)
}

// Object is one stored object.
type Object struct {
	Name mesh.ObjectName
	// JSON is the object as applied.
	JSON []byte
	// Version is the revision of the last change to it; for compare-and-swap.
	Version int64
}

// Config is the object as the package config reads it.
func (o Object) Config() config.Object {
	return config.Object{Kind: o.Name.Kind, Namespace: o.Name.Namespace, Name: o.Name.Name, JSON: o.JSON}
}

// Expectations of an Op. Any other value is the version the object must have.
const (
	AnyVersion int64 = -1
	Absent     int64 = 0
)

// Op writes or deletes one object.
type Op struct {
	Name mesh.ObjectName
	JSON []byte // nil deletes
	// Expect is checked first: Absent, AnyVersion or a version. Mind that the zero
	// value is Absent.
	Expect int64
}

// Query selects objects: of one kind or, when empty, of all; of one namespace or all.
type Query struct {
	Kind, Namespace string
}

func (q Query) prefix() string {
	switch {
	case q.Kind == "":
		return objects
	case q.Namespace == "":
		return objects + q.Kind + "/"
	}
	return objects + q.Kind + "/" + q.Namespace + "/"
}

func (q Query) matches(name mesh.ObjectName) bool {
	return (q.Kind == "" || q.Kind == name.Kind) && (q.Namespace == "" || q.Namespace == name.Namespace)
}

// Store reads and writes objects with versions. It has no state of its own.
type Store struct {
	client *clientv3.Client
	// space, if set, refuses new objects.
	space func() error
}

// NewStore makes a store on a client of either kind of server.
func NewStore(client *clientv3.Client) *Store { return &Store{client: client} }

// Get reads one object; ErrNotFound if there is none.
func (s *Store) Get(ctx context.Context, name mesh.ObjectName) (Object, error) {
	key, err := keyOf(name)
	if err != nil {
		return Object{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	response, err := s.client.Get(ctx, key)
	if err != nil {
		return Object{}, explain(fmt.Errorf("read %s: %w", name, err))
	}
	if len(response.Kvs) == 0 {
		return Object{}, fmt.Errorf("%s: %w", name, ErrNotFound)
	}
	return Object{Name: name, JSON: response.Kvs[0].Value, Version: response.Kvs[0].ModRevision}, nil
}

// List reads all objects of a query, ordered by kind, namespace and name, and the
// revision at which they are true: a watch may start after it.
func (s *Store) List(ctx context.Context, q Query) ([]Object, int64, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	response, err := s.client.Get(ctx, q.prefix(), clientv3.WithPrefix())
	if err != nil {
		return nil, 0, explain(fmt.Errorf("list %s: %w", q.prefix(), err))
	}
	var out []Object
	for _, kv := range response.Kvs {
		if name, ok := parseKey(string(kv.Key)); ok && q.matches(name) {
			out = append(out, Object{Name: name, JSON: kv.Value, Version: kv.ModRevision})
		}
	}
	return out, response.Header.GetRevision(), nil
}

// Put writes one object and gives its new version.
func (s *Store) Put(ctx context.Context, name mesh.ObjectName, json []byte, expect int64) (int64, error) {
	if json == nil {
		json = []byte{}
	}
	return s.Commit(ctx, Op{Name: name, JSON: json, Expect: expect})
}

// Delete removes one object; ErrNotFound if there is none.
func (s *Store) Delete(ctx context.Context, name mesh.ObjectName, expect int64) error {
	if expect == AnyVersion {
		object, err := s.Get(ctx, name)
		if err != nil {
			return err
		}
		expect = object.Version
	}
	_, err := s.Commit(ctx, Op{Name: name, Expect: expect})
	if conflict, ok := errors.AsType[*ConflictError](err); ok && conflict.Have == 0 {
		return fmt.Errorf("%s: %w", name, ErrNotFound)
	}
	return err
}

// Commit does all ops in one transaction or none: the revision it gives is the
// new version of every object written. If an object is not as expected, nothing is
// written and the error is a ConflictError of the first such object.
func (s *Store) Commit(ctx context.Context, ops ...Op) (int64, error) {
	if len(ops) == 0 {
		return 0, nil
	}
	if s.space != nil && slices.ContainsFunc(ops, func(op Op) bool { return op.JSON != nil }) {
		if err := s.space(); err != nil {
			return 0, fmt.Errorf("write %d objects: %w", len(ops), err)
		}
	}
	compares, writes, reads, keys, err := plan(ops)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	response, err := s.client.Txn(ctx).If(compares...).Then(writes...).Else(reads...).Commit()
	if err != nil {
		return 0, explain(fmt.Errorf("write %d objects: %w", len(ops), err))
	}
	if response.Succeeded {
		return response.Header.GetRevision(), nil
	}
	have := map[string]int64{}
	for _, r := range response.Responses {
		for _, kv := range r.GetResponseRange().GetKvs() {
			have[string(kv.Key)] = kv.ModRevision
		}
	}
	for _, op := range ops {
		if key := keys[op.Name]; op.Expect != AnyVersion && have[key] != op.Expect {
			return 0, &ConflictError{Object: op.Name, Want: op.Expect, Have: have[key]}
		}
	}
	return 0, errors.New("a transaction was refused though every object is as expected")
}

// plan makes a transaction of ops, within the bounds of the server.
func plan(ops []Op) (compares []clientv3.Cmp, writes, reads []clientv3.Op, keys map[mesh.ObjectName]string, err error) {
	if len(ops) > MaxTxnOps {
		err := hint.Code(fmt.Errorf("%d objects in one transaction, %d at most", len(ops), MaxTxnOps), "too_many_objects")
		return nil, nil, nil, nil, hint.Wrap(err, "apply them in several files")
	}
	keys = map[mesh.ObjectName]string{}
	bytes := 0
	for _, op := range ops {
		key, err := keyOf(op.Name)
		if err != nil {
			return nil, nil, nil, nil, err
		}
		if _, twice := keys[op.Name]; twice {
			return nil, nil, nil, nil, fmt.Errorf("%s is written twice in one transaction", op.Name)
		}
		keys[op.Name] = key
		bytes += 2*len(key) + len(op.JSON) + 64
		if op.Expect != AnyVersion {
			compares = append(compares, clientv3.Compare(clientv3.ModRevision(key), "=", op.Expect))
			reads = append(reads, clientv3.OpGet(key, clientv3.WithKeysOnly()))
		}
		if op.JSON == nil {
			writes = append(writes, clientv3.OpDelete(key))
		} else {
			writes = append(writes, clientv3.OpPut(key, string(op.JSON)))
		}
	}
	if bytes > maxTxnBytes {
		err := hint.Code(fmt.Errorf("%d objects of %d bytes in one transaction, %d bytes at most", len(ops), bytes, maxTxnBytes), "too_large")
		return nil, nil, nil, nil, hint.Wrap(err, "apply them in several files")
	}
	return compares, writes, reads, keys, nil
}

// Event is a change of one object. For a deletion JSON is nil and Version the revision of the deletion.
type Event struct {
	Object
	Deleted bool
}

// Watch calls each with the changes after a revision, those of one transaction
// together, in order, until ctx ends (the error is then ctx's), the revision is
// no longer kept (ErrCompacted), or each returns an error.
func (s *Store) Watch(ctx context.Context, q Query, after int64, each func(revision int64, events []Event) error) error {
	return s.watch(ctx, q, after, func(events []Event) error {
		for len(events) > 0 {
			revision, n := events[0].Version, 1
			for n < len(events) && events[n].Version == revision {
				n++
			}
			if err := each(revision, events[:n]); err != nil {
				return err
			}
			events = events[n:]
		}
		return nil
	})
}

// watch is Watch with as many transactions in one call as the server sends in one answer.
func (s *Store) watch(ctx context.Context, q Query, after int64, each func([]Event) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for response := range s.client.Watch(ctx, q.prefix(), clientv3.WithPrefix(), clientv3.WithRev(after+1)) {
		if response.CompactRevision > 0 {
			return ErrCompacted
		}
		if err := response.Err(); err != nil {
			return explain(fmt.Errorf("watch %s: %w", q.prefix(), err))
		}
		if err := each(decode(q, response.Events)); err != nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fmt.Errorf("watch %s: the stream ended", q.prefix())
}

func decode(q Query, raw []*clientv3.Event) []Event {
	var out []Event
	for _, e := range raw {
		name, ok := parseKey(string(e.Kv.Key))
		if !ok || !q.matches(name) {
			continue
		}
		out = append(out, Event{Object: Object{Name: name, JSON: e.Kv.Value, Version: e.Kv.ModRevision}, Deleted: e.Type == clientv3.EventTypeDelete})
	}
	return out
}

// keyOf is where an object is stored.
func keyOf(name mesh.ObjectName) (string, error) {
	for _, part := range []struct{ what, value string }{{"kind", name.Kind}, {"namespace", name.Namespace}, {"name", name.Name}} {
		if part.value == "" || len(part.value) > 253 || strings.ContainsAny(part.value, "/\x00") {
			return "", fmt.Errorf("%s: %q is not a %s an object can be stored under", name, part.value, part.what)
		}
	}
	return objects + name.Kind + "/" + name.Namespace + "/" + name.Name, nil
}

func parseKey(key string) (mesh.ObjectName, bool) {
	rest, ok := strings.CutPrefix(key, objects)
	parts := strings.Split(rest, "/")
	if !ok || len(parts) != 3 {
		return mesh.ObjectName{}, false
	}
	return mesh.ObjectName{Kind: parts[0], Namespace: parts[1], Name: parts[2]}, true
}

// explain adds a code and a hint to what etcd answers.
func explain(err error) error {
	switch {
	case errors.Is(err, rpctypes.ErrNoSpace):
		return hint.Wrap(hint.Code(err, "registry_full"), "the registry is at its quota; delete objects, then raise or defragment it (etcdctl defrag; etcdctl alarm disarm)")
	case errors.Is(err, rpctypes.ErrTooManyOps):
		return hint.Wrap(hint.Code(err, "too_many_objects"), "apply fewer objects at once, or raise --max-txn-ops of the etcd server")
	case errors.Is(err, rpctypes.ErrRequestTooLarge):
		return hint.Wrap(hint.Code(err, "too_large"), "apply the objects in several files")
	case errors.Is(err, context.DeadlineExceeded):
		return hint.Wrap(hint.Code(err, "registry_timeout"), "the registry does not answer; look at the log of the control plane and at the disk of its folder")
	}
	return err
}
