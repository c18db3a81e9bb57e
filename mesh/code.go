package mesh

// Codes of findings that show only among objects; those about one object alone are package config's. A code that was
// released keeps its meaning.
const (
	CodeNotGranted      = "ISM0201"
	CodeLongName        = "ISM0202"
	CodeNoHost          = "ISM0203"
	CodeNoDestination   = "ISM0204"
	CodeNoSubset        = "ISM0205"
	CodeNoPort          = "ISM0206"
	CodeNoProtocol      = "ISM0207"
	CodeUnreachable     = "ISM0208"
	CodeIneffective     = "ISM0209"
	CodeTwoRoutings     = "ISM0210"
	CodeDoubled         = "ISM0211"
	CodeSelectsNothing  = "ISM0212"
	CodeNoRegion        = "ISM0213"
	CodeOwnCallersOnly  = "ISM0214"
	CodeReservedPort    = "ISM0215"
	CodeProducerUnused  = "ISM0216"
	CodePoliciesDiffer  = "ISM0217"
	CodeOtherRoot       = "ISM0218"
	CodeExportNoService = "ISM0107"
	CodePortConflict    = "ISM0111"
)
