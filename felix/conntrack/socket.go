package conntrack

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// socket is one netlink socket, of one goroutine.
type socket struct {
	fd   int // -1: closed
	seq  uint32
	read []byte
	enc  encoder
}

func (s *socket) close() {
	if s.fd >= 0 {
		unix.Close(s.fd)
	}
	s.fd = -1
}

// receive reads once and walks the messages.
func (s *socket) receive(each func(typ, flags uint16, seq uint32, body []byte) error) error {
	var n int
	var err error
	for {
		if n, err = unix.Read(s.fd, s.read); err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	for b := s.read[:n]; len(b) >= nlHeader; {
		size := int(ne.Uint32(b))
		if size < nlHeader || size > len(b) {
			return errors.New("netlink: malformed message")
		}
		if err := each(ne.Uint16(b[4:]), ne.Uint16(b[6:]), ne.Uint32(b[8:]), b[nlHeader:size]); err != nil {
			return err
		}
		b = b[min((size+3)&^3, len(b)):]
	}
	return nil
}

func (s *socket) send() error {
	for {
		_, err := unix.Write(s.fd, s.enc.buf)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return fmt.Errorf("netlink: %w", err)
		}
		return nil
	}
}

// code is the kernel's answer in a message of type NLMSG_ERROR or NLMSG_DONE.
func code(body []byte) unix.Errno {
	if len(body) < 4 {
		return 0
	}
	return unix.Errno(-int32(ne.Uint32(body)))
}

// dump shows the flows of a family, narrowed by what filter asks for if the kernel
// knows that, and again from the beginning when it was interrupted.
func (s *socket) dump(ctx context.Context, family uint8, filter func(*encoder), each func(*Flow)) error {
	for try := 1; ; try++ {
		err := s.dumpOnce(ctx, family, filter, each)
		switch {
		case errors.Is(err, unix.EINTR) && try < tries:
			continue
		case errors.Is(err, unix.EINVAL):
			return fmt.Errorf("%w: %w", ErrUnsupported, err)
		}
		return err
	}
}

// dumpOnce returns EINTR when the kernel says that the table changed under it. After an
// error the socket may hold answers of a dump that nobody waits for; their seq tells.
func (s *socket) dumpOnce(ctx context.Context, family uint8, filter func(*encoder), each func(*Flow)) error {
	s.seq++
	seq := s.seq
	e := &s.enc
	e.buf = e.buf[:0]
	at := e.begin(cmdGet, unix.NLM_F_DUMP, seq, family)
	if filter != nil {
		filter(e)
	}
	e.end(at)
	if err := s.send(); err != nil {
		return err
	}
	var (
		f           Flow
		interrupted bool
		broken      error
		answer      unix.Errno
	)
	for done := false; !done; {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		err := s.receive(func(typ, flags uint16, q uint32, body []byte) error {
			if q != seq {
				return nil
			}
			interrupted = interrupted || flags&unix.NLM_F_DUMP_INTR != 0
			switch typ {
			case unix.NLMSG_ERROR, unix.NLMSG_DONE:
				answer, done = code(body), true
				return nil
			}
			if err := f.parse(body); err != nil {
				broken = err // one that is not understood hides no other
				return nil
			}
			each(&f)
			return nil
		})
		if err != nil {
			return err
		}
	}
	switch {
	case answer != 0:
		return answer
	case interrupted:
		return unix.EINTR
	}
	return broken
}

// flows shows the flows that have one of addrs as one of their ends; all when addrs is nil.
func (s *socket) flows(ctx context.Context, addrs []netip.Addr, each func(*Flow)) error {
	if addrs == nil {
		return errors.Join(s.dump(ctx, unix.AF_INET, nil, each), s.dump(ctx, unix.AF_INET6, nil, each))
	}
	wanted := make(map[netip.Addr]struct{}, len(addrs))
	for _, a := range addrs {
		wanted[a.Unmap()] = struct{}{}
	}
	return s.at(ctx, places[:2], wanted, each)
}

// naming shows the flows in which one of addrs stands anywhere.
func (s *socket) naming(ctx context.Context, addrs map[netip.Addr]struct{}, each func(*Flow)) error {
	return s.at(ctx, places, addrs, each)
}

