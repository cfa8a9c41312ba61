#!/usr/bin/env python3
"""Measures the programs side by side with what they are to be compared with.

usage: run.py PROGRAMS-FOLDER TOOLS-FOLDER [--rounds N] [--sizes N,N,N] [--check]

Called by scripts/bench, which builds both folders. Prints the tables of the
README. --check: exit 3 unless the figures are within what the project promises.
"""
import argparse
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
# No other agent has this name, so nothing here meets the machine's own agent.
FAMILY = "voice_guard_bench_%d" % os.getpid()
SCRIPT = FAMILY + ".py"
# A check of this one finds nothing: nobody runs it.
ABSENT = "voice_guard_bench_absent_%d" % os.getpid()
# Padding, so that the crowd's command lines have the length of usual ones.
WORDS = ["--config=/etc/some/daemon/settings.conf", "--listen", "127.0.0.1:8080", "--workers=4"]

SAFE = "`check-agent-running`, nothing runs: one pass"
RUNNING = "`check-agent-running`, agent runs: through the PID file"
REFUSED = "`start-voice-agent-safe`, refused"
FLOOR = "C program that only reads every `/proc/N/cmdline`"
EMPTY = "C program that does nothing"
EMPTY_STATIC = "the same, linked statically"
PGREP = "`pgrep -f`"
SSD_PID = "`start-stop-daemon --status --pidfile`"
SSD_PASS = "`start-stop-daemon --status --name`: one pass"
PS_GREP = "the old way: `ps aux \\| grep`"


def fail(reason):
    sys.exit(f"bench: {reason}")


