"""Resource names such as `projects/default/jobs/01k…`, and page tokens."""

import base64
import binascii
import re
from functools import lru_cache

from tunesmith.errors import InvalidArgument

_PART = r"[a-z0-9][a-z0-9._-]{0,127}"


@lru_cache(maxsize=64)
def _pattern(form: str) -> re.Pattern[str]:
    return re.compile("/".join(f"({_PART})" if part == "*" else re.escape(part) for part in form.split("/")))


def parse(form: str, name: str, field: str = "name") -> tuple[str, ...]:
    """Returns the variable parts of a resource name, for example of `projects/*/jobs/*`.

    Raises:
        InvalidArgument: the name does not have the form.
    """
    match = _pattern(form).fullmatch(name)
    if match is None:
        raise InvalidArgument(
            "NAME_INVALID",
            f"{field} must have the form {form}",
            field=field,
            value=name,
            remedy="use lower-case letters, digits, dots, dashes and underscores in each part",
        )
    return match.groups()


def page_size(asked: int, default: int = 50, most: int = 1000) -> int:
    """Returns the number of rows of a page."""
    return min(asked or default, most)


def page_token(scope: str, cursor: str) -> str:
    """Returns an opaque token for the page after `cursor` in the list `scope`."""
    return base64.urlsafe_b64encode(f"{scope}\0{cursor}".encode()).decode().rstrip("=")


def page_cursor(scope: str, token: str) -> str:
    """Returns the cursor in a token, or nothing for the first page.

    Raises:
        InvalidArgument: the token was not made for this list.
    """
    if not token:
        return ""
    try:
        found, _, cursor = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode().partition("\0")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        found, cursor = "", ""
    if found != scope or not cursor:
        raise InvalidArgument(
            "PAGE_TOKEN_INVALID",
            "the page token was not made for this list",
            field="page_token",
            value=token,
            remedy="give back next_page_token as it was, or leave it out for the first page",
        )
    return cursor
