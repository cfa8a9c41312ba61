"""The smallest real voice agent: registers with LiveKit, and stays in the calls it is given."""

import asyncio
import math

from livekit.agents import JobContext, WorkerOptions, cli


async def entrypoint(ctx: JobContext):
    print("in a call", ctx.job.id, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    cli.run_app(
        WorkerOptions(
            entrypoint_fnc=entrypoint,
            port=0,  # not 8081: tests run side by side
            # A busy machine is no reason to refuse a call or to give one up.
            load_threshold=math.inf,
            initialize_process_timeout=120,
        )
    )