class Bench:
    """A project folder of its own with the bench agent, and its settings."""

    def __init__(self, programs, tools, folder):
        self.programs, self.tools, self.folder = programs, tools, folder
        shutil.copy(HERE / "agent.py", folder / SCRIPT)
        self.stamps = folder / "stamps"
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith("VOICE_GUARD_")
        }
        self.environment.update(
            VOICE_GUARD_PROJECT_DIR=str(folder),
            VOICE_GUARD_AGENT_SCRIPT=SCRIPT,
            # The interpreter itself: a shim in front of it would be measured too.
            VOICE_GUARD_PYTHON=sys.executable,
            VOICE_GUARD_PID_FILE=str(folder / "agent.pid"),
            VOICE_GUARD_LOCK_FILE=str(folder / "agent.lock"),
            VOICE_GUARD_LOG_FILE=str(folder / "agent.log"),
            BENCH_STAMPS=str(self.stamps),
        )

    def program(self, name, *expected, **environment):
        """Runs one program; gives the time of its return."""
        done = subprocess.run(
            [self.programs / name],
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        returned = time.monotonic_ns()
        if done.returncode not in expected:
            fail(f"{name} ended with {done.returncode}:\n{done.stdout.decode(errors='replace')}")
        return returned

    def since_last_stamp(self, returned):
        """Milliseconds from the agent's last stamp."""
        last = max(int(line) for line in self.stamps.read_text().split())
        os.truncate(self.stamps, 0)  # the agent goes on appending
        return (returned - last) / 1e6

    def side_by_side(self, rounds):
        """Medians in milliseconds, by name."""
        absent = ["--agent-script", ABSENT + ".py", "--pid-file", ABSENT + ".pid", "--lock-file", ABSENT + ".lock"]
        check = str(self.programs / "check-agent-running")
        commands = [
            (EMPTY, 0, [str(self.tools / "empty")]),
            (EMPTY_STATIC, 0, [str(self.tools / "empty-static")]),
            (RUNNING, 1, [check]),
            (REFUSED, 1, [str(self.programs / "start-voice-agent-safe")]),
            (SAFE, 0, [check, *absent]),
            (FLOOR, 0, [str(self.tools / "floor")]),
            (PGREP, 0, ["pgrep", "-f", SCRIPT + " dev"]),
            (PS_GREP, 0, ["sh", "-c", f"ps aux | grep '{SCRIPT} dev' | grep -vq grep"]),
        ]
        if shutil.which("start-stop-daemon"):
            pid_file = str(self.folder / "agent.pid")
            commands += [
                (SSD_PID, 0, ["start-stop-daemon", "--status", "--pidfile", pid_file]),
                (SSD_PASS, 3, ["start-stop-daemon", "--status", "--name", "bench_absent"]),
            ]
        lines = ["\t".join([name, str(status), *argv]) for name, status, argv in commands]
        done = subprocess.run(
            [self.tools / "side_by_side", str(rounds)],
            input="\n".join(lines) + "\n",
            env=self.environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        if done.returncode != 0:
            fail("a command did not end as it must; see above")
        rows = (line.split("\t") for line in done.stdout.splitlines())
        return {name: float(median) / 1e3 for name, median, *_ in rows}

    def latencies(self, rounds):
        """Milliseconds between what a program waits for and its return, by name."""
        found = {"ready": [], "death": [], "stopped": []}
        for _ in range(rounds):
            found["ready"].append(self.since_last_stamp(self.program("start-voice-agent-safe", 0)))
            found["stopped"].append(self.since_last_stamp(self.program("stop-voice-agent-safe", 0)))
            dead = self.program("start-voice-agent-safe", 1, BENCH_DIE="1")
            found["death"].append(self.since_last_stamp(dead))
        return found


class Crowd:
    """Idle processes that end with this program, however it ends."""

    def __init__(self, tools, size):
        self.command, self.size = tools / "crowd", size

    def __enter__(self):
        self.process = subprocess.Popen(
            [self.command, str(self.size), *WORDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        if self.process.stdout.readline() != b"ready\n":
            fail(f"no {self.size} processes; the limit here may be lower (ulimit -u, pids cgroup)")
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def figure(milliseconds):
    """Three digits: 0.57, 1.23, 43.1, 375."""
    return f"{milliseconds:.2f}" if milliseconds < 10 else f"{milliseconds:.1f}" if milliseconds < 100 else f"{milliseconds:.0f}"


def report(sizes, medians, latencies, rounds):
    print(f"Measured with `scripts/bench` on {os.cpu_count()} cores, Linux {os.uname().release.split('-')[0]}; "
          f"milliseconds, medians of {rounds} rounds in which all take their turn, "
          "from before the spawn to after the wait.")
    print()
    head = ["idle processes on the machine"] + [f"{size:,}" for size in sizes]
    names = [RUNNING, REFUSED, EMPTY, EMPTY_STATIC, SSD_PID, SAFE, FLOOR, PGREP, SSD_PASS, PS_GREP]
    rows = [[name] + [figure(medians[size][name]) for size in sizes] for name in names if name in medians[sizes[0]]]
    rows.append(["one pass ÷ C program that only reads"] + [f"{medians[size][SAFE] / medians[size][FLOOR]:.2f} ×" for size in sizes])
    print(table(head, rows))
    print()
    words = {
        "ready": "start returns after the readiness line",
        "death": "start returns after the agent's death",
        "stopped": "stop returns after the last death",
    }
    head = ["waiting, median (longest)"] + [f"{size:,}" for size in sizes]
    print(table(head, [
        [words[what]] + [
            f"{figure(statistics.median(latencies[size][what]))} ({figure(max(latencies[size][what]))})" for size in sizes
        ]
        for what in words
    ]))


def check(sizes, medians, latencies):
    """What the project promises; gives the promises that are not kept."""
    broken = []

    def promise(what, value, limit, unit):
        if value > limit:
            broken.append(f"{what}: {value:.2f} {unit}, promised {limit:.2f}")

    few, many = min(sizes), max(sizes)
    for size in sizes:
        if size >= 1000:
            promise(f"one pass over {size} processes", medians[size][SAFE] / medians[size][FLOOR], 1.3, "× the floor")
        for name in RUNNING, REFUSED:
            promise(f"{name}, {size} processes", medians[size][name] / medians[size][EMPTY], 5, "× an empty program")
        for what, times in latencies[size].items():
            # Beyond, the last look at all processes takes longer than that.
            if size <= 1000:
                promise(f"{what}, {size} processes", statistics.median(times), 20, "ms")
    for name in RUNNING, REFUSED:
        # The same cost whatever runs, give or take a disturbance.
        promise(f"{name}, {many} against {few} processes", medians[many][name] / medians[few][name], 1.5, "×")
    return broken


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("programs", type=pathlib.Path)
    parser.add_argument("tools", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--sizes", default="100,1000,5000")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    sizes = [int(size) for size in options.sizes.split(",")]

    medians, latencies = {}, {}
    with tempfile.TemporaryDirectory(prefix="voice-guard-bench-") as folder:
        bench = Bench(options.programs, options.tools, pathlib.Path(folder))
        try:
            for size in sizes:
                with Crowd(options.tools, size):
                    print(f"bench: {size} idle processes ...", file=sys.stderr)
                    latencies[size] = bench.latencies(max(3, options.rounds // 5))
                    bench.program("start-voice-agent-safe", 0)
                    medians[size] = bench.side_by_side(options.rounds)
                    bench.program("stop-voice-agent-safe", 0)
        finally:
            bench.program("stop-voice-agent-safe", 0, 1)
            for family in FAMILY, ABSENT:
                pathlib.Path(f"/tmp/.{family}.guard").unlink(missing_ok=True)
    report(sizes, medians, latencies, options.rounds)
    if options.check:
        broken = check(sizes, medians, latencies)
        if broken:
            print("bench: promised, and not kept in this run:\n  " + "\n  ".join(broken), file=sys.stderr)
            sys.exit(3)


if __name__ == "__main__":
    main()
