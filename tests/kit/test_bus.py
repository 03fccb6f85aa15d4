"""The bus: nothing acknowledged is lost, nothing is done twice, and it comes back from everything."""

import asyncio
import functools
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.bus import TOKEN, connected, running_nats
from tests.support.wait import until, until_async
from tunesmith.errors import (
    Aborted,
    DeadlineExceeded,
    InvalidArgument,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)
from tunesmith_kit import streams, subjects
from tunesmith_kit.bus import Bus, Delivery, Message
from tunesmith_kit.nats_server import EmbeddedNats, free_ports, start_cluster

SUBJECT = subjects.metrics("default", "job", 1, 0)
EVENT = subjects.job_event("default", "job", "created")


class Seen:
    """An idempotent store: it counts deliveries, and keeps each message once."""

    def __init__(self) -> None:
        self.deliveries: Counter[str] = Counter()

    async def take(self, items: Sequence[Delivery]) -> None:
        """Takes what a consumer brings."""
        self.deliveries.update(item.message_id for item in items)


async def _settled(bus: Bus) -> bool:
    """Whether two dead letters are stored (whoever listens hears of them before) and nothing waits."""
    info = await bus.connection.api(f"STREAM.INFO.{streams.DEAD}")
    consumer = await bus.connection.api(f"CONSUMER.INFO.{streams.EVENTS}.test")
    return bool(
        info["state"]["messages"] == 2 and consumer["num_pending"] == consumer["num_ack_pending"] == 0
    )


def _longer(items: Sequence[object], size: int) -> bool:
    return len(items) > size


async def test_kills_of_the_server_under_load_lose_nothing_acknowledged(tmp_path: Path) -> None:
    seen, num_messages = Seen(), 6000
    async with running_nats(tmp_path) as server, connected(server) as bus, connected(server) as reader:
        await reader.consume_batches(streams.METRICS, streams.INGEST, seen.take, batch=100)
        futures = []

        async def publish() -> None:
            for index in range(num_messages):
                future = await bus.publish_soon(SUBJECT, b"x" * 100, f"m{index}")
                futures.append(future)

        publishing = asyncio.create_task(publish())
        for share in (0.2, 0.5, 0.8):
            enough = int(share * num_messages)
            await until(functools.partial(_longer, futures, enough), "progress")
            await server.kill()
            await server.start()
        await publishing
        acks = await asyncio.gather(*futures)
        assert len(acks) == num_messages
        await until(lambda: len(seen.deliveries) == num_messages, "all messages")


async def test_a_server_that_lost_its_disk_is_set_up_again_and_used(tmp_path: Path) -> None:
    seen = Seen()
    async with running_nats(tmp_path) as server, connected(server) as bus, connected(server) as reader:
        await reader.consume_batches(streams.METRICS, streams.INGEST, seen.take)
        await bus.publish(SUBJECT, b"", "before")
        await until(lambda: "before" in seen.deliveries, "the first message")
        back = asyncio.Event()
        bus.on_reconnect(back.set)
        await server.kill()
        server.wipe()
        await server.start()
        await asyncio.wait_for(back.wait(), 90)
        await bus.publish(SUBJECT, b"", "after")
        await until(lambda: "after" in seen.deliveries, "the message after the loss")


async def test_a_stream_that_nobody_here_reads_is_made_again_when_it_was_deleted(tmp_path: Path) -> None:
    async with running_nats(tmp_path) as server, connected(server) as bus:
        deleted = (streams.CMD, f"KV_{streams.LEASE_BUCKET}")
        for stream in deleted:
            await bus.connection.api(f"STREAM.DELETE.{stream}")

        async def there() -> bool:
            known = await bus.connection.api("STREAM.NAMES")
            return set(deleted) <= set(known["streams"])

        await until_async(there, "the streams are there again")


