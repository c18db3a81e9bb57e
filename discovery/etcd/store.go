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
	prefix      = "/isthmus/"
	objects     = prefix + "objects/"
	vips        = prefix + "vips/"
	slotsAt     = prefix + "slots/"
	allocatedAt = prefix + "allocated" // written with every change of the two above
)

// callTimeout bounds one call of the store.
const callTimeout = 5 * time.Second

// prefixOf is where the objects of a query are.
func prefixOf(q config.Query) string {
	switch {
	case q.Kind == "":
		return objects
	case q.Namespace == "":
		return objects + q.Kind + "/"
	}
	return objects + q.Kind + "/" + q.Namespace + "/"
}

// pageSize is how many objects are read at once, some 2 MB. The server looks at all keys behind a page to count them: smaller
// pages make it look more often.
const pageSize = 5000

// Store reads and writes objects with versions. It has no state of its own.
type Store struct {
	client *clientv3.Client
	// space, if set, refuses new objects.
	space    func() error
	pageSize int64
}

// NewStore makes a store on a client of either kind of server.
func NewStore(client *clientv3.Client) *Store { return &Store{client: client, pageSize: pageSize} }

// Get reads one object; config.ErrNotFound if there is none.
func (s *Store) Get(ctx context.Context, name mesh.ObjectName) (config.Stored, error) {
	key, err := keyOf(name)
	if err != nil {
		return config.Stored{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	response, err := s.client.Get(ctx, key)
	if err != nil {
		return config.Stored{}, explain(fmt.Errorf("read %s: %w", name, err))
	}
	if len(response.Kvs) == 0 {
		return config.Stored{}, fmt.Errorf("%s: %w", name, config.ErrNotFound)
	}
	return config.Stored{Name: name, JSON: response.Kvs[0].Value, Version: response.Kvs[0].ModRevision}, nil
}

// readSize is how many objects are read by name at once: what an external server takes that was told nothing else.
const readSize = 128

// Read reads the objects of some names, each readSize of them at one revision. What does not exist is left out.
func (s *Store) Read(ctx context.Context, names ...mesh.ObjectName) ([]config.Stored, error) {
	var out []config.Stored
	for part := range slices.Chunk(names, readSize) {
		ops := make([]clientv3.Op, 0, len(part))
		for _, name := range part {
			key, err := keyOf(name)
			if err != nil {
				return nil, err
			}
			ops = append(ops, clientv3.OpGet(key))
		}
		found, err := s.readAll(ctx, ops)
		if err != nil {
			return nil, explain(fmt.Errorf("read %d objects: %w", len(part), err))
		}
		out = append(out, found...)
	}
	return out, nil
}

func (s *Store) readAll(ctx context.Context, ops []clientv3.Op) ([]config.Stored, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	response, err := s.client.Txn(ctx).Then(ops...).Commit()
	if err != nil {
		return nil, err
	}
	var out []config.Stored
	for _, r := range response.Responses {
		for _, kv := range r.GetResponseRange().GetKvs() {
			if name, ok := parseKey(string(kv.Key)); ok {
				out = append(out, config.Stored{Name: name, JSON: kv.Value, Version: kv.ModRevision})
			}
		}
	}
	return out, nil
}

// List reads all objects of a query, ordered by kind, namespace and name, and the version of the list (the registry's
// revision): a watch may start after it.
func (s *Store) List(ctx context.Context, q config.Query) ([]config.Stored, int64, error) {
	for {
		var out []config.Stored
		revision, err := s.pages(ctx, q, func(page []config.Stored) error {
			out = append(out, page...)
			return nil
		})
		if !errors.Is(err, config.ErrCompacted) {
			return out, revision, err
		}
	}
}

// pages is List in parts, all of one revision, so that a large registry is never in memory as a whole. Where that revision is
// compacted before the last part is read the error is config.ErrCompacted, and what each was given is not to be used.
func (s *Store) pages(ctx context.Context, q config.Query, each func([]config.Stored) error) (revision int64, err error) {
	from, end := prefixOf(q), clientv3.GetPrefixRangeEnd(prefixOf(q))
	for {
		response, err := s.page(ctx, from, end, revision)
		if err != nil {
			return 0, err
		}
		if revision == 0 {
			revision = response.Header.GetRevision()
		}
		page := make([]config.Stored, 0, len(response.Kvs))
		for _, kv := range response.Kvs {
			if name, ok := parseKey(string(kv.Key)); ok && q.Matches(name) {
				page = append(page, config.Stored{Name: name, JSON: kv.Value, Version: kv.ModRevision})
			}
		}
		if err := each(page); err != nil || !response.More {
			return revision, err
		}
		from = string(response.Kvs[len(response.Kvs)-1].Key) + "\x00"
	}
}

// page reads up to pageSize keys; revision 0 is the newest.
func (s *Store) page(ctx context.Context, from, end string, revision int64) (*clientv3.GetResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	response, err := s.client.Get(ctx, from, clientv3.WithRange(end), clientv3.WithRev(revision), clientv3.WithLimit(s.pageSize))
	switch {
	case errors.Is(err, rpctypes.ErrCompacted):
		return nil, config.ErrCompacted
	case err != nil:
		return nil, explain(fmt.Errorf("list from %s: %w", from, err))
	}
	return response, nil
}

// Delete removes one object; config.ErrNotFound if there is none.
func (s *Store) Delete(ctx context.Context, name mesh.ObjectName, expect int64) error {
	if expect == config.AnyVersion {
		object, err := s.Get(ctx, name)
		if err != nil {
			return err
		}
		expect = object.Version
	}
	_, err := s.Commit(ctx, config.Change{Name: name, Expect: expect})
	if conflict, ok := errors.AsType[*config.ConflictError](err); ok && conflict.Have == 0 {
		return fmt.Errorf("%s: %w", name, config.ErrNotFound)
	}
	return err
}

// Commit does all changes in one transaction or none, and gives the version of each. If an object is not as expected,
// nothing is written and the error is the *config.ConflictError of the first such object.
func (s *Store) Commit(ctx context.Context, changes ...config.Change) ([]int64, error) {
	if len(changes) == 0 {
		return nil, nil
	}
	if s.space != nil && slices.ContainsFunc(changes, func(c config.Change) bool { return c.JSON != nil }) {
		if err := s.space(); err != nil {
			return nil, fmt.Errorf("write %d objects: %w", len(changes), err)
		}
	}
	compares, writes, reads, keys, err := plan(changes)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	response, err := s.client.Txn(ctx).If(compares...).Then(writes...).Else(reads...).Commit()
	if err != nil {
		return nil, explain(fmt.Errorf("write %d objects: %w", len(changes), err))
	}
	if response.Succeeded {
		return slices.Repeat([]int64{response.Header.GetRevision()}, len(changes)), nil
	}
	have := map[string]int64{}
	for _, r := range response.Responses {
		for _, kv := range r.GetResponseRange().GetKvs() {
			have[string(kv.Key)] = kv.ModRevision
		}
	}
	for _, c := range changes {
		if key := keys[c.Name]; c.Expect != config.AnyVersion && have[key] != c.Expect {
			return nil, &config.ConflictError{Object: c.Name, Want: c.Expect, Have: have[key]}
		}
	}
	return nil, errors.New("a transaction was refused though every object is as expected")
}

// plan makes a transaction of changes, within the bounds of the server.
func plan(changes []config.Change) (compares []clientv3.Cmp, writes, reads []clientv3.Op, keys map[mesh.ObjectName]string, err error) {
	if len(changes) > MaxTxnOps {
		err := hint.Code(fmt.Errorf("%d objects in one transaction, %d at most", len(changes), MaxTxnOps), "too_many_objects")
		return nil, nil, nil, nil, hint.Wrap(err, "apply them in several files")
	}
	keys = map[mesh.ObjectName]string{}
	bytes := 0
	for _, c := range changes {
		key, err := keyOf(c.Name)
		if err != nil {
			return nil, nil, nil, nil, err
		}
		if _, twice := keys[c.Name]; twice {
			return nil, nil, nil, nil, fmt.Errorf("%s is written twice in one transaction", c.Name)
		}
		keys[c.Name] = key
		bytes += 2*len(key) + len(c.JSON) + 64
		if c.Expect != config.AnyVersion {
			compares = append(compares, clientv3.Compare(clientv3.ModRevision(key), "=", c.Expect))
			reads = append(reads, clientv3.OpGet(key, clientv3.WithKeysOnly()))
		}
		if c.JSON == nil {
			writes = append(writes, clientv3.OpDelete(key))
		} else {
			writes = append(writes, clientv3.OpPut(key, string(c.JSON)))
		}
	}
	if bytes > maxTxnBytes {
		err := hint.Code(fmt.Errorf("%d objects of %d bytes in one transaction, %d bytes at most", len(changes), bytes, maxTxnBytes), "too_large")
		return nil, nil, nil, nil, hint.Wrap(err, "apply them in several files")
	}
	return compares, writes, reads, keys, nil
}

// Watch calls each with every change after a version of a list, in order, until ctx ends (the error is then ctx's), the
// version is no longer kept (config.ErrCompacted), or each returns an error.
func (s *Store) Watch(ctx context.Context, q config.Query, after int64, each func(config.Event) error) error {
	return s.watch(ctx, q, after, func(events []config.Event) error {
		for _, event := range events {
			if err := each(event); err != nil {
				return err
			}
		}
		return nil
	})
}

// watch is Watch with all that the server sends in one answer, whole transactions, in one call.
func (s *Store) watch(ctx context.Context, q config.Query, after int64, each func([]config.Event) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for response := range s.client.Watch(ctx, prefixOf(q), clientv3.WithPrefix(), clientv3.WithRev(after+1)) {
		if response.CompactRevision > 0 {
			return config.ErrCompacted
		}
		if err := response.Err(); err != nil {
			return explain(fmt.Errorf("watch %s: %w", prefixOf(q), err))
		}
		if err := each(decode(q, response.Events)); err != nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fmt.Errorf("watch %s: the stream ended", prefixOf(q))
}

func decode(q config.Query, raw []*clientv3.Event) []config.Event {
	var out []config.Event
	for _, e := range raw {
		name, ok := parseKey(string(e.Kv.Key))
		if !ok || !q.Matches(name) {
			continue
		}
		out = append(out, config.Event{Stored: config.Stored{Name: name, JSON: e.Kv.Value, Version: e.Kv.ModRevision}, Deleted: e.Type == clientv3.EventTypeDelete})
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
