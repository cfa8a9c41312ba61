#!/usr/bin/env python3
"""Measures a start of the reference stack in stand-in form.

usage: system.py PROGRAMS-FOLDER TOOLS-FOLDER [--rounds N] [--sizes N,N] [--check]

The parts of examples/letta/voice-system.toml with the same needs: six companions,
each ready half a second after it was started (benches/part.c), a chain of three
of them before or behind the agent. Called by scripts/bench. --check: exit 3
unless a start takes less than 2 s from nothing and less than 0.2 s when all runs.
"""
import argparse
import json
import os
import pathlib
import select
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

from run import Crowd, fail, table

HERE = pathlib.Path(__file__).resolve().parent
FAMILY = "voice_guard_bench_%d" % os.getpid()

NOTHING = "from nothing"
ALL = "all runs"
REPLACED = "all runs, and the four `fresh` ones are replaced"
STATUS = "`--status`, all runs"
STOP = "stopped, all of it"

CONFIGURATION = """
[agent]
needs = ["livekit", "letta"]

[[companion]]
name = "postgresql"
check = ["{part}", "ask", "{postgresql}"]
start = ["{part}", "away", "0.5", "{postgresql}"]

[[companion]]
name = "letta"
command = ["{part}", "0.5", "{letta}"]
ready = {{ http = "http://localhost:{letta}/" }}
needs = ["postgresql"]

[[companion]]
name = "livekit"
command = ["./livekit-server", "0.5", "{livekit}"]
folder = "livekit"
ready = {{ port = {livekit} }}
on_start = "{policy}"
clean = {{ folders = ["data"], log = true }}

[[companion]]
name = "room-health-monitor"
command = ["{part}", "0.5", "0"]
ready = {{ alive_seconds = 0.5 }}
on_start = "{policy}"
on_failure = "warn"
needs = ["livekit", "agent"]

[[companion]]
name = "cors-proxy"
command = ["{part}", "0.5", "{cors}"]
ready = {{ port = {cors} }}
on_start = "{policy}"
needs = ["letta"]

[[companion]]
name = "demo"
command = ["{part}", "0.5", "{{port}}"]
folder = "livekit"
ports = [{demo}, {demo_too}]
ready = {{ port = "{{port}}" }}
on_start = "{policy}"
"""


def free_ports(*names):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in names]
    ports = {name: one.getsockname()[1] for name, one in zip(names, sockets)}
    for one in sockets:
        one.close()
    return ports


class System:
    """A project folder with a stand-in of every part."""

    def __init__(self, programs, tools, folder, policy):
        self.programs, self.folder = programs, folder
        (folder / "livekit").mkdir(parents=True)
        (folder / "run").mkdir()
        shutil.copy(HERE / "agent.py", folder / (FAMILY + ".py"))
        shutil.copy(tools / "part", folder / "livekit" / "livekit-server")
        self.ports = free_ports("postgresql", "letta", "livekit", "cors", "demo", "demo_too")
        (folder / "voice-system.toml").write_text(
            CONFIGURATION.format(part=tools / "part", policy=policy, **self.ports)
        )
        self.part = tools / "part"
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith("VOICE_GUARD_")
        }
        self.environment.update(
            XDG_RUNTIME_DIR=str(folder / "run"),
            VOICE_GUARD_PROJECT_DIR=str(folder),
            VOICE_GUARD_AGENT_SCRIPT=FAMILY + ".py",
            VOICE_GUARD_PYTHON=sys.executable,
            VOICE_GUARD_PID_FILE=str(folder / "agent.pid"),
            VOICE_GUARD_LOCK_FILE=str(folder / "agent.lock"),
            VOICE_GUARD_LOG_FILE=str(folder / "agent.log"),
            BENCH_STAMPS=str(folder / "stamps"),
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.run("stop-voice-system", "--all")
        self.end_database()

    def run(self, name, *arguments):
        """Seconds that one run takes, and what it says."""
        begun = time.monotonic()
        done = subprocess.run(
            [self.programs / name, "--json", *arguments],
            env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        )
        took = time.monotonic() - begun
        if done.returncode != 0:
            fail(f"{name} ended with {done.returncode}:\n{done.stdout.decode(errors='replace')}")
        return took, json.loads(done.stdout)

    def end_database(self):
        """The one part that the programs do not own."""
        file = self.folder / f"{self.ports['postgresql']}.pid"
        if file.exists():
            database = os.pidfd_open(int(file.read_text()))
            signal.pidfd_send_signal(database, signal.SIGKILL)
            select.select([database], [], [])
            os.close(database)
            file.unlink()


def measure(programs, tools, folder, rounds):
    """Seconds, by name, for each round."""
    found = {name: [] for name in (NOTHING, ALL, REPLACED, STATUS, STOP)}
    for policy in "reuse", "fresh":
        with System(programs, tools, folder / f"{FAMILY}-{policy}", policy) as system:
            for _ in range(rounds):
                took, said = system.run("start-voice-system")
                states = {part["name"]: part["state"] for part in said["parts"]}
                if len(states) != 7 or set(states.values()) != {"ready"}:
                    fail(f"not everything is ready: {states}")
                again, _ = system.run("start-voice-system")
                if policy == "reuse":
                    found[NOTHING].append(took)
                    found[ALL].append(again)
                    found[STATUS].append(system.run("start-voice-system", "--status")[0])
                    found[STOP].append(system.run("stop-voice-system")[0])
                else:
                    found[REPLACED].append(again)
                    system.run("stop-voice-system")
                system.end_database()
        shutil.rmtree(folder / f"{FAMILY}-{policy}")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("programs", type=pathlib.Path)
    parser.add_argument("tools", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=100, help="a twentieth of them; each takes seconds")
    parser.add_argument("--sizes", default="100,1000,5000", help="those up to 1,000")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    sizes = [size for size in map(int, options.sizes.split(",")) if size <= 1000]
    if not sizes:
        return
    rounds = max(3, options.rounds // 20)
    found = {}
    with tempfile.TemporaryDirectory(prefix="voice-guard-bench-") as folder:
        try:
            for size in sizes:
                with Crowd(options.tools, size):
                    print(f"bench: the reference stack beside {size} idle processes ...", file=sys.stderr)
                    found[size] = measure(options.programs, options.tools, pathlib.Path(folder), rounds)
        finally:
            for guard in pathlib.Path("/tmp").glob(f".*{FAMILY}*.guard"):
                guard.unlink()
    print()
    print(table(
        ["the reference stack in stand-in form, seconds, median (longest)"] + [f"{size:,}" for size in sizes],
        [[name] + [f"{statistics.median(found[size][name]):.3f} ({max(found[size][name]):.3f})" for size in sizes]
         for name in (NOTHING, ALL, REPLACED, STATUS, STOP)],
    ))
    if options.check:
        broken = [
            f"{name}, {size} processes: {statistics.median(found[size][name]):.3f} s, promised {limit}"
            for size in sizes for name, limit in ((NOTHING, 2), (ALL, 0.2))
            if statistics.median(found[size][name]) > limit
        ]
        if broken:
            print("bench: promised, and not kept in this run:\n  " + "\n  ".join(broken), file=sys.stderr)
            sys.exit(3)


if __name__ == "__main__":
    main()