async def test_no_batch_is_dropped_between_the_making_of_a_stream_and_of_its_consumer(tmp_path: Path) -> None:
    async with running_nats(tmp_path) as server, connected(server) as bus:
        for index in range(5):
            await bus.connection.api(f"STREAM.DELETE.{streams.METRICS}")
            publishing = asyncio.create_task(bus.publish(SUBJECT, b"", f"early-{index}"))
            await streams.ensure(bus.connection)
            await publishing
            info = await bus.connection.api(f"STREAM.INFO.{streams.METRICS}")
            assert info["state"]["messages"] == 1


async def test_the_same_id_is_stored_once_and_found_again(tmp_path: Path) -> None:
    async with running_nats(tmp_path) as server, connected(server) as bus:
        first = await bus.publish(EVENT, b"a", "id-1")
        second = await bus.publish(EVENT, b"a", "id-1")
        assert (first.duplicate, second.duplicate, second.seq) == (False, True, first.seq)
        assert await bus.msg_id_at(streams.EVENTS, first.seq) == "id-1"
        assert await bus.msg_id_at(streams.EVENTS, first.seq + 1) is None


async def test_a_handler_that_fails_for_a_while_gets_the_message_again(tmp_path: Path) -> None:
    tries: list[int] = []

    async def handler(delivery: Delivery) -> None:
        tries.append(delivery.num_delivered)
        if len(tries) == 1:
            raise Unavailable("DATABASE_UNAVAILABLE", "down")
        if len(tries) == 2:
            raise RuntimeError("unforeseen")

    async with running_nats(tmp_path) as server, connected(server) as bus:
        await bus.consume(streams.EVENTS, "test", handler)
        await bus.publish(EVENT, b"", "id")
        await until(lambda: len(tries) == 3, "the third try")
        assert tries == [1, 2, 3]


@pytest.mark.parametrize("batches", [False, True])
async def test_bad_messages_go_to_the_dead_letters_with_their_reason(tmp_path: Path, batches: bool) -> None:
    done: list[str] = []
    dead: list[Message] = []

    async def one(delivery: Delivery) -> None:
        if delivery.payload == b"bad":
            raise InvalidArgument("MESSAGE_MALFORMED", "no good", field="payload")
        if delivery.payload == b"bug":
            raise RuntimeError("cannot")
        done.append(delivery.message_id)

    async def several(items: Sequence[Delivery]) -> None:
        if any(item.payload == b"bad" for item in items):
            raise InvalidArgument("MESSAGE_MALFORMED", "no good", field="payload")
        for item in items:
            await one(item)

    async def bury(message: Message) -> None:
        dead.append(message)

    async with running_nats(tmp_path) as server, connected(server) as bus:
        await bus.subscribe(subjects.dead(streams.EVENTS), bury)
        for name in ("good-1", "bad", "good-2"):
            await bus.publish(EVENT, name.split("-")[0].encode(), name, {"ce-type": "x"})
        if batches:
            await bus.consume_batches(streams.EVENTS, "test", several, max_deliver=2)
        else:
            await bus.consume(streams.EVENTS, "test", one, max_deliver=2)
        await until(lambda: len(dead) == 1 and len(done) == 2, "good and bad to part")
        await bus.publish(EVENT, b"bug", "bug")
        await until(lambda: len(dead) == 2, "the second dead letter")
        told = [(m.headers["dead-message-id"], m.headers["dead-reason"], m.payload) for m in dead]
        assert told == [("bad", "MESSAGE_MALFORMED", b"bad"), ("bug", "RuntimeError", b"bug")]
        assert dead[0].headers["dead-subject"] == EVENT
        assert dead[0].headers["ce-type"] == "x"
        await until_async(functools.partial(_settled, bus), "two dead letters in their stream, nothing left")


