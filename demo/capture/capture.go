// Package capture reads the packets of a network namespace, to prove what does
// and does not cross a wire: as a file for other tools, or in search of a text.
//
// The socket is opened inside the namespace and may be read anywhere: a socket
// stays in the namespace in which it was made.
package capture

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"isthmus.dev/isthmus/demo/netns"
)

const (
	// maxPacket is more than segmentation offload ever puts into one.
	maxPacket = 1 << 18
	// bufferSize is asked of the kernel, which may grant less. What does not fit is lost.
	bufferSize = 32 << 20
)

// Open opens a packet socket for all interfaces of a namespace.
func Open(ns *netns.Namespace) (*os.File, error) {
	var f *os.File
	err := ns.Do(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(hostToNetwork(unix.ETH_P_ALL)))
		if err != nil {
			return fmt.Errorf("open a packet socket: %w", err)
		}
		// Best effort: the forced one needs a right over the whole machine.
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, bufferSize) != nil {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, bufferSize)
		}
		f = os.NewFile(uintptr(fd), "packets")
		return nil
	})
	return f, err
}

// hostToNetwork turns a number into network byte order.
func hostToNetwork(v uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	return binary.NativeEndian.Uint16(b[:])
}

// Packet is one frame.
type Packet struct {
	Time time.Time
	// Data is the frame from its Ethernet header on. Valid until the next one is read.
	Data []byte
}

// Source reads packets. It is not safe for use by several goroutines at once.
type Source struct {
	file   *os.File
	buffer []byte
	// arrivals leaves out what an interface sends on: on a bridge every frame
	// arrives at one port and leaves by another, and counts once.
	arrivals bool
}

// OnLink reads a socket opened on a link between bridge ports: each frame once.
// The file becomes the Source's.
func OnLink(f *os.File) (*Source, error) { return newSource(f, true) }

// InPod reads a socket opened in a pod: what it sends, what it receives, and
// its loopback, where frames are seen twice. The file becomes the Source's.
func InPod(f *os.File) (*Source, error) { return newSource(f, false) }

// newSource makes a file that can be waited for: one that was handed over between
// processes may have been set to block.
func newSource(f *os.File, arrivals bool) (*Source, error) {
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		return nil, fmt.Errorf("prepare a packet socket: %w", err)
	}
	return &Source{file: os.NewFile(uintptr(fd), "packets"), buffer: make([]byte, maxPacket), arrivals: arrivals}, nil
}

// Close ends the capture.
func (s *Source) Close() error { return s.file.Close() }

// Next waits for a packet. The error is ctx's cause when that ends first.
func (s *Source) Next(ctx context.Context) (Packet, error) {
	stop := context.AfterFunc(ctx, func() { _ = s.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	raw, err := s.file.SyscallConn()
	if err != nil {
		return Packet{}, fmt.Errorf("read packets: %w", err)
	}
	for {
		var n int
		var from unix.Sockaddr
		var readErr error
		err := raw.Read(func(fd uintptr) bool {
			n, from, readErr = unix.Recvfrom(int(fd), s.buffer, 0)
			return !errors.Is(readErr, unix.EAGAIN)
		})
		if ctx.Err() != nil {
			return Packet{}, context.Cause(ctx)
		}
		// An interface that goes down is reported once and is no end.
		if errors.Is(readErr, unix.ENETDOWN) || errors.Is(readErr, unix.EINTR) {
			continue
		}
		if err := errors.Join(err, readErr); err != nil {
			return Packet{}, fmt.Errorf("read packets: %w", err)
		}
		if ll, ok := from.(*unix.SockaddrLinklayer); ok && s.arrivals && ll.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		return Packet{Time: time.Now(), Data: s.buffer[:n]}, nil
	}
}

// Count counts the packets in which each text occurs, until ctx ends or enough
// says so. The end of ctx is no error.
func (s *Source) Count(ctx context.Context, texts []string, enough func([]int) bool) ([]int, error) {
	counts := make([]int, len(texts))
	for !enough(counts) {
		p, err := s.Next(ctx)
		if ctx.Err() != nil {
			return counts, nil
		}
		if err != nil {
			return counts, err
		}
		count(p.Data, texts, counts)
	}
	return counts, nil
}

// WritePcap writes packets until ctx ends, which is no error, in the format that
// tcpdump and Wireshark read (draft-ietf-opsawg-pcap, microseconds, Ethernet).
func (s *Source) WritePcap(ctx context.Context, w io.Writer) error {
	if _, err := w.Write(pcapHeader()); err != nil {
		return fmt.Errorf("write capture: %w", err)
	}
	for {
		p, err := s.Next(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := w.Write(append(pcapRecord(p), p.Data...)); err != nil {
			return fmt.Errorf("write capture: %w", err)
		}
	}
}
