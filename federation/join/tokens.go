package join

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	pb "isthmus.dev/isthmus/api/join"
	"isthmus.dev/isthmus/federation/document"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/trust/store"
)

const (
	// retry is how long the same key may come again after a lost answer.
	retry = 60 * time.Second
	// remember is how long a token that is over stays listed.
	remember = 24 * time.Hour
	// maxTokens bounds how many are remembered.
	maxTokens  = 10000
	tokensName = ".token"
)

// record is a token as the authority stores it: not the secret.
type record struct {
	ID         string    `json:"id"` // hexadecimal
	Key        []byte    `json:"key"`
	Cluster    string    `json:"cluster"`
	Namespaces []string  `json:"namespaces,omitempty"`
	Expires    time.Time `json:"expires"`
	Used       time.Time `json:"used,omitzero"`
	UsedKey    []byte    `json:"usedKey,omitempty"` // SHA-256 of the public key it was used for
	Revoked    bool      `json:"revoked,omitempty"`
}

// Info is a token as it is listed.
type Info struct {
	ID         string
	Cluster    mesh.ClusterName
	Namespaces []string
	Expires    time.Time
	State      string // open, used, expired, revoked
}

// Tokens are the authority's tokens, one file each. Its methods may be called from several goroutines.
type Tokens struct {
	dir *store.Dir
	now func() time.Time

	mu      sync.Mutex // guards what follows, and serialises the files of records
	records map[string]*record
	// paces limit what the holder of a token may ask for.
	paces map[string]*rate.Limiter
}

// OpenTokens reads the tokens of a folder. The clock nil means time.Now.
func OpenTokens(dir *store.Dir, now func() time.Time) (*Tokens, error) {
	if now == nil {
		now = time.Now
	}
	t := &Tokens{dir: dir, now: now, records: map[string]*record{}, paces: map[string]*rate.Limiter{}}
	names, err := dir.List()
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		id, ok := strings.CutSuffix(name, tokensName)
		if !ok {
			continue
		}
		data, err := dir.Read(name)
		if err != nil {
			return nil, err
		}
		var r record
		if err := json.Unmarshal(data, &r); err != nil || r.ID != id || len(r.Key) != keyLen {
			return nil, hint.Wrap(fmt.Errorf("token file %s is damaged", dir.Path(name)),
				"delete it: that token can then no longer be used; make a new one")
		}
		t.records[id] = &r
	}
	return t, nil
}

// Grant is what a token is made for.
type Grant struct {
	Cluster    mesh.ClusterName
	Namespaces []string      // the cluster may export; "*" is all of them
	Life       time.Duration // 0: DefaultLife
}

// Create makes a token for d's federation and stores its public side.
func (t *Tokens) Create(d *document.Document, g Grant) (*pb.Token, error) {
	now := t.now()
	if err := document.Admits(d, g.Cluster, now); err != nil {
		return nil, err
	}
	if err := document.CheckNamespaces(g.Namespaces); err != nil {
		return nil, fmt.Errorf("make token for cluster %q: %w", g.Cluster, err)
	}
	if g.Life == 0 {
		g.Life = DefaultLife
	}
	if g.Life < 0 || g.Life > MaxLife {
		return nil, hint.Wrap(fmt.Errorf("make token for cluster %q: a life of %v, %v at most", g.Cluster, g.Life, MaxLife),
			"tokens are for use at once; --ttl 15m is enough")
	}
	authority := d.Authority()
	out := &pb.Token{
		Federation: string(d.Federation), Cluster: string(g.Cluster), Authority: string(authority.Name),
		Term: d.Version.Term, Seq: d.Version.Seq, Id: random(idLen), Secret: random(keyLen),
		ExpiresUnix: now.Add(g.Life).Unix(), Namespaces: g.Namespaces,
	}
	for _, gw := range authority.Gateways {
		out.Gateways = append(out.Gateways, gw.Address.String())
	}
	for _, r := range d.Trusted() {
		pin := sha256.Sum256(r.RawSubjectPublicKeyInfo)
		out.RootPins = append(out.RootPins, pin[:])
	}
	if len(out.Gateways) == 0 {
		return nil, hint.Wrap(fmt.Errorf("make token for cluster %q: the authority %q has no gateway address", g.Cluster, authority.Name),
			"found the federation with --gateway IP:PORT")
	}
	r := &record{
		ID: hex.EncodeToString(out.Id), Key: deriveKey(out.Secret, out.Id), Cluster: out.Cluster,
		Namespaces: out.Namespaces, Expires: time.Unix(out.ExpiresUnix, 0).UTC(),
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.tidy(now); err != nil {
		return nil, err
	}
	if len(t.records) >= maxTokens {
		return nil, hint.Wrap(fmt.Errorf("make token for cluster %q: %d are remembered already", g.Cluster, maxTokens),
			"revoke those that are not needed: isthmus cluster token list")
	}
	if err := t.save(r); err != nil {
		return nil, err
	}
	t.records[r.ID] = r
	return out, nil
}

// tidy forgets tokens that are over for long. Callers hold t.mu.
func (t *Tokens) tidy(now time.Time) error {
	for id, r := range t.records {
		if now.Sub(r.Expires) > remember {
			if err := t.dir.Remove(id + tokensName); err != nil {
				return err
			}
			delete(t.records, id)
			delete(t.paces, id)
		}
	}
	return nil
}

func (t *Tokens) save(r *record) error {
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("store token: %w", err)
	}
	return t.dir.Write(r.ID+tokensName, data)
}

