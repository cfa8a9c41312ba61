"""The smallest real voice agent: registers with LiveKit, and stays in the calls it is given."""

import gc

gc.disable()  # a tenth of the time of all these imports

import asyncio  # noqa: E402
import math  # noqa: E402
import sys  # noqa: E402

from livekit.agents import JobContext, WorkerOptions, cli  # noqa: E402

gc.enable()


async def entrypoint(ctx: JobContext):
    print("in a call", ctx.job.id, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    cli.run_app(
        WorkerOptions(
            entrypoint_fnc=entrypoint,
            port=0,  # not 8081: tests run side by side
            # `start` keeps one warm process here, not one for each processor: each
            # costs a second. `dev` keeps none, as it does by itself.
            num_idle_processes=1 if "start" in sys.argv else 0,
            # A busy machine is no reason to refuse a call or to give one up.
            load_threshold=math.inf,
            initialize_process_timeout=120,
        )
    )
