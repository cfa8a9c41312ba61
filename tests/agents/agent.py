"""A voice agent for the tests: plain Python, no packages, fast to start.

What it does is set by TEST_AGENT_... variables; without any it prints the
readiness line at once and runs until TERM or INT.
"""
import fcntl
import os


def take_overlap_locks():
    """Is another agent running, or a worker of an earlier one?

    The locks are the tests' own; looking at the process table would miss an
    overlap that is over in a moment. Forked children share the agent's lock,
    multiprocessing workers hold a shared one of their own.
    """
    path = os.environ["TEST_AGENT_OVERLAP_LOCK"]
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(lock, 20, 0).decode().strip()
        try:
            with open("/proc/%s/stat" % holder, "rb") as stat:
                seen = stat.read(80).decode(errors="replace")
        except OSError as error:
            seen = str(error)
        append("OVERLAP_LOG", "%d began while %s held the lock: %s" % (os.getpid(), holder, seen))
    else:
        os.ftruncate(lock, 0)
        os.pwrite(lock, b"%d\n" % os.getpid(), 0)
    workers = os.open(path + ".workers", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        os.fchmod(workers, 0o666)  # whatever the umask: other users' agents lock it too
    except PermissionError:
        pass
    try:
        fcntl.flock(workers, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        append("OVERLAP_LOG", "%d began while a worker of another agent lived" % os.getpid())
    os.close(workers)
    return lock


def append(log, line):
    file = os.open(os.environ["TEST_AGENT_" + log], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(file, line.encode() + b"\n")
    os.close(file)


# Very first. (A multiprocessing worker imports this file under another name.)
if __name__ == "__main__":
    overlap_lock = take_overlap_locks()
    append("STARTS_LOG", str(os.getpid()))

import signal  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402

READY = 'registered worker {"id": "AW_test", "url": "ws://localhost:7880"}'


def option(name, default=""):
    return os.environ.get("TEST_AGENT_" + name, default)


def say(line):
    os.write(1, (line + "\n").encode())


def say_ready():
    style = option("OUTPUT", "plain")
    if style == "json":
        say('{"message": "registered worker", "level": "INFO", "name": "livekit.agents", "id": "AW_test"}')
    elif style == "ansi":
        # Colours inside the line, as livekit-agents 1.8 writes it.
        say("2026-11-24 06:17:27,074 - \x1b[32mINFO\x1b[0m \x1b[1mlivekit.agents\x1b[0m - \x1b[36mregistered\x1b[0m worker {\"id\": \"AW_test\"}")
    elif style == "wrapped":
        # Cut at 80 columns, inside the readiness line, with colours, as 1.0 to 1.5 write it.
        say("\x1b[2m06:24:44.116\x1b[0m \x1b[32mINFO    \x1b[0m livekit.agents                               registered")
        say("                                                  worker")
        say('                                                  {"id": "AW_test"}')
    else:
        say("2026-11-24 06:17:27,074 - INFO livekit.agents - " + READY)


def wait_for_death():
    """For children, which handle no signal: they are killed or they ignore it."""
    while True:
        signal.pause()


def heed_signals():
    """Gives a pipe that can be read when a signal has arrived.

    One that arrives just before `signal.pause()` would be handled after the
    next one only.
    """
    heard, hear = os.pipe()
    os.set_blocking(hear, False)
    signal.set_wakeup_fd(hear, warn_on_full_buffer=False)
    return heard


def forked_child(deaf=True, session=False, grandchild=False):
    """Forks a child that lives until it is killed; gives its PID."""
    arrived, arrive = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.set_wakeup_fd(-1)
        os.close(arrived)
        signal.signal(signal.SIGTERM, signal.SIG_IGN if deaf else signal.SIG_DFL)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        if session:
            os.setsid()
        if grandchild and os.fork() == 0:
            os.write(arrive, b"%d\n" % os.getpid())
            os.close(arrive)
            wait_for_death()
        if not grandchild:
            os.write(arrive, b"%d\n" % os.getpid())
        os.close(arrive)
        wait_for_death()
    os.close(arrive)
    with os.fdopen(arrived, "rb") as pipe:
        number = int(pipe.readline())
    return number


def multiprocessing_worker(pipe):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    lock = os.open(os.environ["TEST_AGENT_OVERLAP_LOCK"] + ".workers", os.O_RDWR | os.O_CREAT, 0o644)
    fcntl.flock(lock, fcntl.LOCK_SH)
    library = option("MAP_LIBRARY")
    mapped = None
    if library:
        import mmap

        with open(library, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    pipe.send(os.getpid())
    wait_for_death()
    del mapped


def multiprocessing_child(method):
    """A real multiprocessing child, started as livekit-agents starts its own."""
    import multiprocessing

    context = multiprocessing.get_context(method)
    here, there = context.Pipe()
    worker = context.Process(target=multiprocessing_worker, args=(there,))
    worker.start()
    return here.recv()


def start_children():
    """`CHILDREN`: words separated by commas; the PIDs go to CHILDREN_LOG, `KIND PID` a line."""
    for kind in filter(None, option("CHILDREN").split(",")):
        if kind == "fork":
            pid = forked_child(deaf=False)
        elif kind == "deaf":
            pid = forked_child()
        elif kind == "setsid":
            pid = forked_child(session=True)
        elif kind == "grandchild":
            pid = forked_child(grandchild=True)
        elif kind in ("spawn", "forkserver"):
            pid = multiprocessing_child(kind)
        elif kind == "system":
            # No Python, and it gets every inheritable descriptor (the PID file's lock).
            os.system("sleep 1000 & echo $! > \"$TEST_AGENT_CHILDREN_LOG.system\"")
            with open(option("CHILDREN_LOG") + ".system") as file:
                pid = int(file.read())
        elif kind == "inheriting":
            # No Python either, and *all* descriptors on purpose.
            import subprocess

            pid = subprocess.Popen(["sleep", "1000"], close_fds=False).pid
        elif kind == "tmux":
            import subprocess

            socket = option("TMUX_SOCKET")
            subprocess.run(["tmux", "-S", socket, "-f", "/dev/null", "new-session", "-d", "sleep 1000"], check=True)
            shown = subprocess.run(["tmux", "-S", socket, "display-message", "-p", "#{pid}"], check=True, stdout=subprocess.PIPE)
            pid = int(shown.stdout)
        else:
            raise SystemExit("TEST_AGENT_CHILDREN: unknown kind " + kind)
        with open(option("CHILDREN_LOG"), "a") as log:
            log.write("%s %d\n" % (kind, pid))


def restart_itself(*_):
    """On USR1: runs the command in RESTART_COMMAND in the way that RESTART_BY names."""
    command = option("RESTART_COMMAND")
    by = option("RESTART_BY", "subprocess")
    if by == "subprocess":
        import subprocess

        code = subprocess.run([command], check=False).returncode
    elif by == "system":
        code = os.waitstatus_to_exitcode(os.system("'" + command + "'"))
    elif by == "three-at-once":
        import subprocess

        # Not waited for: each of them stops the agent that the one before started.
        for _ in range(3):
            subprocess.Popen([command])
        return
    elif by == "popen-and-exit":
        import subprocess

        subprocess.Popen([command])
        os._exit(0)
    elif by == "execv":
        os.execv(command, [command])
    else:
        raise SystemExit("TEST_AGENT_RESTART_BY: unknown way " + by)
    if option("SAY_WHEN_DONE"):
        say("%s with %d" % (option("SAY_WHEN_DONE"), code))


def end(*_):
    """On TERM and INT: drains for DRAIN seconds, says good-bye, ends."""
    time.sleep(float(option("DRAIN", "0")))
    say("good-bye")
    os._exit(0)


def main():
    if sys.argv[1:2] not in (["dev"], ["start"], ["connect"]):
        return 2
    if option("DEAF"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, end)
        signal.signal(signal.SIGINT, end)
    signal.signal(signal.SIGUSR1, restart_itself)
    for name in filter(None, option("SAY_SIGNALS").split(",")):
        signal.signal(getattr(signal, name), lambda number, _: say("heard %d" % number))
    heard = heed_signals()
    say("starting worker")
    start_children()
    if option("DIE_AFTER"):
        time.sleep(float(option("DIE_AFTER")))
        for line in option("DIE_SAYING").splitlines():
            say(line)
        return int(option("DIE_WITH", "1"))
    time.sleep(float(option("READY_DELAY", "0")))
    while option("READY_FILE") and not os.path.exists(option("READY_FILE")):
        time.sleep(0.01)
    if not option("SILENT"):
        say_ready()
    while True:
        os.read(heard, 64)


if __name__ == "__main__":
    sys.exit(main())
