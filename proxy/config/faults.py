"""Everything that is wrong with a configuration: pydantic's errors in our words, and what cannot be together.

Why: pydantic gives a section up at its first wrong option, so that combinations are looked at only when everything else
is right; an operator wants to hear of both at once. Called by proxy.config.models only.

Invariants: a fault stands at the option to change; a combination is reported only when each of its options is right by
itself, for a default in its place could make trouble that is not in the file; no fault quotes a secret.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple, TypeGuard, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from proxy.config.file import ConfigFaults, Key, Source, nearest, spelt

M = TypeVar("M", bound=BaseModel)

REASONS = {
    "missing": "is required",
    "model_type": "should be a mapping of options",
    "model_attributes_type": "should be a mapping of options",
    "dict_type": "should be a mapping",
    "tuple_type": "should be a list",
    "string_type": "should be text: write it in quotes",
    "greater_than_equal": "should be at least {ge}",
    "less_than_equal": "should be at most {le}",
}
_CONFLICT = "conflict"


class Conflict(NamedTuple):
    """Options that cannot be together: the one to change, why, and the others."""

    option: Key
    reason: str
    others: tuple[Key, ...] = ()


def impossible(found: list[Conflict]) -> PydanticCustomError:
    """What a validator raises for conflicts; their keys are those below its section."""
    text = "; ".join(f"{spelt(one.option)}: {one.reason}" for one in found)
    return PydanticCustomError(_CONFLICT, "{text}", {"text": text, "found": found})


def checked(model: type[M], source: Source, context: dict[str, Any], required: Mapping[Key, object]) -> M:
    """The values of source as a model; ConfigFaults with everything that is wrong, source's own faults included.

    required: something right for each option without a default, to stand in for it while combinations are looked at.
    """
    known = {fault.key for fault in source.faults}
    wrong = set(source.wrong)
    try:
        settings = model.model_validate(source.values, context=context)
    except ValidationError as error:
        details = _details(error)
    else:
        if source.faults:
            raise ConfigFaults(source.faults)
        return settings
    for detail in details:
        if detail["type"] != _CONFLICT and not (detail["type"] == "missing" and source.incomplete):
            key, reason = _explained(model, detail)
            if spelt(key) not in known:
                source.fault(key, reason)
            wrong.add(key)
    if not source.incomplete:  # what a combination lacks may be in the file that is missing
        for conflict in _conflicts(model, source.values, context, required, wrong):
            if spelt(conflict.option) not in known:
                source.fault(conflict.option, conflict.reason)
    raise ConfigFaults(source.faults)


def _conflicts(
    model: type[BaseModel],
    values: dict[str, Any],
    context: dict[str, Any],
    required: Mapping[Key, object],
    wrong: set[Key],
) -> Iterator[Conflict]:
    """The conflicts among what is not wrong, with whole keys; those between sections come after those inside."""
    while True:
        try:
            model.model_validate(_without(values, wrong, required), context=context)
        except ValidationError as error:
            found = [
                Conflict((*at, *one.option), one.reason, tuple((*at, *other) for other in one.others))
                for at, one in _named(_details(error))
            ]
        else:
            return
        real = [one for one in found if not any(_touches(key, wrong) for key in (one.option, *one.others))]
        yield from real
        # What is left out next, for the section to be looked at as a part: the option, and if its default is no better,
        # the others.
        more = {one.option for one in real}.union(*({one.option, *one.others} for one in found if one not in real))
        if more <= wrong:
            return
        wrong |= more


def _details(error: ValidationError) -> list[ErrorDetails]:
    return error.errors(include_url=False, include_input=False)


def _named(details: list[ErrorDetails]) -> Iterator[tuple[Key, Conflict]]:
    for detail in details:
        if detail["type"] == _CONFLICT:
            for one in detail["ctx"]["found"]:
                yield detail["loc"], one


def _touches(key: Key, wrong: Collection[Key]) -> bool:
    """Whether the option, what it is a part of, or a part of it is wrong."""
    return any(key[: len(one)] == one[: len(key)] for one in wrong)


def _without(values: dict[str, Any], wrong: Collection[Key], required: Mapping[Key, object]) -> dict[str, Any]:
    """A copy that lacks what is wrong and has what is required."""

    def copy(value: Any, here: Key) -> Any:
        if isinstance(value, dict):
            return {name: copy(one, (*here, name)) for name, one in value.items() if (*here, name) not in wrong}
        if isinstance(value, list):
            places = [(*here, n) for n in range(len(value))]
            if any(isinstance(one, dict) for one in value):  # sections, which keep their places
                return [{} if place in wrong else copy(one, place) for place, one in zip(places, value, strict=True)]
            return [one for place, one in zip(places, value, strict=True) if place not in wrong]
        return value

    left: dict[str, Any] = copy(values, ())
    for key, value in required.items():
        section: dict[Any, Any] = left
        for step in key[:-1]:
            section[step] = section = section.get(step) or {}  # an empty section is None
        section[key[-1]] = value
    return left


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
    elsewhere = [
        f"{name}.{word}"
        for name, option in model.model_fields.items()
        if _is_section(option.annotation) and word in option.annotation.model_fields
    ]
    return f", did you mean '{elsewhere[0]}'?" if elsewhere else ""


def _is_section(kind: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
