package ipset

// keep takes in the wish of a replacement to adopt what an earlier agent left. The set was
// of kind was; the zero kind: it was not wanted.
func (s *set) keep(adopt func(Member) bool, was kind) {
	if was == (kind{}) {
		s.adopt, s.spurned = adopt, nil
		if s.header != nil {
			s.read = false // adoption needs to know what stands there now
		}
		return
	}
	if s.adopt != nil {
		s.adopt = adopt
	}
	for k, state := range s.members {
		if state&kept != 0 && !(was.family == s.kind.family && s.adoptable(k, was.family, adopt)) {
			s.put(k, 0, kept)
		}
	}
}

// adoptable reports whether a member of that family may be in the set as it is wanted, and
// shall be.
func (s *set) adoptable(k key, f Family, adopt func(Member) bool) bool {
	if adopt == nil {
		return false
	}
	m := k.member(f)
	keys, n, err := keysOf(s.kind.typ, s.kind.family, m)
	return err == nil && n == 1 && keys[0] == k && adopt(m)
}

// spurn keeps a member from being adopted.
func (s *set) spurn(k key) {
	if s.adopt == nil {
		return
	}
	if s.spurned == nil {
		s.spurned = map[key]struct{}{}
	}
	s.spurned[k] = struct{}{}
}

// adoptWhatStands is called when it is known what stands in the kernel, and does its work
// once after each first declaration.
func (s *set) adoptWhatStands() {
	if s.adopt == nil {
		return
	}
	for k, state := range s.members {
		if _, no := s.spurned[k]; state&have != 0 && state&want == 0 && !no && !s.noRoom(k) && s.adoptable(k, s.header.Family, s.adopt) {
			s.put(k, kept, 0)
		}
	}
	s.adopt, s.spurned = nil, nil
}
