"""A part of a voice system for the tests: plain Python, no packages.

    part.py PORT [OPTION...]

It waits `delay=SECONDS`, then listens on PORT and accepts connections, as a web
server that answers `status=CODE` (default 200) after `slow=SECONDS`. Other
options: `never` (lives, but never listens), `die=SECONDS` (ends with exit status
3 so long after it listens), `early=CODE` (says why and exits at once), `away`
(forks itself into the background, as a daemon does, the first process going
`linger=SECONDS` later), `deaf` (ignores TERM),
`log` (says "part is up" instead of listening). Each start is a line in
`starts=FILE`.
"""
import os
import signal
import socket
import sys
import threading
import time

OPTIONS = dict((word.split("=", 1) + [""])[:2] for word in sys.argv[2:])


def seconds(name):
    return float(OPTIONS.get(name) or 0)


def answer(connection):
    with connection:
        connection.recv(4096)
        time.sleep(seconds("slow"))
        code = OPTIONS.get("status") or "200"
        connection.sendall(("HTTP/1.0 %s OK\r\n\r\nhello\n" % code).encode())


def main():
    if "starts" in OPTIONS:
        with open(OPTIONS["starts"], "a") as starts:
            starts.write("%d %.3f\n" % (os.getpid(), time.time()))
    if "early" in OPTIONS:
        print("cannot go on: no such thing", flush=True)
        return int(OPTIONS["early"])
    if "away" in OPTIONS:
        if os.fork():
            time.sleep(seconds("linger"))
            os._exit(0)
        os.setsid()
    if "deaf" in OPTIONS:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("part begins", flush=True)
    time.sleep(seconds("delay"))
    if "never" in OPTIONS:
        while True:
            signal.pause()
    if "log" in OPTIONS:
        print("part is up", flush=True)
        while True:
            signal.pause()
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("127.0.0.1", int(sys.argv[1])))
    server.listen(16)
    if "die" in OPTIONS:
        def end():
            time.sleep(seconds("die"))
            print("dying as told", flush=True)
            os._exit(3)
        threading.Thread(target=end, daemon=True).start()
    while True:
        connection, _ = server.accept()
        threading.Thread(target=answer, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
