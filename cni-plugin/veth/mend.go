package veth

import "fmt"

// Mend brings the host's end of a link back to what s says where somebody changed it, as a
// restart of systemd-sysctl does with the settings of every interface, and returns what was
// different. Of s it needs no namespace. A link that is not there, or is another owner's by
// now, is left alone: ADD makes links, and DEL ends them.
func (w *Wirer) Mend(s Spec) ([]Difference, error) {
	defer w.names.lock(s.HostName)()
	host, err := openSocket()
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	defer host.Close()
	l, err := linkByName(host, s.HostName)
	if err != nil {
		return nil, fmt.Errorf("link %s: %w", s.HostName, err)
	}
	if l == nil || l.Type() != "veth" || l.Attrs().Alias != s.Owner.String() {
		return nil, nil
	}
	var d differences
	if err := w.checkHost(&d, host, &s, l); err != nil {
		return nil, fmt.Errorf("link %s: %w", s.HostName, err)
	}
	if len(d) == 0 {
		return nil, nil
	}
	if err := w.setHost(host, &s, l, false); err != nil && !gone(err) {
		return d, fmt.Errorf("link %s: %w", s.HostName, err)
	}
	return d, nil
}
