r"""Messages of the protocol as the documents that scripts rest on.

Driven by the messages' descriptors, so that a field added to the protocol appears by itself:
field names as they are, integers as integers, times as RFC 3339 in UTC, enums as their words,
unset fields as null, lists always there. Bytes are paths: shown as text, and where they are not
UTF-8 with `\xNN` in it and exactly, in base64, under the same name with `_base64`.
"""

import base64
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, cast

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

Document = dict[str, Any]

# Enums whose words are those of Velero, and so not in lower case.
_CAPITALISED = frozenset({"Phase"})


def document(message: Message) -> Document:
    """All fields of `message`, in the order of their declaration."""
    made: Document = {}
    for declared in message.DESCRIPTOR.fields:
        # The implementation in C has a class of its own, with the same attributes.
        field = cast("FieldDescriptor", declared)
        value = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            made[field.name] = dict(sorted(value.items()))
        elif field.is_repeated:
            _put_list(made, field, list(value))
        elif field.has_presence and not message.HasField(field.name):
            made[field.name] = None
        else:
            _put(made, field, value)
    return made


def documents(messages: Iterable[Message]) -> list[Document]:
    """One document each."""
    return [document(message) for message in messages]


def path_text(path: bytes) -> str:
    r"""The path as text, with `\xNN` for bytes that are not UTF-8."""
    return path.decode("utf-8", "backslashreplace")


def path_fields(name: str, path: bytes) -> Document:
    """The path under `name`, and exactly beside it if the text is not exact."""
    made: Document = {name: path_text(path)}
    if not _is_text(path):
        made[f"{name}_base64"] = _base64(path)
    return made


def time_text(at: Timestamp) -> str | None:
    """RFC 3339 in UTC: microseconds, or nanoseconds where there are any; null if out of range."""
    try:
        moment = datetime.fromtimestamp(at.seconds, UTC)
    except (OverflowError, ValueError, OSError):
        return None
    digits = f"{at.nanos:09d}"
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{digits if at.nanos % 1000 else digits[:6]}Z"


def enum_word(descriptor: EnumDescriptor, number: int) -> str | None:
    """PHASE_PARTIALLY_FAILED is `PartiallyFailed`, CHANGE_DETECTION_SWEEP `sweep`, 0 is null."""
    if number == 0:
        return None
    value = descriptor.values_by_number.get(number)
    if value is None:
        return str(number)
    words = value.name.removeprefix(_enum_prefix(descriptor)).lower().split("_")
    if descriptor.name in _CAPITALISED:
        return "".join(word.capitalize() for word in words)
    return "_".join(words)


def list_field(name: str, paths: Sequence[bytes]) -> Document:
    """A list of paths under a name, and exactly under another where one of them is no text."""
    made: Document = {name: [path_text(path) for path in paths]}
    if not all(_is_text(path) for path in paths):
        made[f"{name}_base64"] = [_base64(path) for path in paths]
    return made


def _put(made: Document, field: FieldDescriptor, value: Any) -> None:
    if field.type == FieldDescriptor.TYPE_BYTES:
        made.update(path_fields(field.name, value))
    else:
        made[field.name] = _value(field, value)


def _put_list(made: Document, field: FieldDescriptor, values: list[Any]) -> None:
    if field.type == FieldDescriptor.TYPE_BYTES:
        made.update(list_field(field.name, values))
    else:
        made[field.name] = [_value(field, value) for value in values]


def _value(field: FieldDescriptor, value: Any) -> Any:
    if field.type == FieldDescriptor.TYPE_ENUM:
        return enum_word(cast("EnumDescriptor", field.enum_type), value)
    if isinstance(value, Timestamp):
        return time_text(value)
    if isinstance(value, Message):
        return document(value)
    return value


def _enum_prefix(descriptor: EnumDescriptor) -> str:
    snake = "".join(f"_{letter}" if letter.isupper() else letter for letter in descriptor.name)
    return snake.lstrip("_").upper() + "_"


def _is_text(path: bytes) -> bool:
    try:
        path.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _base64(path: bytes) -> str:
    return base64.b64encode(path).decode("ascii")
