package capture

import (
	"bytes"
	"encoding/binary"
)

// Numbers of draft-ietf-opsawg-pcap.
const (
	pcapMagic    = 0xa1b2c3d4 // times in microseconds
	linkEthernet = 1
)

func pcapHeader() []byte {
	var b []byte
	b = binary.LittleEndian.AppendUint32(b, pcapMagic)
	b = binary.LittleEndian.AppendUint16(b, 2) // version 2.4
	b = binary.LittleEndian.AppendUint16(b, 4)
	b = binary.LittleEndian.AppendUint32(b, 0) // reserved, twice
	b = binary.LittleEndian.AppendUint32(b, 0)
	b = binary.LittleEndian.AppendUint32(b, maxPacket)
	return binary.LittleEndian.AppendUint32(b, linkEthernet)
}

// pcapRecord is what stands before a packet's bytes.
func pcapRecord(p Packet) []byte {
	var b []byte
	b = binary.LittleEndian.AppendUint32(b, uint32(p.Time.Unix()))
	b = binary.LittleEndian.AppendUint32(b, uint32(p.Time.Nanosecond()/1000))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(p.Data)))
	return binary.LittleEndian.AppendUint32(b, uint32(len(p.Data)))
}

// count adds one to each text's count that occurs in the packet.
func count(data []byte, texts []string, counts []int) {
	for i, text := range texts {
		if bytes.Contains(data, []byte(text)) {
			counts[i]++
		}
	}
}
