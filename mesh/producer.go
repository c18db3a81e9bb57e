package mesh

// ProducerRules are the routes that travel with an export, after the importer
// has parsed them and restricted them to what a producer may decide.
type ProducerRules struct {
	VirtualServices  []*VirtualService
	DestinationRules []*DestinationRule
	// Findings name the rules that were quarantined; the others are in use.
	Findings []Finding
}
