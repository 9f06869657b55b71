package apiserver

import (
	"os"
	"path/filepath"
)

// Backup copies what etcd holds. Calling restore brings the API server back with that, as
// an operator does after a disaster: its resourceVersions go backwards. Each of the two
// stops and starts both servers.
func (s *Server) Backup() (restore func() error, err error) {
	data, saved := filepath.Join(s.dir, "etcd"), filepath.Join(s.dir, "etcd.backup")
	if err := os.RemoveAll(saved); err != nil {
		return nil, err
	}
	if err := s.offline(func() error { return os.CopyFS(saved, os.DirFS(data)) }); err != nil {
		return nil, err
	}
	return func() error {
		return s.offline(func() error {
			if err := os.RemoveAll(data); err != nil {
				return err
			}
			return os.Rename(saved, data)
		})
	}, nil
}

// offline runs f while neither etcd nor kube-apiserver runs.
func (s *Server) offline(f func() error) error {
	s.Stop()
	s.procs = nil
	if err := f(); err != nil {
		return err
	}
	if err := s.startEtcd(); err != nil {
		return err
	}
	return s.StartAPI()
}
