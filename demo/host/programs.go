package host

import (
	"fmt"
	"os"
	"path/filepath"

	"isthmus.dev/isthmus/demo/supervisor"
	"isthmus.dev/isthmus/internal/hint"
)

// EnvoyEnv names the Envoy to run where no flag does.
const EnvoyEnv = "ISTHMUS_ENVOY"

// FindPrograms finds what the demo runs: our own programs beside this one, Envoy
// by the given path, EnvoyEnv or the folder of downloaded tools beside bin.
func FindPrograms(envoy string) (supervisor.Programs, error) {
	own, err := os.Executable()
	if err == nil {
		own, err = filepath.EvalSymlinks(own)
	}
	if err != nil {
		return supervisor.Programs{}, fmt.Errorf("find own program: %w", err)
	}
	bin := filepath.Dir(own)
	if envoy == "" {
		envoy = os.Getenv(EnvoyEnv)
	}
	if envoy == "" {
		envoy = filepath.Join(filepath.Dir(bin), ".tools", "envoy")
	}
	if envoy, err = filepath.Abs(envoy); err != nil {
		return supervisor.Programs{}, fmt.Errorf("find Envoy: %w", err)
	}
	p := supervisor.Programs{
		Isthmus:      own,
		ControlPlane: filepath.Join(bin, "isthmus-controlplane"),
		Proxy:        filepath.Join(bin, "isthmus-proxy"),
		Shop:         filepath.Join(bin, "isthmus-shop"),
		Envoy:        envoy,
	}
	for _, ours := range []string{p.ControlPlane, p.Proxy, p.Shop} {
		if err := executable(ours); err != nil {
			return p, hint.Wrap(hint.Code(err, "program_missing"), "build all programs with: make build")
		}
	}
	if err := executable(p.Envoy); err != nil {
		return p, hint.Wrap(hint.Code(fmt.Errorf("envoy: %w", err), "envoy_missing"),
			"fetch it with: make build; or name yours with --envoy or "+EnvoyEnv)
	}
	return p, nil
}

func executable(path string) error {
	st, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("find %s: %w", filepath.Base(path), err)
	}
	if st.IsDir() || st.Mode()&0o111 == 0 {
		return fmt.Errorf("%s is not a program", path)
	}
	return nil
}