// List gives all remembered tokens, the next to expire first.
func (t *Tokens) List() []Info {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	var out []Info
	for _, r := range t.records {
		out = append(out, Info{ID: r.ID, Cluster: mesh.ClusterName(r.Cluster), Namespaces: r.Namespaces, Expires: r.Expires, State: r.state(now)})
	}
	slices.SortFunc(out, func(a, b Info) int {
		if c := a.Expires.Compare(b.Expires); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return out
}

func (r *record) state(now time.Time) string {
	switch {
	case r.Revoked:
		return "revoked"
	case !r.Used.IsZero():
		return "used"
	case !now.Before(r.Expires):
		return "expired"
	}
	return "open"
}

// Revoke ends the open tokens of that id or cluster name and says how many. A name that no token has is an error: the
// one that was meant would stay open.
func (t *Tokens) Revoke(idOrCluster string) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n, known := 0, false
	for _, r := range t.records {
		if r.ID != idOrCluster && r.Cluster != idOrCluster {
			continue
		}
		known = true
		if r.state(t.now()) == "open" {
			changed := *r
			changed.Revoked = true
			if err := t.save(&changed); err != nil {
				return n, err
			}
			*r = changed
			n++
		}
	}
	if !known {
		return 0, hint.Wrap(hint.Code(fmt.Errorf("no token has the id %q or is for a cluster of that name", idOrCluster), "not_found"), "isthmus cluster token list shows them")
	}
	return n, nil
}

// Why a request is not admitted. Only errUsed is told apart on the wire, and only to who proved to hold the secret.
var (
	errRefused = errors.New("token unknown, expired, revoked or not proven")
	errUsed    = errors.New("token was used already")
)

// proven is a request whose MAC was right.
type proven struct {
	id  string
	rec record // a copy
}

// prove checks a request against its token: what is the same whether the token is unknown, expired, revoked or the MAC
// wrong is the same in time as well.
func (t *Tokens) prove(exporter []byte, r *pb.AdmitRequest) (*proven, error) {
	id := hex.EncodeToString(r.TokenId)
	t.mu.Lock()
	found, ok := t.records[id]
	rec := record{Key: make([]byte, keyLen)}
	if ok {
		rec = *found
	}
	t.mu.Unlock()
	right := hmac.Equal(r.Mac, requestMAC(rec.Key, exporter, mesh.ClusterName(rec.Cluster), r))
	if !right || !ok || rec.Revoked || !t.now().Before(rec.Expires) && rec.Used.IsZero() {
		return nil, errRefused
	}
	return &proven{id: id, rec: rec}, nil
}

// allow tells whether a token may be used to ask again already.
func (t *Tokens) allow(p *proven, now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.paces[p.id] == nil {
		t.paces[p.id] = rate.NewLimiter(tokenLimit, rateLimit)
	}
	return t.paces[p.id].AllowN(now, 1)
}

// use marks a token used, on disk, before anything is signed: exactly one key gets nil. After a crash or a lost answer
// the same key may come again within a minute.
func (t *Tokens) use(p *proven, key [32]byte) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	r, ok := t.records[p.id]
	if !ok || r.Revoked {
		return errRefused
	}
	if !r.Used.IsZero() {
		return r.spent(key, t.now())
	}
	changed := *r
	changed.Used, changed.UsedKey = t.now().UTC(), key[:]
	if err := t.save(&changed); err != nil {
		return err
	}
	*r = changed
	return nil
}

// spent says whether a used token is over for key.
func (r *record) spent(key [32]byte, now time.Time) error {
	if since := now.Sub(r.Used); since >= 0 && since < retry && hmac.Equal(r.UsedKey, key[:]) {
		return nil
	}
	return errUsed
}

// used tells whether a token was used by another key since it was proven.
func (t *Tokens) used(p *proven, key [32]byte) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	r, ok := t.records[p.id]
	return ok && !r.Used.IsZero() && r.spent(key, t.now()) != nil
}
