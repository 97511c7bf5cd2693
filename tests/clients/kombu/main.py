"""kombu without Celery: direct, topic and fanout exchanges, acknowledgements, rejects, priorities, SimpleQueue."""

from __future__ import annotations

from typing import Any

from checks import HOST, PORT, equal, restart
from kombu import Connection, Consumer, Exchange, Queue
from stages import RUN, Stages, until

stages = Stages()


def connect() -> Connection:
    return Connection(f"redis://{HOST}:{PORT}/0", transport_options={"global_keyprefix": "{" + RUN + "}:"})


def take(connection: Connection, queues: list[Queue], number: int, **options: Any) -> list[Any]:
    """That many bodies, acknowledged."""
    found: list[Any] = []

    def got(body: Any, message: Any) -> None:
        found.append(body)
        message.ack()

    with Consumer(connection.channel(), queues, callbacks=[got], accept=["json"], **options):
        for _ in range(100):
            if len(found) >= number:
                break
            try:
                connection.drain_events(timeout=1)
            except TimeoutError:
                break
    return found


@stages.add("direct and topic")
def direct() -> None:
    with connect() as connection:
        exchange = Exchange("direct", type="direct")
        queues = [Queue(f"q{n}", exchange, routing_key=f"key{n}") for n in range(3)]
        producer = connection.Producer()
        for n in range(30):
            producer.publish({"n": n}, exchange=exchange, routing_key=f"key{n % 3}", declare=queues)
        for place, queue in enumerate(queues):
            equal(take(connection, [queue], 10), [{"n": n} for n in range(place, 30, 3)])
        topic = Exchange("topic", type="topic")
        logs = [Queue("errors", topic, routing_key="*.error"), Queue("all", topic, routing_key="#")]
        for n in range(4):
            producer.publish(n, exchange=topic, routing_key="app.error" if n % 2 else "app.info", declare=logs)
        equal(take(connection, logs[:1], 2), [1, 3])
        equal(take(connection, logs[1:], 4), [0, 1, 2, 3])


@stages.add("fanout")
def fanout() -> None:
    with connect() as sender, connect() as first, connect() as second:
        exchange = Exchange("fan", type="fanout")
        found: dict[int, list[Any]] = {0: [], 1: []}
        consumers = []
        for place, connection in enumerate((first, second)):
            queue = Queue(f"fan{place}", exchange, auto_delete=True)
            consumer = Consumer(connection.channel(), [queue], no_ack=True, accept=["json"])
            consumer.register_callback(lambda body, _, place=place: found[place].append(body))
            consumer.consume()
            consumers.append(consumer)
            drain(connection)
        producer = sender.Producer()
        for n in range(10):
            producer.publish(n, exchange=exchange, declare=[exchange])

        def all_there() -> bool:
            drain(first)
            drain(second)
            return found == {0: [*range(10)], 1: [*range(10)]}

        until(all_there, "10 messages for both")


def drain(connection: Connection) -> None:
    try:
        while True:
            connection.drain_events(timeout=0.1)
    except TimeoutError:
        pass


@stages.add("unacknowledged messages come again")
def requeue() -> None:
    queue = Queue("again", Exchange("again"), routing_key="again")
    with connect() as connection:
        connection.Producer().publish("once", exchange=queue.exchange, routing_key="again", declare=[queue])
        channel = connection.channel()
        message = until(lambda: queue(channel).get(), "a message")
        message.reject(requeue=True)
        message = until(lambda: queue(channel).get(), "the message again")
        equal(message.payload, "once")
        channel.close()  # not acknowledged: restored
    with connect() as connection:
        message = until(lambda: queue(connection.channel()).get(), "the message a third time")
        equal(message.payload, "once")
        message.ack()
        equal(queue(connection.channel()).get(), None)


@stages.add("priorities, SimpleQueue")
def simple() -> None:
    with connect() as connection:
        queue = connection.SimpleQueue("simple")
        for n in range(10):
            queue.put(n, priority=n % 10)
        found = []
        for _ in range(10):
            message = queue.get(timeout=5)
            found.append(message.payload)
            message.ack()
        equal(sorted(found), [*range(10)])
        equal(found[-1] in (9, 0), True)
        queue.close()


@stages.add("the proxy restarts")
def reconnect() -> None:
    with connect() as connection:
        queue = Queue("restart", Exchange("restart"), routing_key="restart")
        producer = connection.Producer()
        producer.publish(["before"], exchange=queue.exchange, routing_key="restart", declare=[queue])
        equal(take(connection, [queue], 1), [["before"]])
        restart()
        queue = Queue("restarted", Exchange("restarted"), routing_key="restart")
        publish = connection.ensure(producer, producer.publish, max_retries=10, interval_start=0.1)
        publish(["after"], exchange=queue.exchange, routing_key="restart", declare=[queue])
    with connect() as connection:
        equal(take(connection, [queue], 1), [["after"]])


stages.run("kombu")
