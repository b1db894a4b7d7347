package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
)

const method = "/istio.v1.auth.IstioCertificateService/CreateCertificate"

// raw passes messages through as the bytes that they are on the wire: no generated code, so nothing in common with Adit's.
type raw struct{}

func (raw) Name() string                  { return "proto" }
func (raw) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }
func (raw) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = append([]byte(nil), data...)
	return nil
}

// field returns every value of a length-delimited field, and the last value of a varint field.
func field(message []byte, wanted protowire.Number) (values [][]byte, number uint64) {
	for len(message) > 0 {
		num, kind, n := protowire.ConsumeTag(message)
		if n < 0 {
			return
		}
		message = message[n:]
		if num == wanted && kind == protowire.BytesType {
			value, _ := protowire.ConsumeBytes(message)
			values = append(values, value)
		} else if num == wanted && kind == protowire.VarintType {
			number, _ = protowire.ConsumeVarint(message)
		}
		if n = protowire.ConsumeFieldValue(num, kind, message); n < 0 {
			return
		}
		message = message[n:]
	}
	return
}

func newRequest() (csr, key string, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, private)
	if err != nil {
		return
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})), err
}

// caClient asks a CA for one certificate and writes PREFIX.crt, PREFIX.key and PREFIX.root.
func caClient(f *flags) error {
	roots := x509.NewCertPool()
	trusted, err := os.ReadFile(f.bundle)
	if err != nil || !roots.AppendCertsFromPEM(trusted) {
		return fmt.Errorf("no roots in %s: %w", f.bundle, errors.Join(err))
	}
	conn, err := grpc.NewClient(f.addr, grpc.WithTransportCredentials(credentials.NewTLS(
		&tls.Config{RootCAs: roots, ServerName: f.host, MinVersion: tls.VersionTLS13})))
	if err != nil {
		return err
	}
	csr, key, err := newRequest()
	if err != nil {
		return err
	}
	asked, err := structpb.NewStruct(map[string]any{"ImpersonatedIdentity": f.id})
	if err != nil {
		return err
	}
	meta, err := proto.Marshal(asked)
	if err != nil {
		return err
	}
	request := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), csr)
	request = protowire.AppendVarint(protowire.AppendTag(request, 3, protowire.VarintType), uint64(f.seconds))
	request = protowire.AppendBytes(protowire.AppendTag(request, 4, protowire.BytesType), meta)
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(context.Background(), "authorization", "Bearer "+f.token), 20*time.Second)
	defer cancel()
	var reply []byte
	if err := conn.Invoke(ctx, method, &request, &reply, grpc.ForceCodec(raw{})); err != nil {
		say(map[string]any{"code": status.Code(err).String(), "message": status.Convert(err).Message()})
		return nil
	}
	chain, _ := field(reply, 1)
	if len(chain) < 2 {
		return fmt.Errorf("the reply holds %d certificates", len(chain))
	}
	var leaves []byte
	for _, certificate := range chain[:len(chain)-1] {
		leaves = append(leaves, certificate...)
	}
	say(map[string]any{"code": "OK", "certificates": len(chain)})
	return errors.Join(os.WriteFile(f.out+".crt", leaves, 0o600), os.WriteFile(f.out+".key", []byte(key), 0o600),
		os.WriteFile(f.out+".root", chain[len(chain)-1], 0o600))
}

// caServer issues what is asked under a root of its own (written to PREFIX.root), for as long as it runs; a negative
// life makes a certificate that has expired. With -mode deny it refuses everybody.
func caServer(f *flags) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	now := time.Now()
	domain, err := url.Parse(f.id)
	if err != nil {
		return err
	}
	root := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour), IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, URIs: []*url.URL{domain}}
	rootDER, err := x509.CreateCertificate(rand.Reader, root, root, &key.PublicKey, key)
	if err != nil {
		return err
	}
	rootPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: rootDER})
	if err := os.WriteFile(f.out+".root", rootPEM, 0o600); err != nil {
		return err
	}
	server := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: root.NotBefore, NotAfter: root.NotAfter, DNSNames: []string{f.host},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	serverDER, err := x509.CreateCertificate(rand.Reader, server, root, &key.PublicKey, key)
	if err != nil {
		return err
	}
	issue := func(request []byte) ([]byte, error) {
		csrs, _ := field(request, 1)
		metas, _ := field(request, 4)
		_, seconds := field(request, 3)
		var asked structpb.Struct
		if len(csrs) != 1 || len(metas) != 1 || proto.Unmarshal(metas[0], &asked) != nil {
			return nil, status.Error(codes.InvalidArgument, "csr or metadata is missing")
		}
		block, _ := pem.Decode(csrs[0])
		if block == nil {
			return nil, status.Error(codes.InvalidArgument, "csr is no PEM")
		}
		csr, err := x509.ParseCertificateRequest(block.Bytes)
		if err != nil || csr.CheckSignature() != nil {
			return nil, status.Error(codes.InvalidArgument, "csr is not understood")
		}
		id, err := url.Parse(asked.Fields["ImpersonatedIdentity"].GetStringValue())
		if err != nil {
			return nil, status.Error(codes.InvalidArgument, "identity is not understood")
		}
		serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
		if err != nil {
			return nil, err
		}
		say(map[string]any{"issued": id.String(), "seconds": int64(seconds)})
		leaf := &x509.Certificate{SerialNumber: serial, NotBefore: now.Add(-5 * time.Minute), NotAfter: time.Now().Add(time.Duration(min(int64(seconds), f.seconds)) * time.Second),
			URIs: []*url.URL{id}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true}
		der, err := x509.CreateCertificate(rand.Reader, leaf, root, csr.PublicKey, key)
		if err != nil {
			return nil, err
		}
		reply := protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
		return protowire.AppendBytes(protowire.AppendTag(reply, 1, protowire.BytesType), rootPEM), nil
	}
	handler := func(_ any, stream grpc.ServerStream) error {
		name, _ := grpc.MethodFromServerStream(stream)
		if name != method {
			return status.Error(codes.Unimplemented, name)
		}
		meta, _ := metadata.FromIncomingContext(stream.Context())
		if got := meta.Get("authorization"); f.mode == "deny" || (f.token != "" && (len(got) != 1 || got[0] != "Bearer "+f.token)) {
			return status.Error(codes.Unauthenticated, "the token is not known")
		}
		var request []byte
		if err := stream.RecvMsg(&request); err != nil {
			return err
		}
		reply, err := issue(request)
		if err != nil {
			return err
		}
		return stream.SendMsg(&reply)
	}
	listener, err := net.Listen("tcp", f.addr)
	if err != nil {
		return err
	}
	say(map[string]any{"listening": listener.Addr().String()})
	certificate := tls.Certificate{Certificate: [][]byte{serverDER}, PrivateKey: key}
	return grpc.NewServer(grpc.ForceServerCodec(raw{}), grpc.UnknownServiceHandler(handler), grpc.Creds(credentials.NewTLS(
		&tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS13}))).Serve(listener)
}
