// Package control is how programs outside the demo's tree speak with its first
// process: a Unix socket of mode 0600, one request a connection. Descriptors
// travel along, so a program started inside has the caller's own input, output
// and working directory, and a capture is read outside from a socket inside.
//
// A frame is the length of a JSON text in four bytes, big endian, and the text.
package control

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"isthmus.dev/isthmus/internal/cli/workload"
	"isthmus.dev/isthmus/internal/foreign"
	"isthmus.dev/isthmus/internal/hint"
)

// maxFrame bounds a message; the largest carry a whole environment.
const maxFrame = 8 << 20

// maxFiles is how many descriptors one message may carry.
const maxFiles = 32

// Request is the first message of a connection. Exactly one field is set.
type Request struct {
	Status *StatusRequest `json:"status,omitempty"`
	Fault  *FaultRequest  `json:"fault,omitempty"`
	Exec   *ExecRequest   `json:"exec,omitempty"`
	// Workload makes a pod with a sidecar and registers it with the cluster's control plane. It is answered when the
	// sidecar is ready. The workload lives as long as the connection, on which later messages are Leave; with its end,
	// however it comes, all that runs in the pod is killed and the workload deregistered.
	Workload *workload.Request `json:"workload,omitempty"`
	Caller   *CallerRequest    `json:"caller,omitempty"`
	Capture  *CaptureRequest   `json:"capture,omitempty"`
	Health   *HealthRequest    `json:"health,omitempty"`
}

// StatusRequest asks for the Document.
type StatusRequest struct{}

// FaultRequest breaks or mends something.
type FaultRequest struct {
	// Action is kill, freeze, cut or restore.
	Action string `json:"action"`
	// Target is CLUSTER or CLUSTER/COMPONENT.
	Target string `json:"target"`
}

// The actions of a FaultRequest.
const (
	Kill    = "kill"
	Freeze  = "freeze"
	Cut     = "cut"
	Restore = "restore"
)

// ExecRequest starts a program inside a cluster. The message carries the
// descriptors of the program (0, 1, 2 and any further) and, last, its working
// directory. Later messages are Signal; the end of the connection kills the
// program and what it has started.
type ExecRequest struct {
	Cluster string `json:"cluster"`
	// Pod is an instance of the demo or one that a workload got; empty: the cluster's node.
	Pod  string   `json:"pod,omitempty"`
	Argv []string `json:"argv"`
	Env  []string `json:"env"`
	// Dir is the working directory's name, used where it means the same inside.
	Dir string `json:"dir"`
	// Umask is the caller's; negative: the demo's.
	Umask int `json:"umask"`
}

// HealthRequest asks what the sidecar of a workload finds of its program.
type HealthRequest struct {
	Cluster string `json:"cluster"`
	Pod     string `json:"pod"`
}

// Leave makes a workload known as leaving: others send no more, it is deregistered,
// and what is under way may end. It goes on running. The answer comes when that is done.
type Leave struct {
	// LimitMs is how long connections may take to end, in milliseconds.
	LimitMs int `json:"limitMs"`
}

// CallerRequest makes sure that the demo's caller runs in a zone.
type CallerRequest struct {
	Cluster string `json:"cluster"`
	// Zone is one of the cluster's; empty: its first.
	Zone string `json:"zone,omitempty"`
}

// CaptureRequest opens a packet socket; the answer carries its descriptor.
type CaptureRequest struct {
	// Cluster and Pod choose a pod; both empty: the link all clusters share.
	Cluster string `json:"cluster,omitempty"`
	Pod     string `json:"pod,omitempty"`
}

// Signal is sent to a running program.
type Signal struct {
	Signal int `json:"signal"`
}

// Reply answers a request; an ExecRequest is answered twice, by PID and by Exit.
type Reply struct {
	Error    *Error    `json:"error,omitempty"`
	Document *Document `json:"document,omitempty"`
	// PID is the started program's number as the host has it.
	PID  int  `json:"pid,omitempty"`
	Exit *int `json:"exit,omitempty"`
	// Pod and Address name the pod that was made, or the caller that runs.
	Pod     string `json:"pod,omitempty"`
	Address string `json:"address,omitempty"`
	// Ports answer a HealthRequest.
	Ports []workload.PortHealth `json:"ports,omitempty"`
}

// Error is an error on its way to a person.
type Error struct {
	Code    string `json:"code,omitempty"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

// ErrorOf flattens an error.
func ErrorOf(err error) *Error {
	return &Error{Code: hint.CodeOf(err), Message: err.Error(), Hint: hint.Of(err)}
}

// Err is the error again, with its code and hint.
func (e *Error) Err() error {
	return hint.Wrap(hint.Code(errors.New(e.Message), e.Code), e.Hint)
}

// Conn is a connection that speaks frames.
type Conn struct{ *net.UnixConn }

// Send writes a message with descriptors, which stay the caller's.
func (c Conn) Send(message any, files ...*os.File) error {
	text, err := json.Marshal(message)
	if err != nil {
		return fmt.Errorf("encode message: %w", err)
	}
	if len(text) > maxFrame {
		return fmt.Errorf("message of %d bytes is longer than %d", len(text), maxFrame)
	}
	var rights []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		rights = unix.UnixRights(fds...)
	}
	header := binary.BigEndian.AppendUint32(nil, uint32(len(text)))
	// The descriptors go with the header, so that the reader meets them there.
	if _, _, err := c.WriteMsgUnix(header, rights, nil); err != nil {
		return fmt.Errorf("send message: %w", err)
	}
	if _, err := c.Write(text); err != nil {
		return fmt.Errorf("send message: %w", err)
	}
	return nil
}

// Receive reads a message. The descriptors that came with it are the caller's to close.
func (c Conn) Receive(message any) ([]*os.File, error) {
	header := make([]byte, 4)
	rights := make([]byte, unix.CmsgSpace(maxFiles*4))
	n, oob, _, _, err := c.ReadMsgUnix(header, rights)
	if err != nil {
		return nil, err
	}
	files, err := parseRights(rights[:oob])
	if err != nil {
		return nil, err
	}
	if err := c.receiveText(header, n, message); err != nil {
		CloseAll(files)
		return nil, err
	}
	return files, nil
}

func (c Conn) receiveText(header []byte, have int, message any) error {
	if have == 0 {
		return io.EOF
	}
	r := foreign.From("message", io.MultiReader(bytes.NewReader(header[:have]), c), 4+maxFrame)
	text := r.Bytes("text", int(r.Uint32("length")), maxFrame)
	if err := r.Err(); err != nil {
		return fmt.Errorf("receive message: %w", err)
	}
	if err := json.Unmarshal(text, message); err != nil {
		return fmt.Errorf("decode message: %w", err)
	}
	return nil
}

// parseRights turns received descriptors into files.
func parseRights(b []byte) ([]*os.File, error) {
	messages, err := unix.ParseSocketControlMessage(b)
	if err != nil {
		return nil, fmt.Errorf("receive descriptors: %w", err)
	}
	var files []*os.File
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			CloseAll(files)
			return nil, fmt.Errorf("receive descriptors: %w", err)
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files, nil
}

// CloseAll closes files, nil ones too.
func CloseAll(files []*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}
