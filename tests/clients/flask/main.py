"""Flask with Flask-Session's sessions in Redis and Flask-Limiter's limits in all their strategies."""

from __future__ import annotations

from importlib.metadata import version

import redis
from checks import HOST, PORT, equal, restart, say
from flask import Flask, session
from flask_limiter import Limiter
from flask_session import Session
from stages import SHARDS, Stages, slot_of, until

stages = Stages()
db = redis.Redis(host=HOST, port=PORT)


def application(strategy: str) -> Flask:
    app = Flask(strategy)
    app.config.update(SESSION_TYPE="redis", SESSION_REDIS=db, SESSION_KEY_PREFIX="session:")
    Session(app)
    user = ["nobody"]
    limiter = Limiter(lambda: user[0], app=app, storage_uri=f"redis://{HOST}:{PORT}", strategy=strategy)

    @app.get("/visit")
    def visit() -> str:
        session["visits"] = session.get("visits", 0) + 1
        return str(session["visits"])

    @app.get("/leave")
    def leave() -> str:
        session.clear()
        return "left"

    @app.get("/limited/<name>")
    @limiter.limit("5 per 2 seconds", key_func=lambda: user[0])
    def limited(name: str) -> str:
        return name

    @app.before_request
    def who() -> None:
        from flask import request

        user[0] = (request.view_args or {}).get("name", "nobody")

    app.before_request_funcs[None].sort(key=lambda function: function.__name__ != "who")
    return app


@stages.add("sessions")
def sessions() -> None:
    app = application("fixed-window")
    clients = [app.test_client() for _ in range(30)]
    for count in range(1, 4):
        equal([client.get("/visit").text for client in clients], [str(count)] * 30)
    keys = list(db.scan_iter("session:*"))
    equal(len(keys), 30)
    equal(len({slot_of(key.decode()) * SHARDS // 16384 for key in keys}), SHARDS)
    equal(all(db.ttl(key) > 0 for key in keys), True)
    clients[0].get("/leave")
    equal([clients[0].get("/visit").text, clients[1].get("/visit").text], ["1", "4"])


def limits(strategy: str) -> None:
    client = application(strategy).test_client()
    for name in [f"{strategy}{n}" for n in range(9)]:
        codes = [client.get(f"/limited/{name}").status_code for _ in range(7)]
        equal(sorted(codes), [200] * 5 + [429] * 2)
    last = f"/limited/{strategy}8"
    until(lambda: client.get(last).status_code == 200, "the window is over")


for strategy in ("fixed-window", "moving-window", "sliding-window-counter"):
    stages.add(f"limits: {strategy}")(lambda strategy=strategy: limits(strategy))


@stages.add("the proxy restarts")
def reconnect() -> None:
    client = application("fixed-window").test_client()
    equal(client.get("/visit").text, "1")
    restart()
    equal(client.get("/limited/again").status_code, 200)
    equal(client.get("/visit").text in ("1", "2"), True)


stages.run("flask-session")
say(client="flask", version=f"{version('flask-session')}, {version('flask-limiter')}")
