"""Servers of raw bytes: a vendor, and a proxy in front of it."""

import contextlib
import itertools
import socket
import ssl
import threading
from socketserver import ThreadingTCPServer

import trustme


def http(status, body=b"", *headers):
    """Return an answer; the headers are lines."""
    head = "".join(f"{line}\r\n" for line in headers)
    return f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n{head}\r\n".encode() + body


OK = http(202, b'{"ok":true,"count":1}')


def closing(raw):
    """Return an answer after which the server ends the connection."""

    def answer(sock):
        sock.sendall(raw)
        return True

    return answer


class Server(ThreadingTCPServer):
    """Listens on a free port of loopback."""

    daemon_threads = True
    scheme = "http"

    def __init__(self, tls=None):
        super().__init__(("127.0.0.1", 0), None)
        self.tls = tls
        self.port = self.server_address[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def finish_request(self, sock, _):
        with contextlib.suppress(OSError):
            if self.tls:
                with self.tls.wrap_socket(sock, server_side=True) as secured:
                    self.serve(secured)
            else:
                self.serve(sock)

    def stop(self):
        self.shutdown()
        self.server_close()


class Vendor(Server):
    """Answers the first request with the first answer, and so on; the last one is repeated.

    An answer is bytes, or a function of the socket that returns whether to end the connection.
    """

    def __init__(self, *answers, tls=None):
        self.answers = list(answers)
        # For each request: the number of its connection, its head and its body.
        self.requests = []
        self._numbers = itertools.count()
        super().__init__(tls)

    @property
    def connections(self):
        return [number for number, _, _ in self.requests]

    def serve(self, sock):
        number, stream = next(self._numbers), sock.makefile("rb")
        while request := read_request(stream):
            self.requests.append((number, *request))
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            if not callable(answer):
                sock.sendall(answer)
            elif answer(sock):
                return


def read_request(stream):
    """Return head and body of the next request, or None at the end."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        line = stream.readline()
        if not line:
            return None
        head += line
    lengths = [int(line[15:]) for line in head.split(b"\r\n") if line[:15] == b"Content-Length:"]
    return head, stream.read(*lengths) if lengths else b""


class Proxy(Server):
    """Answers CONNECT with these bytes, or a function of the socket, and then joins the target."""

    def __init__(self, target=None, answer=b"HTTP/1.1 200 Connected\r\n\r\n", tls=None):
        self.target, self.answer = target, answer
        self.heads = []
        super().__init__(tls)

    def serve(self, sock):
        head = b""
        while not head.endswith(b"\r\n\r\n") and (byte := sock.recv(1)):
            head += byte
        self.heads.append(head)
        if callable(self.answer):
            self.answer(sock)
            return
        sock.sendall(self.answer)
        if self.target:
            with socket.create_connection(("127.0.0.1", self.target.port)) as other:
                back = threading.Thread(target=pump, args=(other, sock), daemon=True)
                back.start()
                pump(sock, other)
                back.join(5)


def pump(source, sink):
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


class Authority:
    """Certificates for `vendor.example` and 127.0.0.1, and the PEM file that trusts them."""

    def __init__(self, folder):
        self._authority = trustme.CA()
        self.file = folder / "authority.pem"
        self._authority.cert_pem.write_to_path(self.file)

    def server(self, *names):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._authority.issue_cert(*names).configure_cert(context)
        return context
