package mesh

// Lingering are the clusters that stopped serving a service a moment ago, and the accounts by which they or others did until
// then ("namespace/name", sorted; a cluster may have none). They have no endpoints any more, but are still believed: requests
// that were on their way to them come to their end.
type Lingering map[ClusterName][]string
