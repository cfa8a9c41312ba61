"""The demo agent of voice-guard: plain Python that behaves like a LiveKit voice agent.

Like `python letta_voice_agent.py dev` with livekit-agents 1.0 to 1.5, the
process that is started only watches; a child that it spawns is the worker and
answers the calls. Kill the first one by hand, and the worker lives on: an
orphan, which is how a machine ends up with two agents. It connects to nothing.
"""
import multiprocessing
import signal
import sys
import time


def log(message):
    now = time.strftime("%H:%M:%S")
    print(f"{now} INFO     livekit.agents     {message}", flush=True)


def worker():
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that watches
    log("registered worker (demo: connected to nothing)")
    while True:
        signal.pause()


def main():
    if sys.argv[1:] not in (["dev"], ["start"]):
        sys.exit(f"usage: {sys.argv[0]} dev|start")
    log("starting worker")
    process = multiprocessing.get_context("spawn").Process(target=worker)
    process.start()
    process.join()


if __name__ == "__main__":
    main()
