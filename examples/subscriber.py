"""Prints job states and checkpoints, past ones first: TUNESMITH_NATS_URL=... TUNESMITH_NATS_TOKEN=..."""

import asyncio
from os import environ as env

import nats

from tunesmith.api.jobs.v1.events_pb2 import JobEvent


async def main() -> None:
    bus = (await nats.connect(env["TUNESMITH_NATS_URL"], token=env["TUNESMITH_NATS_TOKEN"])).jetstream()
    async for message in (await bus.subscribe("tunesmith.v1.*.job.*.evt.>", ordered_consumer=True)).messages:
        if message.headers and message.headers["ce-type"] == JobEvent.DESCRIPTOR.full_name:
            event = JobEvent.FromString(message.data)
            if (kind := event.WhichOneof("event")) in ("state_changed", "checkpoint_committed"):
                print(event.display_name, " ".join(str(getattr(event, kind)).split()), flush=True)  # noqa: T201


asyncio.run(main())
