package mesh

// Codes of findings, about one object (ISM01), among objects (ISM02) and between clusters (ISM03). A code that was released
// keeps its meaning. [Codes] says what each means.
const (
	CodeUnknownField    = "ISM0101"
	CodeNotSupported    = "ISM0102"
	CodeDuplicate       = "ISM0103"
	CodeInvalid         = "ISM0104"
	CodeUnknownKind     = "ISM0105"
	CodeUnreadable      = "ISM0106"
	CodeExportNoService = "ISM0107"
	CodeProtocol        = "ISM0108"
	CodeProducer        = "ISM0109"
	CodeSlowFailover    = "ISM0110"
	CodePortConflict    = "ISM0111"
	CodeSkipped         = "ISM0112"
	CodeSharedKnob      = "ISM0113"

	CodeNotGranted     = "ISM0201"
	CodeLongName       = "ISM0202"
	CodeNoHost         = "ISM0203"
	CodeNoDestination  = "ISM0204"
	CodeNoSubset       = "ISM0205"
	CodeNoPort         = "ISM0206"
	CodeNoProtocol     = "ISM0207"
	CodeUnreachable    = "ISM0208"
	CodeIneffective    = "ISM0209"
	CodeTwoRoutings    = "ISM0210"
	CodeDoubled        = "ISM0211"
	CodeSelectsNothing = "ISM0212"
	CodeNoRegion       = "ISM0213"
	CodeOwnCallersOnly = "ISM0214"
	CodeReservedPort   = "ISM0215"
	CodeProducerUnused = "ISM0216"
	CodePoliciesDiffer = "ISM0217"
	CodeOtherRoot      = "ISM0218"

	CodeExportNotGranted = "ISM0301"
	CodeExportInvalid    = "ISM0302"
	CodeExportReduced    = "ISM0303"
	CodeExportOverBudget = "ISM0304"
	CodeExportTooMany    = "ISM0305"
	CodeImportNotGranted = "ISM0311"
	CodeImportInvalid    = "ISM0312"
	CodeImportReduced    = "ISM0313"
	CodeImportOverBudget = "ISM0314"
	CodeImportPatterns   = "ISM0315"
)

// Code is what a code of findings means.
type Code struct {
	ID, Title string
	// Istio is the code of Istio's analyzer for the same, if it has one.
	Istio string
	// About says what it means and what follows, Do what to do.
	About, Do string
}

