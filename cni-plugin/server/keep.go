package server

import (
	"context"
	"strings"
	"time"

	"github.com/causeway-net/causeway/cni-plugin/veth"
)

// keepLinks looks at the host's end of every pod's link now and then, and mends what others
// changed (DESIGN I5). The rest of a link is the pod's own to break.
func (s *Server) keepLinks(ctx context.Context) {
	for {
		s.mendLinks(ctx)
		select {
		case <-ctx.Done():
			return
		case <-time.After(s.Resync):
		}
	}
}

func (s *Server) mendLinks(ctx context.Context) {
	owned, err := s.wirer.Owned()
	if err != nil {
		s.Log.Error("links not looked at", "error", err)
		return
	}
	for name, owner := range owned {
		if ctx.Err() != nil {
			return
		}
		ep, ok := s.IPAM.Endpoint(owner.Key)
		if !ok || ep.HostInterface != name || ep.Network != owner.Network {
			continue
		}
		found, err := s.wirer.Mend(veth.Spec{HostName: name, PodName: owner.Key.IfName, Owner: owner, Addresses: ep.Addresses, MTU: ep.MTU})
		if err != nil {
			s.Log.Error("link not mended", "attachment", owner.Key.String(), "link", name, "error", err)
			continue
		}
		if len(found) > 0 {
			var what []string
			for _, d := range found {
				what = append(what, d.String())
			}
			s.Log.Warn("somebody changed a pod's link; mended", "attachment", owner.Key.String(), "link", name, "changed", strings.Join(what, "; "))
		}
	}
}