async def test_what_one_process_leaves_unfinished_goes_to_another(tmp_path: Path) -> None:
    # Most of it at once; what was sent into the closing subscription waits for the end of its ack wait.
    seen, stuck = Seen(), asyncio.Event()

    async def never(delivery: Delivery) -> None:
        stuck.set()
        await asyncio.Event().wait()

    async with running_nats(tmp_path) as server, connected(server) as bus, connected(server) as other:
        consumer = await bus.consume(streams.EVENTS, "test", never, ack_wait=10)
        for index in range(5):
            await bus.publish(EVENT, b"", f"m{index}")
        await stuck.wait()
        await consumer.stop(grace=0.1)
        await other.consume_batches(streams.EVENTS, "test", seen.take, ack_wait=10)
        await until(lambda: len(seen.deliveries) == 5, "the messages of the stopped process")


async def test_a_handler_may_take_longer_than_the_ack_wait(tmp_path: Path) -> None:
    deliveries: list[int] = []
    beats: list[Message] = []
    release = asyncio.Event()

    async def hear(message: Message) -> None:
        if message.payload == b"+WPI":
            beats.append(message)

    async def slow(delivery: Delivery) -> None:
        deliveries.append(delivery.num_delivered)
        await release.wait()

    async with running_nats(tmp_path) as server, connected(server) as bus:
        await bus.subscribe(f"$JS.ACK.{streams.EVENTS}.test.>", hear)
        await bus.consume(streams.EVENTS, "test", slow, ack_wait=3, concurrency=4)
        await bus.publish(EVENT, b"", "long")
        await until(lambda: len(beats) == 5, "five signs of life, a third of the ack wait apart")
        assert deliveries == [1]
        release.set()


async def test_a_full_stream_pushes_back_and_takes_messages_again_after_acks(tmp_path: Path) -> None:
    seen = Seen()
    async with running_nats(tmp_path) as server, connected(server) as bus:
        table = {stream.name: stream for stream in streams.STREAMS}
        small = table[streams.METRICS].config(1) | {"max_bytes": 20_000}
        await bus.connection.api(f"STREAM.UPDATE.{streams.METRICS}", small)
        futures = [await bus.publish_soon(SUBJECT, b"x" * 1000, f"m{index}") for index in range(60)]
        await until(lambda: any(future.done() for future in futures), "the first acknowledgements")
        assert not all(future.done() for future in futures)
        await bus.consume_batches(streams.METRICS, streams.INGEST, seen.take)
        await asyncio.wait_for(asyncio.gather(*futures), 90)
        await until(lambda: len(seen.deliveries) == 60, "all messages")


async def test_clear_errors_at_the_start(tmp_path: Path) -> None:
    port = free_ports(1)[0]
    with pytest.raises(Unavailable, match=f"no NATS server answers at nats://127.0.0.1:{port}"):
        await Bus.connect(f"nats://127.0.0.1:{port}", TOKEN, "test", deadline=0.5)
    async with running_nats(tmp_path) as server:
        with pytest.raises(Unauthenticated, match="refuses our token") as caught:
            await Bus.connect(server.url, "wrong", "test", deadline=60)
        assert "TUNESMITH_NATS_TOKEN" in caught.value.remedy
        with pytest.raises(Unavailable, match=f"port {server.port} is taken") as taken:
            await EmbeddedNats(tmp_path / "second", port=server.port).start()
        assert taken.value.reason == "PORT_IN_USE"


async def test_errors_of_publish_and_request_name_what_is_wrong(tmp_path: Path) -> None:
    async with running_nats(tmp_path) as server, connected(server) as bus:
        with pytest.raises(ResourceExhausted):
            await bus.publish(EVENT, b"x" * 2_000_000, "large")
        with pytest.raises(Unavailable, match="no stream takes this subject"):
            await bus.publish("tunesmith.v1.nowhere", b"", "lost", deadline=2)
        with pytest.raises(Aborted):
            await bus.publish(EVENT, b"", "late", {"Nats-Expected-Last-Subject-Sequence": "99"})
        with pytest.raises(Unavailable, match="nobody answers"):
            await bus.request("tunesmith.v1.nobody", b"")

        async def silent(message: Message) -> None:
            return

        await bus.subscribe("tunesmith.v1.silent", silent)
        with pytest.raises(DeadlineExceeded):
            await bus.request("tunesmith.v1.silent", b"", deadline=0.2)
        await server.stop()
        with pytest.raises(Unavailable):
            await bus.publish(EVENT, b"", "down", deadline=0.5)


