"""An agent for the benchmarks: writes down when it gets ready, and when it dies.

BENCH_STAMPS names the file for its CLOCK_MONOTONIC times, in nanoseconds.
Each is taken and written just before what it stands for, so that the latency
worked out from it is rather too long than too short. BENCH_DIE: die instead of
getting ready.
"""
import os
import signal
import sys
import time

STAMPS = os.open(os.environ["BENCH_STAMPS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def stamp():
    os.write(STAMPS, b"%d\n" % time.monotonic_ns())


def leave(signum, frame):
    stamp()
    os._exit(0)


if __name__ == "__main__":
    if "BENCH_DIE" in os.environ:
        stamp()
        os._exit(3)
    signal.signal(signal.SIGTERM, leave)
    # A real agent's worker is a child; both must be dead before a stop returns.
    parent = os.fork() != 0
    if parent:
        stamp()
        os.write(1, b"INFO livekit.agents - registered worker\n")
    while True:
        signal.pause()
