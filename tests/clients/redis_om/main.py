"""redis-om's hash models: what works without the modules for search and JSON."""

from __future__ import annotations

import os

from checks import HOST, PORT, NotTried, equal, restart
from stages import SHARDS, Stages, raises, slot_of, until

os.environ["REDIS_OM_URL"] = f"redis://{HOST}:{PORT}"

from redis_om import Field, HashModel, JsonModel, NotFoundError, get_redis_connection

stages = Stages()


class Customer(HashModel, index=True):
    name: str = Field(index=True)
    age: int = Field(index=True)
    note: str | None = None


@stages.add("models")
def models() -> None:
    saved = [Customer(name=f"name {n}", age=n).save() for n in range(60)]
    equal(len({slot_of(each.key()) * SHARDS // 16384 for each in saved}), SHARDS)
    equal([Customer.get(each.pk).model_dump() for each in saved], [each.model_dump() for each in saved])
    equal(set(Customer.all_pks()) >= {each.pk for each in saved}, True)
    saved[0].update(age=99)
    equal(Customer.get(saved[0].pk).age, 99)
    equal([Customer.delete(saved[0].pk), Customer.delete(saved[0].pk)], [1, 0])
    with raises(NotFoundError):
        Customer.get(saved[0].pk)
    saved[1].expire(1)
    until(lambda: not Customer.db().exists(saved[1].key()), "it expires")


@stages.add("many at once")
def many() -> None:
    customers = [Customer(name=f"many {n}", age=n) for n in range(30)]
    Customer.add(customers)
    equal([Customer.get(each.pk).name for each in customers], [each.name for each in customers])
    equal(Customer.delete_many(customers), 30)
    pipe = Customer.db().pipeline(transaction=False)
    Customer.add(customers, pipeline=pipe)
    pipe.execute()
    equal([Customer.get(each.pk).age for each in customers], [*range(30)])


@stages.add("find()")
def find() -> None:
    db = get_redis_connection()
    if "search" not in {module.get("name", module.get(b"name")) for module in db.module_list()}:
        raise NotTried("the servers here have no search module")
    equal(len(Customer.find(Customer.age == 7).all()) >= 1, True)


@stages.add("JsonModel")
def json() -> None:
    db = get_redis_connection()
    if "ReJSON" not in {module.get("name", module.get(b"name")) for module in db.module_list()}:
        raise NotTried("the servers here have no JSON module")
    equal(issubclass(JsonModel, object), True)


@stages.add("the proxy restarts")
def reconnect() -> None:
    customer = Customer(name="before", age=1).save()
    restart()
    customer.save()
    equal(Customer.get(customer.pk).name, "before")


stages.run("redis-om")
