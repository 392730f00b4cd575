"""TLS in front of a server that speaks none: the embedded one is built without it.

A connection that begins in plain text is passed on as it is, so that sentinels and
replicas use the port that clients use. Run as a program: PORT TARGET CERTIFICATE CA.
"""

import asyncio
import contextlib
import socket
import ssl
import sys

_HANDSHAKE = b"\x16"


def main():
    port, target, certificate, authority = sys.argv[1:]
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=authority)
    # Only for clients that have a certificate, as many who run TLS want it.
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(certificate)
    with socket.create_server(("127.0.0.1", int(port)), backlog=64) as listener:
        listener.setblocking(False)
        asyncio.run(serve(listener, int(target), context))


async def serve(listener, target, context):
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as connections:
        while True:
            near, _ = await loop.sock_accept(listener)
            connections.create_task(pass_on(near, target, context))


async def pass_on(sock, target, context):
    with contextlib.suppress(OSError):
        near_reader, near_writer = await opened(sock, context)
        with contextlib.closing(near_writer):
            reader, writer = await asyncio.open_connection("127.0.0.1", target)
            with contextlib.closing(writer):
                ways = (copy(near_reader, writer), copy(reader, near_writer))
                # Whichever side is closed first, the other is too.
                await asyncio.wait(
                    [asyncio.create_task(way) for way in ways], return_when=asyncio.FIRST_COMPLETED
                )


async def opened(sock, context):
    loop = asyncio.get_running_loop()
    is_secured = await first_byte(sock) == _HANDSHAKE
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await loop.connect_accepted_socket(
        lambda: protocol, sock, ssl=context if is_secured else None
    )
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


async def first_byte(sock):
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(sock, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(sock)
    return sock.recv(1, socket.MSG_PEEK)


async def copy(reader, writer):
    with contextlib.suppress(OSError):
        while heard := await reader.read(1 << 16):
            writer.write(heard)
            await writer.drain()


if __name__ == "__main__":
    main()
