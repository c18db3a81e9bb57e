package process

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// member is one living process of a family. Its number may be given to another
// process after its end; its start time may not.
type member struct {
	pid int
	stat
}

// stat is the part of proc_pid_stat(5) that is needed here.
type stat struct {
	state   byte
	parent  int
	session int
	start   uint64 // in clock ticks since boot
}

// family lists the living processes that a program, the leader of a session,
// has started: all of its session, orphans too, and all descendants of these,
// in sessions of their own too.
func family(leader int) ([]member, error) {
	all, err := list()
	if err != nil {
		return nil, err
	}
	return selectFamily(all, leader), nil
}

func selectFamily(all []member, leader int) []member {
	in := map[int]bool{leader: true}
	for _, m := range all {
		in[m.pid] = in[m.pid] || m.session == leader
	}
	for grown := true; grown; {
		grown = false
		for _, m := range all {
			if !in[m.pid] && in[m.parent] {
				in[m.pid], grown = true, true
			}
		}
	}
	var members []member
	for _, m := range all {
		if in[m.pid] && m.state != 'Z' && m.state != 'X' {
			members = append(members, m)
		}
	}
	return members
}

// list reads every process in /proc; those that end meanwhile are left out.
func list() ([]member, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var all []member
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if s, err := readStat(pid); err == nil {
			all = append(all, member{pid, s})
		}
	}
	return all, nil
}

// signal signals a member unless its number has gone to another process.
func (m member) signal(sig syscall.Signal) error {
	fd, err := unix.PidfdOpen(m.pid, 0)
	if err != nil {
		return nil // it has ended
	}
	defer unix.Close(fd)
	now, err := readStat(m.pid)
	if err != nil || now.start != m.start {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("send %s to process %d: %w", unix.SignalName(sig), m.pid, err)
	}
	return nil
}

// StartTime is when a process of the mounted /proc started, in clock ticks since
// boot. With os.ErrProcessDone it has ended and waits to be collected.
func StartTime(pid int) (uint64, error) {
	s, err := readStat(pid)
	if err == nil && (s.state == 'Z' || s.state == 'X') {
		err = os.ErrProcessDone
	}
	if err != nil {
		return s.start, fmt.Errorf("read start time of process %d: %w", pid, err)
	}
	return s.start, nil
}

func readStat(pid int) (stat, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return stat{}, err
	}
	return parseStat(string(b))
}

// parseStat reads proc_pid_stat(5). The program's name may contain anything,
// spaces and parentheses too, so it is skipped from behind.
func parseStat(text string) (stat, error) {
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	if len(fields) < 20 {
		return stat{}, fmt.Errorf("read process state %q: too short", text)
	}
	parent, err1 := strconv.Atoi(fields[1])
	session, err2 := strconv.Atoi(fields[3])
	start, err3 := strconv.ParseUint(fields[19], 10, 64)
	if err := errors.Join(err1, err2, err3); err != nil {
		return stat{}, fmt.Errorf("read process state %q: %w", text, err)
	}
	return stat{state: fields[0][0], parent: parent, session: session, start: start}, nil
}
