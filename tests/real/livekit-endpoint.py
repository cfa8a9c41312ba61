"""Stand-in for the worker endpoint of a LiveKit server (not a LiveKit server).

Answers the registration of agents on /agent with the real protocol messages, so
that the number of registered workers tells how many agents would answer a call.

    python livekit-endpoint.py [--port PORT] [--job] [--stay]

    --port 0   takes a free port
    --job      hands every worker that registers one call
    --stay     does not end with its standard input: a companion has none
    GET /workers               how many are registered now, as JSON
    GET /workers?registered=N&within=SECONDS
                               the same, as soon as exactly N are registered and
                               every connection is a registered one, or in SECONDS
    GET /workers?calls=N&...   the same for the calls that workers have taken on

Prints `listening PORT`, then a line for each `connected`, `registered`, `call`
and `closed`, each with the worker's id. Ends when its standard input ends, so it
never outlives the test that started it, without --stay. Needs aiohttp and livekit-agents.
"""

import argparse
import asyncio
import sys

from aiohttp import WSMsgType, web
from livekit.protocol import agent


def say(*words):
    print(*words, flush=True)


class Endpoint:
    def __init__(self, hand_out_jobs):
        self.hand_out_jobs = hand_out_jobs
        self.count = 0
        self.connected = set()
        self.registered = set()
        self.calls = set()
        self.most_at_once = 0
        self.changed = asyncio.Condition()

    async def note(self, what, worker):
        async with self.changed:
            if what == "connected":
                self.connected.add(worker)
            elif what == "registered":
                self.registered.add(worker)
                self.most_at_once = max(self.most_at_once, len(self.registered))
            elif what == "call":
                self.calls.add(worker)
            else:
                for group in (self.connected, self.registered, self.calls):
                    group.discard(worker)
            say(what, worker)
            self.changed.notify_all()

    async def worker_connection(self, request):
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.count += 1
        worker = f"AW_endpoint{self.count}"
        await self.note("connected", worker)
        try:
            async for frame in socket:
                if frame.type != WSMsgType.BINARY:
                    continue
                message = agent.WorkerMessage()
                message.ParseFromString(frame.data)
                await self.answer(socket, worker, message)
        except ConnectionError:
            pass  # a worker that was killed between two of our messages
        finally:
            await self.note("closed", worker)
        return socket

    async def answer(self, socket, worker, message):
        kind = message.WhichOneof("message")
        if kind == "register":
            reply = agent.ServerMessage()
            reply.register.worker_id = worker
            reply.register.server_info.version = "endpoint"
            reply.register.server_info.protocol = 15
            await socket.send_bytes(reply.SerializeToString())
            await self.note("registered", worker)
            if self.hand_out_jobs:
                offer = agent.ServerMessage()
                describe(offer.availability.job, worker)
                await socket.send_bytes(offer.SerializeToString())
        elif kind == "availability" and message.availability.available:
            assignment = agent.ServerMessage()
            describe(assignment.assignment.job, worker)
            assignment.assignment.token = "x.y.z"
            await socket.send_bytes(assignment.SerializeToString())
            await self.note("call", worker)

    async def workers(self, request):
        def asked_for():
            wanted = request.query.get("registered")
            if wanted is not None:
                return self.registered == self.connected and len(self.registered) == int(wanted)
            wanted = request.query.get("calls")
            return wanted is None or len(self.calls) == int(wanted)

        async with self.changed:
            try:
                within = float(request.query.get("within", 0))
                await asyncio.wait_for(self.changed.wait_for(asked_for), within)
            except asyncio.TimeoutError:
                pass  # the answer says how many there are instead
        return web.json_response(
            {
                "connected": len(self.connected),
                "registered": len(self.registered),
                "calls": len(self.calls),
                "most_at_once": self.most_at_once,
            }
        )


def describe(job, worker):
    job.id = f"AJ_{worker}"
    job.type = agent.JobType.JT_ROOM
    job.room.name = f"room-{worker}"
    job.room.sid = f"RM_{worker}"


async def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--port", type=int, default=7880)
    arguments.add_argument("--job", action="store_true")
    arguments.add_argument("--stay", action="store_true")
    arguments = arguments.parse_args()

    endpoint = Endpoint(arguments.job)
    app = web.Application()
    app.add_routes(
        [
            web.get("/agent", endpoint.worker_connection),
            web.get("/workers", endpoint.workers),
            web.get("/", lambda _request: web.Response(text="OK")),
        ]
    )
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", arguments.port)
    await site.start()
    say("listening", runner.addresses[0][1])
    if arguments.stay:
        await asyncio.Event().wait()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await runner.cleanup()


asyncio.run(main())