async def test_a_message_found_too_large_only_later_holds_up_no_other(tmp_path: Path) -> None:
    async with running_nats(tmp_path) as server, connected(server) as bus:
        await server.kill()
        await until(lambda: not bus.connected, "the loss of the server")
        large = await bus.publish_soon(EVENT, b"x" * 2_000_000, "large")
        small = await bus.publish_soon(EVENT, b"x", "small")
        await server.start()
        with pytest.raises(ResourceExhausted):
            await asyncio.wait_for(large, 90)
        await asyncio.wait_for(small, 90)
        with pytest.raises(Unavailable):  # and the time of others is still looked after
            await asyncio.wait_for(bus.publish("tunesmith.v1.nowhere", b"", "lost", deadline=0.1), 90)


async def test_a_cluster_goes_on_without_its_leader(tmp_path: Path) -> None:
    seen = Seen()
    servers = await start_cluster(tmp_path, 3, TOKEN)
    url = ",".join(server.url for server in servers)
    try:
        bus = await Bus.connect(url, TOKEN, "test", num_replicas=3, deadline=60)
        await bus.consume_batches(streams.METRICS, streams.INGEST, seen.take)
        info = await bus.connection.api(f"STREAM.INFO.{streams.METRICS}")
        assert info["config"]["num_replicas"] == 3
        leader = int(info["cluster"]["leader"].rpartition("-")[2])
        futures = [await bus.publish_soon(SUBJECT, b"", f"m{index}") for index in range(200)]
        await servers[leader].kill()
        futures += [await bus.publish_soon(SUBJECT, b"", f"n{index}") for index in range(200)]
        await asyncio.wait_for(asyncio.gather(*futures), 120)
        await until(lambda: len(seen.deliveries) == 400, "all messages", 120)
        again = await Bus.connect(url, TOKEN, "modest", num_replicas=1, deadline=60)
        info = await again.connection.api(f"STREAM.INFO.{streams.METRICS}")
        assert info["config"]["num_replicas"] == 3, "a process with the default weakened the cluster"
        await again.close()
        await bus.close()
    finally:
        await asyncio.gather(*(server.stop() for server in servers))


async def test_the_server_does_not_outlive_us(tmp_path: Path) -> None:
    program = (
        "import asyncio, os, signal, sys\n"
        "from pathlib import Path\n"
        "from tunesmith_kit.nats_server import EmbeddedNats\n"
        "async def main():\n"
        "    server = EmbeddedNats(Path(sys.argv[1]))\n"
        "    await server.start()\n"
        "    print(server.pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    status = Path(f"/proc/{int(output)}/stat")
    await until(
        lambda: not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z", "its end"
    )


def test_subjects_refuse_what_could_reach_further() -> None:
    for bad in ("a.b", "*", ">", "", "A", "a b", "ä", "a" * 200, "a\n"):
        with pytest.raises(InvalidArgument):
            subjects.job_event("default", bad, "created")
        with pytest.raises(InvalidArgument):
            subjects.command(bad, "assign")
    parts = subjects.parse_rank(subjects.logs("p", "j", 3, 65535))
    assert (parts.project, parts.job_id, parts.kind, parts.epoch, parts.rank) == ("p", "j", "log", 3, 65535)
    event = subjects.parse_event(subjects.node_event("n-1", "registered"))
    assert (event.project, event.entity, event.entity_id, event.name) == (
        "fleet",
        "node",
        "n-1",
        "registered",
    )
