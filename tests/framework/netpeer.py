"""A program that lives in a network namespace and does as it is told: one JSON object a line in, one out.

Started by framework.netlab under `unshare --net`, with the bare interpreter: standard library only.
"""

import json
import socket
import sys
import threading

TIMEOUT_S = 1.5


def family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def serve_tcp(address, port):
    """Tells every caller the address it sees of it."""
    server = socket.create_server((address, port), family=family(address))

    def loop():
        while True:
            connection, peer = server.accept()
            connection.sendall(peer[0].encode())
            connection.close()

    threading.Thread(target=loop, daemon=True).start()
    return True


def serve_udp(address, port):
    server = socket.socket(family(address), socket.SOCK_DGRAM)
    server.bind((address, port))

    def loop():
        while True:
            _, peer = server.recvfrom(2048)
            server.sendto(peer[0].encode(), peer)

    threading.Thread(target=loop, daemon=True).start()
    return True


def tcp(address, port, source=None):
    """What the server says; an OSError when it can't be reached."""
    at = (source, 0) if source else None
    with socket.create_connection((address, port), timeout=TIMEOUT_S, source_address=at) as connection:
        return connection.recv(2048).decode()


def udp(address, port, timeout_s=TIMEOUT_S):
    with socket.socket(family(address), socket.SOCK_DGRAM) as client:
        client.settimeout(timeout_s)
        client.connect((address, port))
        client.send(b"?")
        return client.recv(2048).decode()


def query(server, packet, tcp=False):
    """One DNS message (hex) to a server on port 53; its answer (hex)."""
    data = bytes.fromhex(packet)
    kind = socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM
    with socket.socket(family(server), kind) as client:
        client.settimeout(TIMEOUT_S)
        client.connect((server, 53))
        if not tcp:
            client.send(data)
            return client.recv(65535).hex()
        client.sendall(len(data).to_bytes(2, "big") + data)
        answer = b""
        while len(answer) < 2 or len(answer) < 2 + int.from_bytes(answer[:2], "big"):
            chunk = client.recv(65535)
            if not chunk:
                break
            answer += chunk
        return answer[2:].hex()


def serve_dns(address, names):
    """Answers from `names` {name: [address, seconds]}; others do not exist. Names with "big" need TCP."""

    def respond(query, tcp):
        labels, offset = [], 12
        while query[offset]:
            labels.append(query[offset + 1 : offset + 1 + query[offset]].decode().lower())
            offset += query[offset] + 1
        kind = int.from_bytes(query[offset + 1 : offset + 3], "big")
        question = query[12 : offset + 5]
        name = ".".join(labels)
        text, ttl = names.get(name, ("", 0))
        if "big" in name and not tcp:
            return query[:2] + b"\x83\x80\0\1\0\0\0\0\0\0" + question
        packed = socket.inet_pton(family(text), text) if text else b""
        if (kind, len(packed)) not in ((1, 4), (28, 16)):
            code = b"\x80" if text else b"\x83"
            return query[:2] + b"\x81" + code + b"\0\1\0\0\0\0\0\0" + question
        record = b"\xc0\x0c" + question[-4:] + ttl.to_bytes(4, "big") + len(packed).to_bytes(2, "big") + packed
        return query[:2] + b"\x81\x80\0\1\0\1\0\0\0\0" + question + record

    datagrams = socket.socket(family(address), socket.SOCK_DGRAM)
    datagrams.bind((address, 53))
    streams = socket.create_server((address, 53), family=family(address))

    def udp_loop():
        while True:
            query, peer = datagrams.recvfrom(4096)
            datagrams.sendto(respond(query, False), peer)

    def tcp_loop():
        while True:
            connection, _ = streams.accept()
            length = int.from_bytes(connection.recv(2), "big")
            answer = respond(connection.recv(length), True)
            connection.sendall(len(answer).to_bytes(2, "big") + answer)
            connection.close()

    for loop in (udp_loop, tcp_loop):
        threading.Thread(target=loop, daemon=True).start()
    return True


def raw(interface, frame):
    """Sends one Ethernet frame (hex)."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.bind((interface, 0))
        return sender.send(bytes.fromhex(frame))


CALLS = {f.__name__: f for f in (serve_tcp, serve_udp, tcp, udp, query, serve_dns, raw)}


def main():
    print("ready", flush=True)
    for line in sys.stdin:
        name, arguments = json.loads(line)
        try:
            answer = {"ok": CALLS[name](**arguments)}
        except OSError as error:
            answer = {"error": type(error).__name__, "errno": error.errno or 0, "text": str(error)}
        print(json.dumps(answer), flush=True)


main()
