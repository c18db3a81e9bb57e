package control

// Document is what `demo up` and `demo status` print.
type Document struct {
	Dir        string `json:"dir"`
	Federation string `json:"federation"`
	// Dashboard is the address of the web page; null while there is none.
	Dashboard *string   `json:"dashboard"`
	Clusters  []Cluster `json:"clusters"`
}

// Cluster is one cluster as it runs.
type Cluster struct {
	Name    string   `json:"name"`
	Region  string   `json:"region"`
	Zones   []string `json:"zones"`
	Gateway string   `json:"gateway"`
	// Admin is the path of the admin socket, reachable from outside the tree.
	Admin string `json:"admin"`
	Role  string `json:"role"`
	// Cut is true while `demo fault cut` keeps the cluster off the link.
	Cut bool `json:"cut,omitempty"`
	// Join tells how long joining took; absent for the authority and before it joined.
	Join       *Join       `json:"join,omitempty"`
	Components []Component `json:"components"`
}

// The roles of a cluster.
const (
	RoleAuthority = "authority"
	RoleMember    = "member"
)

// Join is what `isthmus cluster join` reported.
type Join struct {
	Phases  []Phase `json:"phases"`
	TotalMs float64 `json:"totalMs"`
}

// Phase is one part of a join.
type Phase struct {
	Name string  `json:"name"`
	Ms   float64 `json:"ms"`
}

// Component is one process of a cluster.
type Component struct {
	Name string `json:"name"`
	Kind string `json:"kind"`
	// PID is the process as the host numbers it, 0 while it does not run.
	PID   int    `json:"pid"`
	Log   string `json:"log"`
	State string `json:"state"`
}

// The states of a component: running and ready; not running; running, but
// frozen, cut off or not ready.
const (
	StateUp     = "up"
	StateDown   = "down"
	StateFaulty = "faulty"
)
