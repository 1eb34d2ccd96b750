"""The front end's side of the lane against a real broker, with a worker thread that pops what Celery would pop."""

import asyncio
import base64
import json
import threading
import time
from contextlib import asynccontextmanager, contextmanager

import msgpack
import pytest
import redis
from celery import Celery

from app.core.calls.client import Call, CallClient
from app.core.calls.messages import GONE, QUEUE, TASK, task_message
from app.core.errors import ClientGone, DeadlineExceeded, InvalidImage, Overloaded, Unavailable, WorkerLost


def payload_of(message: bytes) -> dict:
    body = msgpack.unpackb(base64.b64decode(json.loads(message)["body"]))
    return msgpack.unpackb(body[0][0])


def echo(call: dict) -> dict:
    return {"id": call["id"], "answer": {"images": call["images"], "facts": {"n": call["params"]}, "timings": {"x": 1}}}


@contextmanager
def worker(url, answer=echo, delay=0.0):
    """Pops micro-batches and answers them; yields the list of those it saw."""
    seen, stop = [], threading.Event()

    def loop():
        client = redis.from_url(url)
        while not stop.is_set():
            found = client.blpop([QUEUE], timeout=0.05)
            if found:
                payload = payload_of(found[1])
                seen.append(payload["calls"])
                time.sleep(delay)
                client.rpush(payload["reply_to"], msgpack.packb([answer(call) for call in payload["calls"]]))
        client.close()

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


@asynccontextmanager
async def client(url, **options):
    calls = CallClient(url, **options)
    await calls.start()
    try:
        yield calls
    finally:
        await calls.stop()


@pytest.fixture
def lane(valkey):
    return f"unix://{valkey.socket}"


def call(number=0, seconds=5.0, **fields):
    fields = {"images": [b"image %d" % number], **fields}
    return Call("d" * 64, "reconstruct", {"n": number}, deadline=time.monotonic() + seconds, **fields)


def test_calls_are_collected_in_few_messages_and_answered_separately(lane):
    async def scenario():
        async with client(lane) as calls:
            answers = await asyncio.gather(*[calls.submit(call(number)) for number in range(100)])
            assert [answer.images for answer in answers] == [[b"image %d" % number] for number in range(100)]
            assert answers[7].facts == {"n": {"n": 7}}
            assert calls.batches_out == 0 and calls.waiting_weight == 0

    with worker(lane, delay=0.02) as seen:
        asyncio.run(scenario())
    assert sum(map(len, seen)) == 100
    assert len(seen) <= 4, "calls that arrive together travel together"


def test_a_micro_batch_holds_no_more_images_than_allowed(lane):
    async def scenario():
        async with client(lane, batch=8) as calls:
            await asyncio.gather(*[calls.submit(call(number, weight=3)) for number in range(7)])
            await calls.submit(call(weight=50))  # one call is never torn apart

    with worker(lane) as seen:
        asyncio.run(scenario())
    assert max(map(len, seen)) == 2


def test_at_most_the_allowed_micro_batches_are_out(lane):
    async def scenario():
        async with client(lane, batch=1, in_flight=2) as calls:
            tasks = [asyncio.create_task(calls.submit(call(number))) for number in range(6)]
            await asyncio.sleep(0.3)
            connection = redis.from_url(lane)
            assert connection.llen(QUEUE) == calls.batches_out == 2
            connection.close()
            with worker(lane):
                await asyncio.gather(*tasks)

    asyncio.run(scenario())


def test_a_workers_problem_arrives_as_the_same_error(lane):
    def refuse(call):
        return {"id": call["id"], "problem": InvalidImage("This is no image.", field="image").problem()}

    async def scenario():
        async with client(lane) as calls:
            with pytest.raises(InvalidImage, match="no image") as error:
                await calls.submit(call())
            assert error.value.field == "image"

    with worker(lane, refuse):
        asyncio.run(scenario())


def test_a_call_without_answer_ends_at_its_deadline_and_frees_its_place(lane):
    async def scenario():
        async with client(lane, in_flight=1) as calls:
            with pytest.raises(DeadlineExceeded):
                await calls.submit(call(seconds=0.2))
            assert calls.batches_out == 0
            blocker = asyncio.create_task(calls.submit(call(seconds=0.6)))
            await asyncio.sleep(0.05)
            with pytest.raises(Overloaded):  # it never left: the client may come again
                await calls.submit(call(seconds=0.2))
            with pytest.raises(DeadlineExceeded):
                await blocker

    asyncio.run(scenario())


def test_calls_above_the_queue_limit_are_refused_with_a_retry_time(lane):
    async def scenario():
        async with client(lane, batch=1, in_flight=1, queue_limit=3) as calls:
            tasks = []
            for number in range(4):
                tasks.append(asyncio.create_task(calls.submit(call(number, seconds=0.5))))
                await asyncio.sleep(0.02)
            with pytest.raises(Overloaded) as error:
                await calls.submit(call())
            assert 1 <= error.value.retry_after <= 60
            await asyncio.gather(*tasks, return_exceptions=True)
            assert calls.waiting_weight == 0

    asyncio.run(scenario())