// Codes are all of them, in order. The pages of docs/reference/findings are made of this.
func Codes() []Code {
	return []Code{
		{CodeUnknownField, "The API has no such field", "IST0106", "A misspelt field would have no effect in silence, so the object is refused.", "Correct the spelling; the finding suggests the nearest name."},
		{CodeNotSupported, "Not supported yet", "", "The API has the field, value or kind, and this version does not act on it. Nothing is accepted that has no effect, so the object is refused.", "Leave it out, or wait for the version that acts on it; docs/reference lists what each kind can."},
		{CodeDuplicate, "Two documents for one object", "", "The second document would replace the first, and which one is meant cannot be told.", "Remove one of the two."},
		{CodeInvalid, "A value that cannot be right", "IST0106", "The value is of another shape, out of its range, or contradicts another of the same object.", "Change it as the finding says."},
		{CodeUnknownKind, "No such kind or version", "", "The kind or its version is none that is read.", "Correct apiVersion and kind."},
		{CodeUnreadable, "Not YAML, or beyond a bound", "", "The file cannot be read: it is no YAML or JSON, or it is larger, deeper or has more values than is read.", "Correct the file near the line, or split it."},
		{CodeExportNoService, "An export without its Service", "IST0101", "A ServiceExport exports the Service of its own name and namespace, and there is none.", "Apply the Service, or delete the export."},
		{CodeProtocol, "An unknown application protocol", "IST0118", "appProtocol is none that is known, so the port is carried as plain TCP: its requests are not routed one by one.", "Use http, grpc or tcp."},
		{CodeProducer, "A rule of another cluster goes too far", "", "What comes along with an export may say little for other clusters: routes of the exported host, within bounds. The rule, or what goes beyond, is left out here.", "The operators of the exporting cluster can change it."},
		{CodeSlowFailover, "Leaving a frozen peer takes longer", "", "Nothing but the connect time-out ends a connection that is not up yet, so a long one makes leaving a gateway or peer that stands still as slow.", "Leave connectTimeout at 1 s or below, unless connections take that long."},
		{CodePortConflict, "Clusters disagree about a port", "", "Clusters that export one service say different protocols of a port. The first of them in document order decides (KEP-1645); the other gets no requests for the port.", "Give the port the same protocol in both clusters, or another number."},
		{CodeSkipped, "Left out", "", "The document or port is not the mesh's affair: a kind of Kubernetes' own, or a port that is not TCP.", "Nothing has to be done."},
		{CodeSharedKnob, "One setting for two things", "", "Envoy has one interval, one ejection time and one greatest share for endpoints that answer badly and for those that cannot be reached. A rule's values count for both.", "Requests leave an endpoint that cannot be reached by retries meanwhile; set interval, baseEjectionTime and maxEjectionPercent to have it left out sooner."},
		{CodeNotGranted, "An export of a namespace that is not granted", "", "The federation document grants each cluster the namespaces from which it may export. This is none of them, so nothing is exported.", "Have the authority make a token with the namespace and join again, or use a granted one."},
		{CodeLongName, "A name too long for a server name", "", "Gateways tell services apart by server names of at most 255 bytes with labels of at most 63. The name does not fit.", "Give the service or its namespace a shorter name."},
		{CodeNoHost, "A rule for a host that is not there", "IST0101", "There is no such service, so the rule governs nothing.", "Correct the name, or apply the Service."},
		{CodeNoDestination, "A destination that is not there", "IST0101", "The route sends requests to a service that does not exist: they are answered 503.", "Correct the name, or apply the Service."},
		{CodeNoSubset, "A subset that nobody defines", "IST0101", "No DestinationRule in force for the host defines the subset that the route names: its requests are answered 503.", "Define it in a DestinationRule of the caller's, the service's or the root namespace."},
		{CodeNoPort, "A port that is not there", "IST0101", "The host has no such port: what is sent there is answered 503, and a match of it holds for nobody.", "Name a port of the Service."},
		{CodeNoProtocol, "No port of that protocol", "", "http rules act on HTTP and gRPC ports, tcp rules on all others. The host has none of the kind, so the rules have no effect.", "Name the port after its protocol (http-…, grpc-…, tcp-…) or set appProtocol; or write the other kind of rule."},
		{CodeUnreachable, "A rule that no request reaches", "IST0130", "Rules are tried in order and the first that matches is used. One before it takes everything.", "Move the rule up, or remove it."},
		{CodeIneffective, "A match that is taken already", "IST0131", "An earlier rule has the same match.", "Remove it, or move it up."},
		{CodeTwoRoutings, "Two VirtualServices for one host", "IST0109", "Of several VirtualServices of one namespace for one host the first by name counts, the others have no effect on it.", "Write the rules for one host in one VirtualService."},
		{CodeDoubled, "Said twice", "", "Several DestinationRules of one namespace for one host are merged: the subsets of all, and the first policy. What is said twice counts once, by the first object by name.", "Say it once."},
		{CodeSelectsNothing, "A subset without endpoints", "IST0173", "No endpoint of the host has the labels that the subset asks for: its requests are answered 503.", "Correct the labels; the finding says which values there are."},
		{CodeNoRegion, "A region that no cluster is in", "", "Fail-over is between regions of the federation document.", "Name a region of isthmus cluster list."},
		{CodeOwnCallersOnly, "A policy for callers of its own namespace", "", "A DestinationRule counts for callers in its own namespace; for all others only in the service's namespace or in the root namespace.", "Move it there if it is meant for everybody."},
		{CodeReservedPort, "A port of the sidecar's", "", "The sidecar listens on the port in every pod: nothing gets to an application there.", "Let the application listen on another port."},
		{CodeProducerUnused, "Another cluster's routes do not count here", "", "A cluster with pods of its own for a service takes nobody else's routes for it: no cluster moves what another sends to itself.", "Write a VirtualService in this cluster for its own callers."},
		{CodePoliciesDiffer, "Another cluster's policy does not count here", "", "Clusters that serve one host do not say the same of connections, and a rule of this cluster keeps their endpoints in one rank, so they cannot be told apart.", "Write a DestinationRule in this cluster, which counts for all of them."},
		{CodeOtherRoot, "The root namespace is another", "", "The rule is in the namespace that Istio uses as its root. Here it is another, so the rule is for callers of its own namespace only.", "Write it in the root namespace, or start the control plane with --root-namespace."},
		{CodeExportNotGranted, "Not exported: not granted", "", "The federation does not grant this cluster the service's namespace, so the service is left out of the catalogue.", "Export from a granted namespace, or join with a token for this one."},
		{CodeExportInvalid, "Not exported: cannot be encoded", "", "The service cannot be written into a catalogue.", "Change the service, or unexport it."},
		{CodeExportReduced, "Exported with fewer slots", "", "What a cluster exports multiplies (ports x slots x subsets) to more than one exporter may have, so other clusters use one slot a port and subset of this service.", "Unexport services that nobody calls, or give the largest fewer ports or subsets."},
		{CodeExportOverBudget, "Not exported: over the budget", "", "Even with one slot a port and subset what this cluster exports multiplies to too much, so this service is left out.", "Unexport services that nobody calls, or give the largest fewer ports or subsets."},
		{CodeExportTooMany, "Not exported: the catalogue is full", "", "A catalogue has a greatest number of services and of bytes.", "Unexport services that nobody calls."},
		{CodeImportNotGranted, "Not imported: not granted", "", "The federation does not grant the exporter the service's namespace.", "Have the authority grant it, or the exporter unexport the service."},
		{CodeImportInvalid, "Not imported: cannot be read", "", "The service cannot be read out of the exporter's catalogue.", "Run the same version in both clusters."},
		{CodeImportReduced, "Imported with fewer slots", "", "What the exporter's services multiply to is more than one exporter may have: of this one a slot a port and subset is used, so one pod.", "The operators of the exporter can unexport services, or give the largest fewer ports or subsets."},
		{CodeImportOverBudget, "Not imported: over the budget", "", "Even with one slot a port and subset what the exporter's services multiply to is too much.", "The operators of the exporter can unexport services, or give the largest fewer ports or subsets."},
		{CodeImportPatterns, "Rules of another cluster are not used: too many patterns", "", "The regular expressions of all rules that the exporter sends along come to more than every proxy should hold: those of this service are left out.", "The operators of the exporter can match by prefix or by whole values."},
	}
}
