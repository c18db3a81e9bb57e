package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// trap is etcd's logger. etcd speaks zap and ends the process through it: Fatal
// calls os.Exit, Panic panics in a goroutine nobody guards. The trap turns either into
// an error and ends only the goroutine, so that the control plane can say what is
// wrong and how to fix it.
type trap struct {
	log    *slog.Logger
	failed chan struct{} // closed after err is set
	once   sync.Once     // guards err
	err    error
}

func newTrap(log *slog.Logger) *trap {
	return &trap{log: log, failed: make(chan struct{})}
}

func (t *trap) logger() *zap.Logger {
	return zap.New(core{log: t.log}, zap.WithFatalHook(t), zap.WithPanicHook(t))
}

// OnWrite is called in place of os.Exit and panic.
func (t *trap) OnWrite(entry *zapcore.CheckedEntry, fields []zapcore.Field) {
	t.once.Do(func() {
		t.err = errors.New(entry.Message)
		for _, f := range fields {
			if cause, ok := f.Interface.(error); ok && f.Type == zapcore.ErrorType {
				t.err = fmt.Errorf("%s: %w", entry.Message, cause)
				break
			}
		}
		close(t.failed)
	})
	runtime.Goexit()
}

// core writes etcd's errors to slog. Its warnings are about clusters and clients
// this server does not have, and a steady mesh is silent.
type core struct {
	log    *slog.Logger
	fields []zapcore.Field
}

func (c core) Enabled(level zapcore.Level) bool { return level >= zapcore.ErrorLevel }

func (c core) With(fields []zapcore.Field) zapcore.Core {
	return core{log: c.log, fields: append(c.fields[:len(c.fields):len(c.fields)], fields...)}
}

// usual are errors etcd logs where nothing is wrong: in a folder in which nothing was committed yet, which is every new
// one, and when the listener for peers, which a server of one member has none of, is closed at the end.
var usual = map[string]bool{
	"failed to update storage version":              true,
	"setting up serving from embedded etcd failed.": true,
}

func (c core) Check(entry zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(entry.Level) && !usual[entry.Message] {
		return checked.AddCore(entry, c)
	}
	return checked
}

func (c core) Write(entry zapcore.Entry, fields []zapcore.Field) error {
	encoder := zapcore.NewMapObjectEncoder()
	for _, f := range append(c.fields[:len(c.fields):len(c.fields)], fields...) {
		f.AddTo(encoder)
	}
	attrs := []slog.Attr{slog.String("source", "etcd")}
	if cause, ok := encoder.Fields["error"]; ok {
		attrs = append(attrs, slog.Any("err", cause))
	}
	c.log.LogAttrs(context.Background(), slog.LevelError, strings.ToLower(entry.Message), attrs...)
	return nil
}

func (core) Sync() error { return nil }
