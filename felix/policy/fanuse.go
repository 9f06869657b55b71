package policy

import "maps"

// FanUse keeps which interfaces go by which fans, for a backend that makes the chains of each fan once:
// workloads with the same policies share them, and one policy's ports change them once. The zero FanUse
// is ready.
type FanUse struct {
	fans map[string]*usedFan        // by ID
	of   map[string]map[string]bool // interface → IDs of its fans
}

type usedFan struct {
	made  *Fan
	users map[string]bool // interfaces
}

// MadeFan is a fan whose chains are to be made, or made anew.
type MadeFan struct {
	*Fan
	Run []ChainID // the chains that it stands for
}

// Set says that an interface goes by the fans of these paths, and by no others. It returns the fans
// whose chains are new or others than they were, and the IDs of those that nobody goes by any more.
func (u *FanUse) Set(iface string, paths ...*Path) (made []MadeFan, gone []string) {
	now := map[string]bool{}
	for _, p := range paths {
		for i := range p.Tiers {
			t := &p.Tiers[i]
			for k := range t.Fans {
				f := &t.Fans[k]
				now[f.ID] = true
				x := u.fans[f.ID]
				if x == nil {
					x = &usedFan{users: map[string]bool{}}
					if u.fans == nil {
						u.fans, u.of = map[string]*usedFan{}, map[string]map[string]bool{}
					}
					u.fans[f.ID] = x
				}
				x.users[iface] = true
				if x.made == nil || x.made != f && !x.made.alike(f) {
					made = append(made, MadeFan{f, t.Chains[f.From:f.To]})
				}
				x.made = f
			}
		}
	}
	for id := range u.of[iface] {
		if now[id] {
			continue
		}
		x := u.fans[id]
		if delete(x.users, iface); len(x.users) == 0 {
			delete(u.fans, id)
			gone = append(gone, id)
		}
	}
	switch {
	case len(now) > 0:
		u.of[iface] = now
	default:
		delete(u.of, iface)
	}
	return made, gone
}

// Of returns the IDs of the fans that an interface goes by. The map is the caller's.
func (u *FanUse) Of(iface string) map[string]bool { return maps.Clone(u.of[iface]) }
