package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// hboneClient opens CONNECT streams to an agent's inbound side with 64 KiB windows, sends bytes, and checks what an
// echo server behind it sends back. Modes: echo, half-close (send all, close, then read), reset (send, then RST_STREAM),
// status (only the CONNECT).
func hboneClient(f *flags) error {
	svid, bundle, err := f.load()
	if err != nil {
		return err
	}
	config := tlsconfig.MTLSClientConfig(svid, bundle, tlsconfig.AuthorizeID(spiffeid.RequireFromString(f.expect)))
	config.NextProtos, config.MinVersion = []string{"h2"}, tls.VersionTLS13
	conn, err := tls.Dial("tcp", f.addr, config)
	if err != nil {
		return fmt.Errorf("tls: %w", err)
	}
	outer := &http.Transport{HTTP2: &http.HTTP2Config{MaxReceiveBufferPerStream: 64 << 10, MaxReceiveBufferPerConnection: 64 << 10}}
	transport, err := http2.ConfigureTransports(outer)
	if err != nil {
		return err
	}
	client, err := transport.NewClientConn(conn)
	if err != nil {
		return err
	}
	var wait sync.WaitGroup
	failed := make(chan error, f.streams)
	for range f.streams {
		wait.Go(func() { failed <- f.stream(client) })
	}
	wait.Wait()
	close(failed)
	for err := range failed {
		if err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	// All that was sent has been read when a PING behind it is answered.
	return errors.Join(client.Ping(ctx), client.Shutdown(ctx))
}

func (f *flags) stream(client *http2.ClientConn) error {
	body, send := io.Pipe()
	// Without a context: its end, like the body's, would reset a stream that is still sent on. The caller bounds it all.
	request := &http.Request{Method: http.MethodConnect, URL: &url.URL{Host: f.authority}, Host: f.authority,
		Header: http.Header{"Forwarded": {"for=\"192.0.2.7:4000\""}}, Body: body, ContentLength: -1}
	reply, err := client.RoundTrip(request)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	// The reply's body is read to its end and never closed: closing would reset a stream that is still sent on.
	if reply.StatusCode != http.StatusOK || f.mode == "status" {
		say(map[string]any{"status": reply.StatusCode, "reason": reply.Header.Get("adit-reason")})
		send.Close()
		return nil
	}
	sent := bytes.Repeat([]byte("0123456789abcdef"), f.bytes/16)
	wrote := make(chan struct{})
	go func() {
		_, _ = send.Write(sent)
		if f.mode == "reset" {
			send.CloseWithError(errors.New("reset on purpose")) // a body that fails is RST_STREAM
		} else {
			send.Close()
		}
		close(wrote)
	}()
	if f.mode == "half-close" {
		<-wrote
	}
	sum := sha256.New()
	received, err := io.Copy(sum, reply.Body)
	if f.mode == "reset" {
		say(map[string]any{"status": 200, "reset": err != nil})
		return nil
	}
	if err != nil {
		return fmt.Errorf("read: %w", err)
	}
	same := bytes.Equal(sum.Sum(nil), func() []byte { s := sha256.Sum256(sent); return s[:] }())
	say(map[string]any{"status": 200, "received": received, "same": same})
	return nil
}

// hboneServer is the other end of an agent's outbound side. Modes: echo; a number (answer every CONNECT with it);
// goaway (GOAWAY before the first stream is taken, on every other connection); rst (REFUSED_STREAM to every stream, on
// every other connection); reset (200, then RST_STREAM after the first bytes).
func hboneServer(f *flags) error {
	svid, bundle, err := f.load()
	if err != nil {
		return err
	}
	config := tlsconfig.MTLSServerConfig(svid, bundle, tlsconfig.AuthorizeAny())
	config.NextProtos, config.MinVersion = []string{"h2"}, tls.VersionTLS13
	listener, err := tls.Listen("tcp", f.addr, config)
	if err != nil {
		return err
	}
	say(map[string]any{"listening": listener.Addr().String()})
	for n := 0; ; n++ {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		if (n%2 == 0 && (f.mode == "goaway" || f.mode == "rst")) || f.mode == "reset" {
			go f.refuse(conn)
			continue
		}
		go f.serve(conn)
	}
}

func (f *flags) serve(conn net.Conn) {
	// ServeConn judges the TLS version, which is known after the handshake.
	if err := conn.(*tls.Conn).Handshake(); err != nil {
		say(map[string]any{"handshake": err.Error()})
		conn.Close()
		return
	}
	server := &http2.Server{MaxUploadBufferPerStream: 64 << 10, MaxUploadBufferPerConnection: 64 << 10}
	server.ServeConn(conn, &http2.ServeConnOpts{Handler: http.HandlerFunc(f.answer)})
}

func (f *flags) answer(w http.ResponseWriter, r *http.Request) {
	say(map[string]any{"method": r.Method, "authority": r.Host, "forwarded": r.Header.Get("forwarded"),
		"traceparent": r.Header.Get("traceparent"), "scheme": r.URL.Scheme, "path": r.URL.Path})
	if status, err := strconv.Atoi(f.mode); err == nil {
		w.Header().Set("adit-reason", `policy_denied; policy="other/mesh"; rule=0`)
		w.WriteHeader(status)
		return
	}
	w.WriteHeader(http.StatusOK)
	flusher := http.NewResponseController(w)
	_ = flusher.Flush()
	buffer := make([]byte, 16<<10)
	for {
		n, err := r.Body.Read(buffer)
		if n > 0 {
			if _, err := w.Write(buffer[:n]); err != nil {
				return
			}
			_ = flusher.Flush()
		}
		if err != nil {
			return
		}
	}
}

// refuse speaks raw frames, to do what a well-behaved server does not.
func (f *flags) refuse(conn net.Conn) {
	defer conn.Close()
	preface := make([]byte, len(http2.ClientPreface))
	if _, err := io.ReadFull(conn, preface); err != nil {
		return
	}
	framer := http2.NewFramer(conn, conn)
	_ = framer.WriteSettings()
	for {
		frame, err := framer.ReadFrame()
		if err != nil {
			return
		}
		switch frame := frame.(type) {
		case *http2.SettingsFrame:
			if !frame.IsAck() {
				_ = framer.WriteSettingsAck()
			}
		case *http2.PingFrame:
			if !frame.IsAck() {
				_ = framer.WritePing(true, frame.Data)
			}
		case *http2.HeadersFrame:
			say(map[string]any{"stream": frame.StreamID, "mode": f.mode})
			switch {
			case f.mode == "goaway":
				_ = framer.WriteGoAway(0, http2.ErrCodeNo, nil)
				return
			case f.mode == "rst":
				_ = framer.WriteRSTStream(frame.StreamID, http2.ErrCodeRefusedStream)
			default:
				var block bytes.Buffer
				_ = hpack.NewEncoder(&block).WriteField(hpack.HeaderField{Name: ":status", Value: "200"})
				_ = framer.WriteHeaders(http2.HeadersFrameParam{StreamID: frame.StreamID, BlockFragment: block.Bytes(), EndHeaders: true})
			}
		case *http2.DataFrame:
			if f.mode == "reset" {
				_ = framer.WriteRSTStream(frame.StreamID, http2.ErrCodeCancel)
				continue
			}
			_ = framer.WriteData(frame.StreamID, frame.StreamEnded(), frame.Data())
			if n := uint32(len(frame.Data())); n > 0 {
				_ = errors.Join(framer.WriteWindowUpdate(0, n), framer.WriteWindowUpdate(frame.StreamID, n))
			}
		}
	}
}
