package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// identity tells one process from a later one with the same number.
type identity struct {
	PID   int    `json:"pid"`
	Start string `json:"start"` // field starttime of /proc/PID/stat, in clock ticks since boot
}

const identityFile = "keeper.pid"

// Register says who the keeper of the lab in dir is. The keeper calls it first of all, while it still sees the host's
// /proc: so that a lab is known from its very start, whoever started it and is dead by now.
func Register(dir string) error {
	self, err := os.Readlink("/proc/self")
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(self)
	if err != nil {
		return err
	}
	id, err := identify(pid)
	if err != nil {
		return err
	}
	text, err := json.Marshal(id)
	if err != nil {
		return err
	}
	name := filepath.Join(dir, identityFile)
	if err := os.WriteFile(name+".new", text, 0o644); err != nil {
		return err
	}
	return os.Rename(name+".new", name)
}

// keeper returns the running keeper, or ErrDown.
func (l *Lab) keeper() (identity, error) {
	var id identity
	text, err := os.ReadFile(l.path(identityFile))
	if errors.Is(err, fs.ErrNotExist) {
		return id, l.NotUp()
	}
	if err != nil {
		return id, err
	}
	if err := json.Unmarshal(text, &id); err != nil {
		return id, fmt.Errorf("read %s: %w", identityFile, err)
	}
	if now, err := identify(id.PID); err != nil || now != id {
		return id, l.NotUp()
	}
	return id, nil
}

// identify reads who has a process number now (proc(5)); the name in parentheses may hold blanks.
func identify(pid int) (identity, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return identity{}, err
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if len(fields) < 20 {
		return identity{}, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	if fields[0] == "Z" {
		return identity{}, fs.ErrNotExist
	}
	return identity{PID: pid, Start: fields[19]}, nil
}

// kill ends the keeper and with it, by the kernel, every process of the lab.
func (l *Lab) kill() error {
	id, err := l.keeper()
	if errors.Is(err, ErrDown) {
		return nil
	}
	if err != nil {
		return err
	}
	pidfd, err := unix.PidfdOpen(id.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find the lab's keeper: %w", err)
	}
	defer unix.Close(pidfd)
	if now, err := identify(id.PID); err != nil || now != id { // another process has the number by now
		return nil
	}
	if err := unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("end the lab's keeper: %w", err)
	}
	// The keeper is gone only when its whole process namespace is.
	deadline := time.Now().Add(20 * time.Second)
	for time.Now().Before(deadline) {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 1000)
		if n > 0 {
			buried(id.PID)
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
	return fmt.Errorf("the lab's keeper (process %d) does not end", id.PID)
}

// buried waits a moment for the ended keeper to be waited for: by this very process, if that started it, else by the
// machine's init, which may take its time and is not ours to hurry.
func buried(pid int) {
	for deadline := time.Now().Add(2 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		unix.Wait4(pid, nil, unix.WNOHANG, nil) // fails for others' children
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err != nil {
			return
		}
	}
}
