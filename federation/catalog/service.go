package catalog

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	pb "isthmus.dev/isthmus/api/catalogue"
	"isthmus.dev/isthmus/mesh"
)

// encode gives the bytes of s that are hashed and sent. It refuses a service that a receiver would leave out.
func encode(s *mesh.ExportedService) ([]byte, error) {
	if err := validate(s); err != nil {
		return nil, fmt.Errorf("encode service %s: %w", s.Name, err)
	}
	m := &pb.Service{
		Namespace: s.Name.Namespace, Name: s.Name.Name, Identities: s.Identities,
		VirtualServices: s.VirtualServices, DestinationRules: s.DestinationRules, Served: s.Served, Reduced: s.Reduced,
	}
	for _, p := range s.Ports {
		m.Ports = append(m.Ports, &pb.Port{Name: p.Name, Number: p.Number, Protocol: string(p.Protocol)})
	}
	for _, k := range s.Slots {
		m.Slots = append(m.Slots, &pb.Slot{Index: k.Index, Generation: k.Generation, Zone: k.Zone, Labels: k.Labels, Healthy: k.Healthy, Total: k.Total, Down: k.Down})
	}
	for _, c := range s.To {
		m.To = append(m.To, string(c))
	}
	// Deterministic, so that an unchanged service keeps its hash from one publication to the next.
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode service %s: %w", s.Name, err)
	}
	if len(b) > MaxServiceBytes {
		return nil, fmt.Errorf("encode service %s: it has %d bytes, %d at most", s.Name, len(b), MaxServiceBytes)
	}
	return b, nil
}

// decode is the inverse of encode. The bytes are bounded by the caller.
func decode(b []byte) (*mesh.ExportedService, error) {
	var m pb.Service
	if err := proto.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("decode service: %w", err)
	}
	s := &mesh.ExportedService{
		Name:       mesh.ServiceName{Namespace: m.Namespace, Name: m.Name},
		Identities: m.Identities, VirtualServices: m.VirtualServices, DestinationRules: m.DestinationRules,
		Served: m.Served, Reduced: m.Reduced,
	}
	for _, p := range m.Ports {
		s.Ports = append(s.Ports, mesh.Port{Name: p.GetName(), Number: p.GetNumber(), Protocol: mesh.Protocol(p.GetProtocol())})
	}
	for _, k := range m.Slots {
		s.Slots = append(s.Slots, mesh.Slot{
			Index: k.GetIndex(), Generation: k.GetGeneration(), Zone: k.GetZone(),
			Labels: k.GetLabels(), Healthy: k.GetHealthy(), Total: k.GetTotal(), Down: k.GetDown(),
		})
	}
	for _, c := range m.To {
		s.To = append(s.To, mesh.ClusterName(c))
	}
	if err := validate(s); err != nil {
		return nil, fmt.Errorf("service %.130q: %w", s.Name.String(), err)
	}
	return s, nil
}

// validate holds the rules both sides keep for one service.
func validate(s *mesh.ExportedService) error {
	if err := s.Name.Validate(); err != nil {
		return err
	}
	if err := mesh.CheckSNI(s.Name.ClusterSetHost()); err != nil {
		return err
	}
	for _, check := range []func(*mesh.ExportedService) error{validatePorts, validateIdentities, validateConsumers, validateSlots} {
		if err := check(s); err != nil {
			return err
		}
	}
	if err := validateRoutes("VirtualService", s.VirtualServices); err != nil {
		return err
	}
	return validateRoutes("DestinationRule", s.DestinationRules)
}

func validatePorts(s *mesh.ExportedService) error {
	if len(s.Ports) == 0 || len(s.Ports) > maxPorts {
		return fmt.Errorf("has %d ports, want 1 to %d", len(s.Ports), maxPorts)
	}
	numbers, names := map[uint32]bool{}, map[string]bool{}
	for _, p := range s.Ports {
		switch {
		case p.Number == 0 || p.Number > 65535:
			return fmt.Errorf("port %d is not 1..65535", p.Number)
		case numbers[p.Number]:
			return fmt.Errorf("port %d occurs twice", p.Number)
		case p.Name == "" && len(s.Ports) > 1:
			return fmt.Errorf("port %d has no name beside others", p.Number)
		case p.Name != "" && !mesh.IsLabel(p.Name):
			return fmt.Errorf("port name %.70q is not a DNS-1123 label", p.Name)
		case names[p.Name]:
			return fmt.Errorf("port name %q occurs twice", p.Name)
		case p.Protocol != mesh.HTTP && p.Protocol != mesh.GRPC && p.Protocol != mesh.TCP:
			return fmt.Errorf("port %d: protocol %.20q is not http, grpc or tcp", p.Number, string(p.Protocol))
		}
		numbers[p.Number], names[p.Name] = true, true
	}
	return nil
}