def test_an_unreachable_broker_is_reported_at_once(tmp_path):
    async def scenario():
        async with client(f"unix://{tmp_path}/none.sock") as calls:
            start = time.monotonic()
            with pytest.raises(Unavailable):
                await calls.submit(call(seconds=20))
            assert time.monotonic() - start < 3
            assert not await calls.ping()

    asyncio.run(scenario())


def test_calls_lost_with_a_worker_are_sent_once_more_and_then_fail(lane):
    async def scenario():
        connection = redis.from_url(lane)
        async with client(lane) as calls:
            task = asyncio.create_task(calls.submit(call(seconds=10)))
            await asyncio.sleep(0.1)
            assert connection.delete(QUEUE)  # a worker took it and died
            await calls.recover()
            with worker(lane) as seen:
                assert (await task).images == [b"image 0"]
            assert len(seen) == 1
            task = asyncio.create_task(calls.submit(call(seconds=10)))
            await asyncio.sleep(0.1)
            await calls.recover()
            await calls.recover()
            with pytest.raises(WorkerLost):
                await task
        connection.close()

    asyncio.run(scenario())


def test_an_unreadable_reply_is_ignored(lane):
    async def scenario():
        async with client(lane) as calls:
            connection = redis.from_url(lane)
            connection.rpush(calls.replies, b"\xc1 no msgpack", msgpack.packb([{"id": 99, "answer": {"images": []}}]))
            connection.close()
            assert (await calls.submit(call(3))).images == [b"image 3"]

    with worker(lane):
        asyncio.run(scenario())


def test_the_message_equals_that_of_celery(lane):
    """Same keys and body as `send_task`, and a Celery consumer decodes it to the task's name and arguments."""
    app = Celery("probe", broker=lane.replace("unix://", "redis+socket://"))
    app.conf.accept_content = ["json", "msgpack"]
    app.send_task(TASK, [b"\x00\xff"], queue=QUEUE, serializer="msgpack")
    connection = redis.from_url(lane)
    theirs, ours = json.loads(connection.rpop(QUEUE)), json.loads(task_message(b"\x00\xff"))
    assert ours["body"] == theirs["body"]
    assert ours.keys() == theirs.keys()
    assert ours["properties"].keys() == theirs["properties"].keys()
    assert ours["properties"]["delivery_info"] == theirs["properties"]["delivery_info"]
    assert ours["headers"].keys() <= theirs["headers"].keys()
    connection.lpush(QUEUE, task_message(b"\x00\xff"))
    connection.close()
    found = []
    with app.connection() as link, app.amqp.TaskConsumer(link, queues=[app.amqp.queues.select_add(QUEUE)]) as consumer:
        consumer.on_message = found.append
        link.drain_events(timeout=5)
        found[0].ack()
    assert found[0].headers["task"] == TASK
    assert found[0].decode()[0] == [b"\x00\xff"]
    app.close()


@pytest.mark.anyio
async def test_calls_are_refused_at_once_while_no_worker_lives():
    calls = CallClient("redis://127.0.0.1:1/0")
    calls.has_workers = False
    with pytest.raises(WorkerLost) as error:
        await calls.submit(Call("m", "denoise", {}, deadline=time.monotonic() + 60))
    assert error.value.retry_after


async def settled() -> None:
    """After the tick in which waiting calls are sent."""
    for _ in range(5):
        await asyncio.sleep(0)


def sent(lane: str) -> list[list[dict]]:
    """The micro-batches that lie in the broker, the oldest first."""
    connection = redis.from_url(lane)
    batches = [payload_of(message)["calls"] for message in reversed(connection.lrange(QUEUE, 0, -1))]
    connection.close()
    return batches


async def until(condition) -> None:
    for _ in range(600):
        if condition():
            return
        await asyncio.sleep(0.1)
    raise AssertionError("it did not happen")


def test_tenants_take_turns_when_calls_wait(lane):
    async def scenario():
        async with client(lane, batch=4, in_flight=1) as calls:
            tasks = [asyncio.create_task(calls.submit(call(99, tenant="many")))]
            await settled()
            for number in range(8):
                tasks.append(asyncio.create_task(calls.submit(call(number, seconds=60, tenant="many"))))
            tasks.append(asyncio.create_task(calls.submit(call(100, seconds=60, tenant="one"))))
            await settled()
            with worker(lane) as seen:
                await asyncio.gather(*tasks)
            assert [each["tenant"] for each in seen[1]] == ["many", "one", "many", "many"]
            assert [each["params"]["n"] for batch in seen for each in batch if each["tenant"] == "many"][1:] == [
                *range(8)
            ]

    asyncio.run(scenario())


