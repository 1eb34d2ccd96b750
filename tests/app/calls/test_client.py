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
from app.core.calls.messages import QUEUE, TASK, task_message
from app.core.errors import DeadlineExceeded, InvalidImage, Overloaded, Unavailable, WorkerLost


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
