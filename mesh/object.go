package mesh

// ObjectName names a configuration object of one kind.
type ObjectName struct {
	Kind, Namespace, Name string
}

func (o ObjectName) String() string { return o.Kind + " " + o.Namespace + "/" + o.Name }
