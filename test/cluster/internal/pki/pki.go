// Package pki makes the keys of a test cluster: one authority, certificates it signed, and
// kubeconfigs that hold them. Everything lasts ten years and lies in one folder.
package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// Authority signs certificates.
type Authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// Subject of a certificate.
type Subject struct {
	File  string // name of the .crt and .key files
	User  string // common name
	Group string // organization; empty for none
	// Server makes it a server's certificate, for these names and addresses; others are
	// clients'.
	Server []string
}

// New makes an authority in dir: ca.crt, ca.key, and sa.key, sa.pub for service accounts.
func New(dir string) (*Authority, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	a := &Authority{dir: dir}
	var err error
	if a.key, err = newKey(filepath.Join(dir, "ca.key")); err != nil {
		return nil, err
	}
	t := template("causeway-test-cluster")
	t.IsCA, t.BasicConstraintsValid, t.KeyUsage = true, true, x509.KeyUsageCertSign|x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, t, t, a.key.Public(), a.key)
	if err != nil {
		return nil, err
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		return nil, err
	}
	if err := writePEM(filepath.Join(dir, "ca.crt"), "CERTIFICATE", der); err != nil {
		return nil, err
	}
	sa, err := newKey(filepath.Join(dir, "sa.key"))
	if err != nil {
		return nil, err
	}
	pub, err := x509.MarshalPKIXPublicKey(sa.Public())
	if err != nil {
		return nil, err
	}
	return a, writePEM(filepath.Join(dir, "sa.pub"), "PUBLIC KEY", pub)
}

// Issue writes File.crt and File.key.
func (a *Authority) Issue(s Subject) error {
	key, err := newKey(filepath.Join(a.dir, s.File+".key"))
	if err != nil {
		return err
	}
	t := template(s.User)
	t.KeyUsage, t.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if s.Group != "" {
		t.Subject.Organization = []string{s.Group}
	}
	if len(s.Server) > 0 {
		t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	}
	for _, name := range s.Server {
		if ip := net.ParseIP(name); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, name)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, key.Public(), a.key)
	if err != nil {
		return fmt.Errorf("certificate %s: %w", s.File, err)
	}
	return writePEM(filepath.Join(a.dir, s.File+".crt"), "CERTIFICATE", der)
}

// Kubeconfig issues a client's certificate and writes File.conf for the API server at url.
func (a *Authority) Kubeconfig(s Subject, url string) error {
	if err := a.Issue(s); err != nil {
		return err
	}
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: test, cluster: {server: %q, certificate-authority: %q}}]
users: [{name: %[3]s, user: {client-certificate: %[4]q, client-key: %[5]q}}]
contexts: [{name: test, context: {cluster: test, user: %[3]s}}]
current-context: test
`, url, filepath.Join(a.dir, "ca.crt"), s.File, filepath.Join(a.dir, s.File+".crt"), filepath.Join(a.dir, s.File+".key"))
	return os.WriteFile(filepath.Join(a.dir, s.File+".conf"), []byte(text), 0o600)
}

func template(name string) *x509.Certificate {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		panic(err) // the kernel gives random numbers or nothing works
	}
	now := time.Now()
	return &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(10, 0, 0)}
}

func newKey(path string) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, writePEM(path, "EC PRIVATE KEY", der)
}

func writePEM(path, kind string, der []byte) error {
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}
