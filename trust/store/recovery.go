package store

import (
	"bytes"
	"crypto/rand"
	"encoding/base32"
	"fmt"
	"io"
	"strings"

	"filippo.io/age"
	"filippo.io/age/armor"

	"isthmus.dev/isthmus/internal/hint"
)

// How much work guessing one passphrase costs, as scrypt's log2(N); memory is 1 KiB << work.
const (
	// workChosen is for a passphrase a person thought of: about a second and 256 MiB a guess (age's own default).
	workChosen = 18
	// workMade is for one made by NewPassphrase, which cannot be guessed at any speed: 2 ms, 4 MiB.
	workMade = 12
)

// Passphrase encrypts a recovery file.
type Passphrase struct {
	Text string
	// Made is true for one of NewPassphrase. It only sets the cost of opening the file.
	Made bool
}

// NewPassphrase makes one of 160 random bits, in groups that can be copied from paper.
func NewPassphrase() Passphrase {
	raw := make([]byte, 20)
	rand.Read(raw) // never fails (crypto/rand)
	text := strings.ToLower(base32.StdEncoding.EncodeToString(raw))
	var groups []string
	for ; len(text) > 0; text = text[4:] {
		groups = append(groups, text[:4])
	}
	return Passphrase{Text: strings.Join(groups, "-"), Made: true}
}

// Seal encrypts data to the passphrase: an armored age file, so that `age -d` opens it as well.
func Seal(data []byte, p Passphrase) ([]byte, error) {
	to, err := age.NewScryptRecipient(p.Text)
	if err != nil {
		return nil, fmt.Errorf("encrypt recovery file: %w", err)
	}
	to.SetWorkFactor(workChosen)
	if p.Made {
		to.SetWorkFactor(workMade)
	}
	var out bytes.Buffer
	text := armor.NewWriter(&out)
	w, err := age.Encrypt(text, to)
	if err != nil {
		return nil, fmt.Errorf("encrypt recovery file: %w", err)
	}
	if _, err := w.Write(data); err != nil {
		return nil, fmt.Errorf("encrypt recovery file: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("encrypt recovery file: %w", err)
	}
	if err := text.Close(); err != nil {
		return nil, fmt.Errorf("encrypt recovery file: %w", err)
	}
	return out.Bytes(), nil
}

// Unseal decrypts what Seal made.
func Unseal(sealed []byte, passphrase string) ([]byte, error) {
	id, err := age.NewScryptIdentity(passphrase)
	if err != nil {
		return nil, fmt.Errorf("decrypt recovery file: %w", err)
	}
	id.SetMaxWorkFactor(workChosen + 2)
	r, err := age.Decrypt(armor.NewReader(bytes.NewReader(sealed)), id)
	if err != nil {
		return nil, hint.Wrap(fmt.Errorf("decrypt recovery file: %w", err),
			"use the passphrase that was shown when the federation was founded")
	}
	data, err := io.ReadAll(io.LimitReader(r, MaxFile))
	if err != nil {
		return nil, fmt.Errorf("decrypt recovery file: %w", err)
	}
	return data, nil
}
