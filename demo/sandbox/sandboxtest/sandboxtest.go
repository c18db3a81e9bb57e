// Package sandboxtest runs a package's tests as the first process of a tree of
// namespaces of their own, so that they may do anything to the network and to
// processes, as root or as an ordinary user, and leave nothing.
package sandboxtest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"testing"

	"isthmus.dev/isthmus/demo/sandbox"
)

// insideEnv tells a test program that it is the one inside.
const insideEnv = "ISTHMUS_TEST_INSIDE"

// Main is a TestMain. A system that does not allow the tree fails the tests.
func Main(m *testing.M) {
	if os.Getenv(insideEnv) != "" {
		os.Exit(inside(m))
	}
	code, err := outside()
	if err != nil {
		fmt.Fprintln(os.Stderr, "run the tests in namespaces:", sandbox.ReadGuards().Explain(err))
	}
	os.Exit(code)
}

func outside() (int, error) {
	caller, err := sandbox.CurrentCaller()
	if err != nil {
		return 1, err
	}
	// The tree dies with the thread that starts it.
	runtime.LockOSThread()
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = caller.Attributes(true)
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0, nil
	case errors.As(err, &exit):
		return max(1, exit.ExitCode()), nil
	}
	return 1, &sandbox.StepError{Step: sandbox.StepClone, Err: err}
}

func inside(m *testing.M) int {
	scratch, err := os.MkdirTemp("", "sandbox-")
	if err == nil {
		defer os.RemoveAll(scratch)
		_, err = sandbox.Setup(scratch, "192.0.2.53", "default")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "prepare the namespaces:", err)
		return 1
	}
	return m.Run()
}
