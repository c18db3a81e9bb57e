package mesh

// Level of a finding.
type Level string

// Levels, most severe first.
const (
	LevelError   Level = "error"
	LevelWarning Level = "warning"
	LevelInfo    Level = "info"
)

// Finding is what is wrong with configuration: data, not an error, so that one bad
// object never stops another.
type Finding struct {
	Code    string `json:"code"`
	Level   Level  `json:"level"`
	Object  string `json:"object"` // "Kind ns/name"
	Path    string `json:"path"`   // field path, for example spec.http[0].route[1].weight
	File    string `json:"file"`
	Line    int    `json:"line"`
	Message string `json:"message"`
	Fix     string `json:"fix"`
}
