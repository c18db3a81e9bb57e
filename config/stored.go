package config

import (
	"errors"
	"fmt"

	"isthmus.dev/isthmus/mesh"
)

// Errors of registries that callers branch on, with [ConflictError].
var (
	// ErrNotFound is of an object that does not exist.
	ErrNotFound = errors.New("not found")
	// ErrCompacted is of a watch from a version that is no longer kept: list again.
	ErrCompacted = errors.New("the version to watch from is no longer kept")
)

// Stored is an object as a registry keeps it.
type Stored struct {
	Name mesh.ObjectName
	// JSON is the object as applied.
	JSON []byte
	// Version is that of the last change to it, for compare-and-swap: it grows with every change. 0 is of no object.
	Version int64
}

// Object is what is stored, to be read again.
func (s Stored) Object() Object {
	return Object{Kind: s.Name.Kind, Namespace: s.Name.Namespace, Name: s.Name.Name, JSON: s.JSON}
}

// Event is a change of one stored object. For a deletion JSON is nil and Version that of the deletion.
type Event struct {
	Stored
	Deleted bool
}

// Query selects objects: of one kind or, when empty, of all; of one namespace or all.
type Query struct {
	Kind, Namespace string
}

// Matches tells whether an object is selected.
func (q Query) Matches(name mesh.ObjectName) bool {
	return (q.Kind == "" || q.Kind == name.Kind) && (q.Namespace == "" || q.Namespace == name.Namespace)
}

// Expectations of a Change. Any other value is the version the object must have.
const (
	AnyVersion int64 = -1
	Absent     int64 = 0
)

// Change writes or deletes one object of a registry.
type Change struct {
	Name mesh.ObjectName
	JSON []byte // nil deletes
	// Expect is checked first: Absent, AnyVersion or a version. Mind that the zero value is Absent.
	Expect int64
}

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
