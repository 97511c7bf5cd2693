"""Everything that is wrong with a configuration: pydantic's errors in our words, and options that exclude one another.

Why: an operator wants to hear of all faults at once. So the values are checked first, each by itself; then, with
defaults in place of the wrong ones, the combinations. Called by proxy.config.models only.

Invariants: a fault stands at the option to change; a conflict is reported only when each of its options is right by
itself, for a default in its place could make a conflict that is not in the file; no fault quotes a secret.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeGuard, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from proxy.config.file import ConfigFaults, Key, Source, merged, nearest, spelt

REASONS = {
    "missing": "is required",
    "model_type": "should be a mapping of options",
    "dict_type": "should be a mapping",
    "tuple_type": "should be a list",
    "string_type": "should be text: write it in quotes",
    "greater_than_equal": "should be at least {ge}",
    "less_than_equal": "should be at most {le}",
}


class Conflict(NamedTuple):
    """Options that cannot be together: the one to change, why, and the others."""

    option: Key
    reason: str
    others: tuple[Key, ...] = ()


M = TypeVar("M", bound=BaseModel)
Conflicts = Callable[[M], Iterable[Conflict]]


def checked(
    model: type[M], source: Source, context: dict[str, Any], stand_in: dict[str, Any], conflicts: Conflicts[M]
) -> M:
    """The values of source as a model; ConfigFaults with everything that is wrong, source's own faults included.

    stand_in: something right for the options without a default, for when combinations are looked at.
    """
    known = {fault.key for fault in source.faults}
    settings: M | None = None
    try:
        settings = model.model_validate(source.values, context=context)
    except ValidationError as error:
        for detail in error.errors(include_url=False, include_input=False):
            # What is missing may be in a file that cannot be read.
            if detail["type"] != "missing" or not source.incomplete:
                key, reason = _explained(model, detail)
                _add(source, key, reason, known)
    if source.wrong:
        try:
            right = merged(_without(source.values, source.wrong), stand_in)
            settings = model.model_validate(right, context=context)
        except ValidationError:
            settings = None
    if settings is not None and not source.incomplete:
        wrong = frozenset(source.wrong)
        for conflict in conflicts(settings):
            if not any(_touches(key, wrong) for key in (conflict.option, *conflict.others)):
                _add(source, conflict.option, conflict.reason, known)
    if source.faults or settings is None:
        raise ConfigFaults(source.faults)
    return settings


def _add(source: Source, key: Key, reason: str, known: set[str]) -> None:
    source.wrong.add(key)
    if spelt(key) not in known:
        source.fault(key, reason)


def _touches(key: Key, wrong: Iterable[Key]) -> bool:
    """Whether the option, what it is a part of, or a part of it is wrong."""
    return any(key[: len(one)] == one[: len(key)] for one in wrong)


def _without(value: Any, wrong: set[Key], here: Key = ()) -> Any:
    """A copy that lacks what is wrong; sections in a list keep their places."""
    if isinstance(value, dict):
        return {k: _without(one, wrong, (*here, k)) for k, one in value.items() if (*here, k) not in wrong}
    if isinstance(value, list) and any(isinstance(one, dict) for one in value):
        return [{} if (*here, n) in wrong else _without(one, wrong, (*here, n)) for n, one in enumerate(value)]
    if isinstance(value, list):
        return [one for n, one in enumerate(value) if (*here, n) not in wrong]
    return value


def _explained(model: type[BaseModel], detail: ErrorDetails) -> tuple[Key, str]:
    """Where and why, in our words."""
    key, kind, context = detail["loc"], detail["type"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        return key, f"unknown option '{key[-1]}'{_known_near(model, key)}"
    if kind == "value_error":
        return tuple(step for step in key if step != "[key]"), str(context["error"])
    if kind == "literal_error":
        return key, f"should be {context['expected']}"
    message = detail["msg"]
    return key, REASONS[kind].format(**context) if kind in REASONS else message[:1].lower() + message[1:]


def _known_near(model: type[BaseModel], key: Key) -> str:
    """The option meant by an unknown one: the closest of its section, or the same word in another section."""
    section = model
    for step in key[:-1]:
        if isinstance(step, str):
            annotation = section.model_fields[step].annotation
            section = next(kind for kind in (annotation, *get_args(annotation)) if _is_section(kind))
    word = str(key[-1])
    if hint := nearest(word, section.model_fields):
        return hint
    for name, option in model.model_fields.items():
        if _is_section(option.annotation) and word in option.annotation.model_fields:
            return f", did you mean '{name}.{word}'?"
    return ""


def _is_section(kind: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