def test_slow_calls_travel_alone_in_a_window_of_their_own(lane):
    async def scenario():
        async with client(lane, batch=64, in_flight=1, slow_in_flight=2) as calls:
            prices = {"a": (9.0, 5.0, 1.0), "b": (2.0,)}
            slow = [call(0, 60, price=price, tenant=name) for name, each in prices.items() for price in each]
            tasks = [asyncio.create_task(calls.submit(each)) for each in slow]
            cheap = [asyncio.create_task(calls.submit(call(number, seconds=60))) for number in range(3)]
            await until(lambda: len(sent(lane)) == 3)
            await settled()
            batches = sent(lane)
            assert sorted(len(batch) for batch in batches) == [1, 1, 3], "cheap calls go although slow ones wait"
            slow_ones = [(each["tenant"], each["price"]) for batch in batches for each in batch if each["slow"]]
            assert sorted(slow_ones) == [("a", 1.0), ("b", 2.0)], "tenants in turn, the cheapest first"
            with worker(lane):
                await asyncio.gather(*tasks, *cheap)
            assert calls.batches_out == 0 and calls.waiting_weight == 0

    asyncio.run(scenario())


def test_a_slow_call_that_would_end_after_its_deadline_is_refused_at_once(lane):
    async def scenario():
        async with client(lane) as calls:
            tasks = [asyncio.create_task(calls.submit(call(0, 60, price=20.0, tenant=name))) for name in "aab"]
            await settled()
            with pytest.raises(Overloaded) as error:
                await calls.submit(call(1, 60, price=20.0, tenant="a"))
            assert error.value.retry_after >= 1
            tasks.append(asyncio.create_task(calls.submit(call(1, 60, price=20.0, tenant="c"))))
            await settled()
            assert not tasks[-1].done(), "another tenant shares the compute"
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(scenario())


def test_a_client_that_left_is_told_to_workers_and_frees_its_place(lane):
    async def scenario():
        connection = redis.from_url(lane)
        channel = connection.pubsub(ignore_subscribe_messages=True)
        channel.subscribe(GONE)
        channel.get_message(timeout=5)
        async with client(lane, batch=1, in_flight=1) as calls:
            first, second = call(0, 60), call(1, 60)
            tasks = [asyncio.create_task(calls.submit(each)) for each in (first, second)]
            await until(lambda: len(sent(lane)) == 1)
            calls.abandon(second)
            calls.abandon(first)
            for task in tasks:
                with pytest.raises(ClientGone):
                    await task
            assert calls.waiting_weight == 0 and calls.batches_out == 0
            message = None
            for _ in range(60):
                message = message or channel.get_message(timeout=0)
                await asyncio.sleep(0.05)
            told = msgpack.unpackb(message["data"])
            assert told == {"reply_to": calls.replies, "ids": [1]}, "the second was never sent"
        connection.close()

    asyncio.run(scenario())


def test_a_full_queue_makes_room_for_a_tenant_with_fewer_calls(lane):
    async def scenario():
        async with client(lane, batch=1, in_flight=1, queue_limit=4) as calls:
            many = []
            for number in range(5):
                many.append(asyncio.create_task(calls.submit(call(number, 60, tenant="many"))))
                await settled()
            with pytest.raises(Overloaded):
                await calls.submit(call(5, 60, tenant="many"))
            one = asyncio.create_task(calls.submit(call(6, 60, tenant="one")))
            await settled()
            with pytest.raises(Overloaded):
                await many[-1]
            with worker(lane):
                await asyncio.gather(*many[:-1], one)

    asyncio.run(scenario())


def test_calls_are_refused_when_those_that_wait_take_too_long(lane):
    async def scenario():
        async with client(lane, batch=1, in_flight=1, wait_seconds=1.0) as calls:
            calls._seconds_per_image = 0.3
            tasks = []
            for number in range(5):
                tasks.append(asyncio.create_task(calls.submit(call(number, 60))))
                await settled()
            with pytest.raises(Overloaded, match="about 1 s"):
                await calls.submit(call(6, 60))
            with worker(lane):
                await asyncio.gather(*tasks)

    asyncio.run(scenario())


def test_a_micro_batch_that_takes_longer_lets_others_pass(lane):
    async def scenario():
        async with client(lane, batch=1, in_flight=1) as calls:
            tasks = [asyncio.create_task(calls.submit(call(number, 60))) for number in range(2)]
            await until(lambda: len(sent(lane)) == 1)
            connection = redis.from_url(lane)
            connection.rpush(calls.replies, msgpack.packb([{"id": 1, "later": True}]))
            connection.close()
            await until(lambda: len(sent(lane)) == 2)
            with worker(lane):
                await asyncio.gather(*tasks)

    asyncio.run(scenario())
