package ipset

// A crowd is the members of one prefix with their interfaces, which the kernel keeps in one
// bucket; see MaxInterfaces.
type crowd struct {
	wants, haves int
}

// alone is a member without its interface.
func (k key) alone() key {
	k.iface = [maxInterface]byte{}
	return k
}

// crowded counts members of k's prefix that became wanted and there, or less.
func (s *set) crowded(k key, wants, haves int) {
	if k.iface[0] == 0 || wants == 0 && haves == 0 {
		return
	}
	a := k.alone()
	c := s.crowds[a]
	c.wants += wants
	c.haves += haves
	if c == (crowd{}) {
		delete(s.crowds, a)
		return
	}
	if s.crowds == nil {
		s.crowds = map[key]crowd{}
	}
	s.crowds[a] = c
}

// noRoom reports whether k's prefix has so many interfaces that k cannot be wanted as well.
func (s *set) noRoom(k key) bool {
	return k.iface[0] != 0 && s.crowds[k.alone()].wants >= MaxInterfaces && s.members[k]&want == 0
}

// letIn makes members wanted that waited for room in their prefix.
func (s *set) letIn() {
	for k := range s.waiting {
		if !s.noRoom(k) {
			delete(s.waiting, k)
			s.put(k, own, 0)
		}
	}
}

// crowding parts del: first must go before add is written, because their prefix has no room
// for both.
func (s *set) crowding(add, del []key) (first, rest []key) {
	if len(s.crowds) == 0 || len(del) == 0 {
		return nil, del
	}
	more := map[key]int{}
	for _, k := range add {
		if k.iface[0] != 0 {
			more[k.alone()]++
		}
	}
	for _, k := range del {
		if a := k.alone(); more[a] > 0 && s.crowds[a].haves+more[a] > MaxInterfaces {
			first = append(first, k)
		} else {
			rest = append(rest, k)
		}
	}
	return first, rest
}