// validateIdentities wants identities of the service's own namespace only: otherwise a grant for one namespace would
// lend the names of another.
func validateIdentities(s *mesh.ExportedService) error {
	if len(s.Identities) > maxIdentities {
		return fmt.Errorf("has %d identities, %d at most", len(s.Identities), maxIdentities)
	}
	for i, id := range s.Identities {
		ns, account, ok := strings.Cut(id, "/")
		if !ok || ns != s.Name.Namespace || !mesh.IsSubdomain(account) {
			return fmt.Errorf("identity %.330q is not %s/<account>", id, s.Name.Namespace)
		}
		if i > 0 && s.Identities[i-1] >= id {
			return errors.New("identities are not sorted or occur twice")
		}
	}
	return nil
}

func validateConsumers(s *mesh.ExportedService) error {
	if len(s.To) > maxConsumers {
		return fmt.Errorf("has %d consumers, %d at most", len(s.To), maxConsumers)
	}
	for i, c := range s.To {
		if err := c.Validate(); err != nil {
			return fmt.Errorf("consumer: %w", err)
		}
		if i > 0 && s.To[i-1] >= c {
			return errors.New("consumers are not sorted or occur twice")
		}
	}
	return nil
}

func validateSlots(s *mesh.ExportedService) error {
	if len(s.Slots) > MaxSlots {
		return fmt.Errorf("has %d slots, %d at most", len(s.Slots), MaxSlots)
	}
	for i, k := range s.Slots {
		switch {
		case k.Index > maxSlotIndex:
			return fmt.Errorf("slot index %d is above %d", k.Index, maxSlotIndex)
		case i > 0 && s.Slots[i-1].Index >= k.Index:
			return errors.New("slots are not sorted or occur twice")
		case k.Healthy > k.Total || k.Total > maxPods:
			return fmt.Errorf("slot %d counts %d healthy of %d pods", k.Index, k.Healthy, k.Total)
		case !plain(k.Zone, maxZone):
			return fmt.Errorf("slot %d: zone is longer than %d or not plain text", k.Index, maxZone)
		case len(k.Labels) > maxLabels:
			return fmt.Errorf("slot %d has %d labels, %d at most", k.Index, len(k.Labels), maxLabels)
		}
		if err := validateDown(s, k); err != nil {
			return err
		}
		for key, value := range k.Labels {
			if key == "" || !plain(key, maxLabelKey) || !plain(value, maxLabelValue) {
				return fmt.Errorf("slot %d: label %.70q is too long or not plain text", k.Index, key)
			}
		}
	}
	return nil
}

// validateDown wants ports of the service only: a slot cannot be down where nobody could call it.
func validateDown(s *mesh.ExportedService, k mesh.Slot) error {
	if len(k.Down) > len(s.Ports) {
		return fmt.Errorf("slot %d is down on %d ports of %d", k.Index, len(k.Down), len(s.Ports))
	}
	for i, down := range k.Down {
		if !slices.ContainsFunc(s.Ports, func(p mesh.Port) bool { return p.Number == down }) {
			return fmt.Errorf("slot %d is down on port %d, which the service does not have", k.Index, down)
		}
		if i > 0 && k.Down[i-1] >= down {
			return fmt.Errorf("slot %d: ports that are down are not sorted or occur twice", k.Index)
		}
	}
	return nil
}

func validateRoutes(kind string, objects [][]byte) error {
	if len(objects) > maxRoutes {
		return fmt.Errorf("has %d objects of kind %s, %d at most", len(objects), kind, maxRoutes)
	}
	for _, o := range objects {
		if len(o) > MaxRouteBytes {
			return fmt.Errorf("a %s has %d bytes, %d at most", kind, len(o), MaxRouteBytes)
		}
	}
	return nil
}

// plain tells whether s is printable ASCII without spaces, at most so long.
func plain(s string, most int) bool {
	return len(s) <= most && !slices.ContainsFunc([]byte(s), func(c byte) bool { return c <= ' ' || c > '~' })
}
