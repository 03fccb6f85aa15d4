"""Addresses a webhook may go to, and the one connection that goes exactly there.

The name is resolved once; every address it has must be public, and the connection is made to one of them, so
that a name which changes its answer leads nowhere else. Redirects are not followed.
"""

import http.client
import ipaddress
import socket
import ssl
import threading
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from tunesmith.errors import InvalidArgument

_SECONDS = 10.0
_MOST_BYTES = 64 * 1024
# Networks whose addresses carry others in them: what they lead to is not seen in the address.
_CARRIERS = [
    ipaddress.ip_network(text) for text in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")
]

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Refused(Exception):
    """The target is not allowed or did not take the message; says why in words for people."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the receiver said."""

    status: int
    text: str


def check_url(url: str, private: bool) -> SplitResult:
    """Takes an address apart; `InvalidArgument` for one that can never be used."""
    problem = ""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        parts, host, problem = urlsplit(""), "", "is no valid address"
    if not problem and (parts.scheme not in ("http", "https") or not host):
        problem = "is no http(s) address"
    elif parts.username is not None or parts.password is not None:
        problem = "holds a user or password"
    elif any(ord(char) <= 32 or ord(char) >= 127 for char in url):
        problem = "holds a character that addresses do not have"
    elif not private and (address := _literal(host)) is not None and not is_public(address):
        problem = "is a private address"
    if problem:
        remedy = "give a public address such as https://example.org/hook"
        raise InvalidArgument(
            "FIELD_INVALID", f"the address {problem}", field="channel.webhook.url", value=url, remedy=remedy
        )
    return parts


def is_public(address: Address) -> bool:
    """Whether an address lies in the open internet."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if any(address in network for network in _CARRIERS):
            return False
    return address.is_global and not address.is_multicast


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None


def resolve(host: str, port: int, private: bool) -> str:
    """One address of a host, all of which are allowed; raises `Refused`."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise Refused(f"the name {host} is not known: {error.strerror or error}") from None
    addresses = [str(entry[4][0]) for entry in found]
    for text in addresses:
        address = _literal(text)
        if not private and (address is None or not is_public(address)):
            raise Refused(f"{host} leads to the private address {text}, which the server does not allow")
    return addresses[0]


def leads_inside(host: str) -> bool:
    """Whether a name has an address that is not public; of what is no name (a token) it is not so."""
    try:
        found = socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    addresses = [_literal(str(entry[4][0])) for entry in found]
    return any(address is None or not is_public(address) for address in addresses)


def post(url: str, body: bytes, headers: dict[str, str], private: bool) -> Answer:
    """Sends a POST request and returns the answer, cut at 64 kB; it takes 10 s at most. Raises `Refused`."""
    parts = check_url(url, private)
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    connection = _Pinned(host, port, resolve(host, port, private), parts.scheme == "https")
    timer = threading.Timer(_SECONDS, connection.cut)
    timer.daemon = True
    timer.start()
    try:
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        return Answer(answer.status, answer.read(_MOST_BYTES).decode("utf-8", "replace"))
    except (OSError, http.client.HTTPException) as error:
        cause = "it took longer than 10 s" if connection.was_cut else str(error) or type(error).__name__
        raise Refused(f"the request to {host} failed: {cause}") from None
    finally:
        timer.cancel()
        connection.close()


class _Pinned(http.client.HTTPConnection):
    """A connection to one address of a host, whatever the name says meanwhile."""

    def __init__(self, host: str, port: int, address: str, secure: bool) -> None:
        super().__init__(host, port, timeout=_SECONDS)
        self._address, self._secure = address, secure
        self.default_port = 443 if secure else 80  # decides whether the Host header names the port
        self.was_cut = False

    def connect(self) -> None:
        """Connects to the address; the certificate must be the host's."""
        plain = socket.create_connection((self._address, self.port), _SECONDS)
        self.sock = plain
        if self._secure:
            context = ssl.create_default_context()
            self.sock = context.wrap_socket(plain, server_hostname=self.host)

    def cut(self) -> None:
        """Ends a connection that takes too long."""
        self.was_cut = True
        if self.sock is not None:
            try:
                self.sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                self.sock.close()
