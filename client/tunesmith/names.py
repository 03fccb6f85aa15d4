"""Names as people write them: short enum values and resource names.

`RUNNING` stands for `JOB_STATE_RUNNING`, `demo-k3f9` for `projects/default/jobs/demo-k3f9`.
"""

import re

from google.protobuf.descriptor import EnumDescriptor

from tunesmith.errors import InvalidArgument

_ULID = re.compile(r"[0-7][0-9a-hjkmnp-tv-z]{25}")


def is_id(text: str) -> bool:
    """Tells whether `text` is an id (a lower-case ULID), not a readable name."""
    return _ULID.fullmatch(text) is not None


def enum_prefix(enum: EnumDescriptor) -> str:
    """Returns what all values of an enum begin with, for example `JOB_STATE_` for JobState."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", enum.name).upper() + "_"


def short(enum: EnumDescriptor, number: int) -> str:
    """Returns the short name of a value, or the number when this client does not know it yet."""
    value = enum.values_by_number.get(number)
    return str(number) if value is None else value.name.removeprefix(enum_prefix(enum))


def value_of(enum: EnumDescriptor, text: str) -> int | None:
    """Returns the number of a value given by its short or full name in any case, or None."""
    name = text.strip().upper().replace("-", "_")
    value = enum.values_by_name.get(enum_prefix(enum) + name) or enum.values_by_name.get(name)
    return None if value is None else value.number


def choices(enum: EnumDescriptor) -> list[str]:
    """Returns the short names a user may write, in lower case, without UNSPECIFIED."""
    return [short(enum, value.number).lower() for value in enum.values if value.number != 0]


def number(field: str, enum: EnumDescriptor, text: str) -> int:
    """Returns the number of a value as `value_of` does. Raises InvalidArgument when there is none."""
    found = value_of(enum, text)
    if not found:
        raise InvalidArgument(
            "FIELD_INVALID",
            f"{text or 'nothing'} is no {field}",
            field=field,
            value=text,
            remedy="use one of " + ", ".join(choices(enum)),
        )
    return found


def resource(project: str, collection: str, name: str) -> str:
    """Returns the full resource name of `name`, which may be full already."""
    return name if "/" in name else f"projects/{project}/{collection}/{name}"


def last_part(name: str) -> str:
    """Returns the part of a resource name after its last slash."""
    return name.rpartition("/")[2]


def model_version(project: str, name: str) -> str:
    """Returns the full name of a model version written as `model@3`, `model/versions/3` or in full."""
    if name.startswith("projects/"):
        return name
    model, _, version = name.partition("@")
    return f"projects/{project}/models/{model}" + (f"/versions/{version}" if version else "")