// at shows the flows that have one of addrs in one of the places, by the cheaper way. Only
// IPv4 is filtered by the kernel: of IPv6 addresses ctnetlink_filter_match_tuple (seen in
// 6.18) takes for different what is equal, and shows all flows but those asked for.
func (s *socket) at(ctx context.Context, in []place, addrs map[netip.Addr]struct{}, each func(*Flow)) error {
	var v4, v6 []netip.Addr
	for a := range addrs {
		if a.Is4() {
			v4 = append(v4, a)
		} else {
			v6 = append(v6, a)
		}
	}
	here := func(f *Flow) {
		for _, p := range in {
			if _, ok := addrs[p.of(f)]; ok {
				each(f)
				return
			}
		}
	}
	held, err := s.count(ctx)
	if err == nil && held == 0 {
		return nil
	}
	var errs []error
	if len(v6) > 0 {
		errs = append(errs, s.dump(ctx, unix.AF_INET6, nil, here))
	}
	if n := len(in) * len(v4); n > walks || err == nil && held < (n-1)*perWalk {
		errs = append(errs, s.dump(ctx, unix.AF_INET, nil, here))
		v4 = nil
	}
	for _, a := range v4 {
		for i, p := range in {
			errs = append(errs, s.dump(ctx, unix.AF_INET, func(e *encoder) { e.filter(p, a) }, func(f *Flow) {
				for _, before := range in[:i] {
					if before.of(f) == a {
						return // shown already
					}
				}
				if p.of(f) == a { // an older kernel does not filter
					each(f)
				}
			}))
		}
	}
	return errors.Join(errs...)
}

// count is how many flows the table has in this network namespace, of all families.
func (s *socket) count(ctx context.Context) (n int, err error) {
	n = -1
	cerr := s.commands(ctx, 1, func(e *encoder, seq uint32, _ int) { e.end(e.begin(cmdStats, 0, seq, unix.AF_UNSPEC)) },
		func(_ int, body []byte) error {
			for rest := body[min(nfHeader, len(body)):]; len(rest) > 0; {
				var typ uint16
				var value []byte
				var err error
				if _, typ, value, rest, err = next(rest); err != nil {
					return err
				}
				if typ == attrEntries && len(value) == 4 {
					n = int(be.Uint32(value))
				}
			}
			return nil
		}, func(_ int, failed error) { err = failed })
	switch {
	case cerr != nil:
		return 0, cerr
	case err == nil && n < 0:
		err = errors.New("netlink: no number of connections")
	}
	return n, err
}

// commands sends n messages in bursts; each is written by encode. found gets the answers of
// those that have one, failed the others' errors; the result is about the way to the kernel.
func (s *socket) commands(ctx context.Context, n int, encode func(e *encoder, seq uint32, i int), found func(i int, body []byte) error, failed func(int, error)) error {
	for from := 0; from < n; from += burst {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		size := min(burst, n-from)
		first := s.seq + 1
		e := &s.enc
		e.buf = e.buf[:0]
		last := 0
		for i := range size {
			s.seq++
			last = len(e.buf)
			encode(e, s.seq, from+i)
		}
		ne.PutUint16(e.buf[last+6:], ne.Uint16(e.buf[last+6:])|unix.NLM_F_ACK)
		if err := s.send(); err != nil {
			return err
		}
		for done := false; !done; {
			err := s.receive(func(typ, _ uint16, seq uint32, body []byte) error {
				i := int(seq - first)
				if i < 0 || i >= size {
					return nil
				}
				switch {
				case typ == unix.NLMSG_ERROR:
					done = done || i == size-1
					if c := code(body); c != 0 {
						failed(from+i, c)
					}
				case found != nil:
					return found(from+i, body)
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// delete deletes flows, and counts those that were still there.
func (s *socket) delete(ctx context.Context, flows []Flow) (int, error) {
	deleted := len(flows)
	var errs []error
	err := s.commands(ctx, len(flows), func(e *encoder, seq uint32, i int) {
		f := &flows[i]
		at := e.begin(cmdDelete, 0, seq, f.family())
		e.buf = append(e.buf, f.orig...)
		e.pad()
		e.zone(f.Zone)
		e.be32(attrID, f.id)
		e.end(at)
	}, nil, func(i int, err error) {
		deleted--
		if !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("deleting %s: %w", &flows[i], err))
		}
	})
	if err != nil {
		return 0, fmt.Errorf("deleting connections: %w", err)
	}
	return deleted, errors.Join(errs...)
}
