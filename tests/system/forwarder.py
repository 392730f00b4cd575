"""A forwarder of TCP connections whose target can be changed, as in a failover."""

import contextlib
import socket
import threading


class Forwarder:
    """Each new connection goes to the present `target`; earlier ones stay where they are."""

    def __init__(self, target):
        self.target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._sockets = []
        self._threads = []
        self._start(self._accept)

    def end(self):
        for sock in (self._listener, *self._sockets):
            _shut_down(sock)
        for thread in list(self._threads):
            thread.join(10)
        for sock in (self._listener, *self._sockets):
            sock.close()

    def _start(self, run, *args):
        thread = threading.Thread(target=run, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self):
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.append(near)
            try:
                far = socket.create_connection(("127.0.0.1", self.target), 5)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            self._sockets.append(far)
            for source, sink in ((near, far), (far, near)):
                source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._start(_pass_on, source, sink)


def _pass_on(source, sink):
    with contextlib.suppress(OSError):
        while chunk := source.recv(1 << 16):
            sink.sendall(chunk)
    for sock in (source, sink):
        _shut_down(sock)


def _shut_down(sock):
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
