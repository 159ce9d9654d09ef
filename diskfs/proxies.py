"""Which proxy an http:// or https:// URL is reached by, from the environment, as curl and the aws command take it.

HTTP_PROXY and HTTPS_PROXY are for URLs of that scheme, ALL_PROXY for those that have none of their own, and NO_PROXY
names hosts that are reached directly; a name in small letters counts before the same in capitals. What a proxy's URL
says before the host is a secret: nothing here shows it.
"""

import base64
import ipaddress
import re
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies_environment

from diskfs.errors import SourceError
from diskfs_formats.errors import UnsupportedFeature
from diskfs_formats.text import printable

_PORTS = {"http": 80, "https": 443}
_ENTRY = re.compile(r"\*?\.?(\[[0-9a-f:.]+\]|[0-9a-f:]*:[0-9a-f:.]*:[0-9a-f:.]*|[^:\[\]]+?)\.?(?::([0-9]{1,5}))?")
"""An entry of NO_PROXY: a name or an address, and perhaps a port, which only an address in brackets can have."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy, and the variable that names it. `authorization` is what it is to be sent, None for nothing."""

    scheme: str
    host: str
    port: int
    variable: str
    authorization: str | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        """Without user and password."""
        return f"{self.scheme}://{bracketed(self.host)}:{self.port}"

    def __str__(self) -> str:
        return printable(f"{bracketed(self.host)}:{self.port}", 200)


def bracketed(host: str) -> str:
    """Return a host as it stands in a URL."""
    return f"[{host}]" if ":" in host else host


def proxy_for(scheme: str, host: str, port: int, shown: str) -> Proxy | None:
    """Return the proxy by which to reach a host, None if there is none to use.

    `shown` is the location as messages may have it. Raises SourceError for what is no proxy, UnsupportedFeature for a
    kind of proxy.
    """
    proxies = getproxies_environment()
    kind = scheme if proxies.get(scheme) else "all"
    value = proxies.get(kind)
    if not value or is_exempt(host, port, proxies.get("no", "")):
        return None
    variable = f"{kind.upper()}_PROXY"
    # As for curl and aws: without a scheme it is http.
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", value):
        value = "http://" + value.removeprefix("//")
    try:
        parts = urlsplit(value)
        name, number = parts.hostname, parts.port
    except ValueError as error:
        # What it says is not shown: it may have a password in it.
        raise SourceError(f"{shown}: the environment's {variable} is no URL of a proxy") from error
    kind = parts.scheme.lower()
    if kind not in _PORTS:
        raise UnsupportedFeature(
            f"{shown}: the environment's {variable} names a proxy of the kind {printable(kind, 20)}; only http:// and "
            "https:// are supported. Name such a one, or reach the host directly with NO_PROXY"
        )
    if not name or any(character.isspace() or ord(character) < 32 for character in value):
        raise SourceError(f"{shown}: the environment's {variable} is no URL of a proxy, http://HOST:PORT")
    authorization = None
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = "Basic " + base64.b64encode(pair.encode("utf-8", "surrogateescape")).decode()
    return Proxy(kind, name, number or _PORTS[kind], variable, authorization)


def is_exempt(host: str, port: int, no_proxy: str) -> bool:
    """Tell whether NO_PROXY has a host: `*`, a name or a domain that it lies in, with or without a port, an address, or
    a network (`10.0.0.0/8`), between commas or spaces.
    """
    host = host.lower().rstrip(".")
    address = _address(host)
    for entry in re.split(r"[,\s]+", no_proxy.lower()):
        if entry == "*":
            return True
        if address is not None:
            network = _network(entry)
            if network is not None and address in network:
                return True
        match = _ENTRY.fullmatch(entry)
        if match is None or match[2] not in {None, str(port)}:
            continue
        name = match[1].strip("[]")
        if host == name or (host.endswith("." + name) if address is None else address == _address(name)):
            return True
    return False


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    if "/" not in text:
        return None
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None
