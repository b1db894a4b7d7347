// Command peers is the other side of Adit's wires, sharing no code with Adit: an HBONE client and server on
// golang.org/x/net/http2 and go-spiffe, and a client and server of istio.v1.auth on grpc-go.
//
// One JSON object per line on standard output; exit code 1 with a sentence on standard error when something failed.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strings"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

type flags struct {
	addr, authority, expect, mode, cert, key, bundle, token, id, out, host string
	bytes, streams                                                         int
	seconds                                                                int64
}

func main() {
	commands := map[string]func(*flags) error{
		"hbone-client": hboneClient, "hbone-server": hboneServer, "ca-client": caClient, "ca-server": caServer, "verify": verify,
	}
	if len(os.Args) < 2 || commands[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: peers hbone-client|hbone-server|ca-client|ca-server|verify [flags]")
		os.Exit(64)
	}
	var f flags
	set := flag.NewFlagSet(os.Args[1], flag.ExitOnError)
	set.StringVar(&f.addr, "addr", "", "address to dial or to listen on")
	set.StringVar(&f.authority, "authority", "", "CONNECT's :authority")
	set.StringVar(&f.expect, "expect", "", "the SPIFFE ID that the peer must have")
	set.StringVar(&f.mode, "mode", "echo", "what to do")
	set.StringVar(&f.cert, "cert", "", "own certificate chain, PEM")
	set.StringVar(&f.key, "key", "", "own private key, PEM")
	set.StringVar(&f.bundle, "bundle", "", "roots of the trust domain, PEM, or a SPIFFE bundle where the name ends in .json")
	set.StringVar(&f.token, "token", "", "bearer token")
	set.StringVar(&f.id, "id", "", "the SPIFFE ID to ask for")
	set.StringVar(&f.out, "out", "", "file prefix for what is issued")
	set.StringVar(&f.host, "host", "adit-ca.adit-system.svc", "DNS name in the CA's certificate")
	set.IntVar(&f.bytes, "bytes", 1<<20, "bytes to send")
	set.IntVar(&f.streams, "streams", 1, "CONNECT streams at once")
	set.Int64Var(&f.seconds, "seconds", 3600, "validity to ask for or to issue")
	_ = set.Parse(os.Args[2:])
	if err := commands[os.Args[1]](&f); err != nil {
		fmt.Fprintln(os.Stderr, "peers:", err)
		os.Exit(1)
	}
}

func say(fields map[string]any) {
	line, _ := json.Marshal(fields)
	fmt.Println(string(line))
}

// load reads the own certificate and the bundle of the trust domain that the certificate names.
func (f *flags) load() (*x509svid.SVID, *x509bundle.Bundle, error) {
	svid, err := x509svid.Load(f.cert, f.key)
	if err != nil {
		return nil, nil, err
	}
	if strings.HasSuffix(f.bundle, ".json") {
		published, err := spiffebundle.Load(svid.ID.TrustDomain(), f.bundle)
		if err != nil {
			return nil, nil, err
		}
		sequence, _ := published.SequenceNumber()
		hint, _ := published.RefreshHint()
		say(map[string]any{"roots": len(published.X509Authorities()), "sequence": sequence, "refresh_hint_s": hint.Seconds()})
		return svid, published.X509Bundle(), nil
	}
	bundle, err := x509bundle.Load(svid.ID.TrustDomain(), f.bundle)
	return svid, bundle, err
}

// verify checks a certificate as go-spiffe does: the checklist of X509-SVID.md, and the chain.
func verify(f *flags) error {
	svid, bundle, err := f.load()
	if err != nil {
		return err
	}
	id, chains, err := x509svid.Verify(svid.Certificates, bundle)
	if err != nil {
		return err
	}
	if f.expect != "" && id != spiffeid.RequireFromString(f.expect) {
		return fmt.Errorf("the certificate is for %s", id)
	}
	leaf := svid.Certificates[0]
	say(map[string]any{"id": id.String(), "chains": len(chains), "not_after": leaf.NotAfter, "serial": leaf.SerialNumber.Text(16)})
	return nil
}
