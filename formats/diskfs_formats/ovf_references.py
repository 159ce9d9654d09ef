"""From the href of an OVF descriptor to the file of the appliance that it means. An href is not trusted.

Specification: DMTF DSP0243 1.1.1 and 2.1.1, Open Virtualization Format.
"""

import re
from collections.abc import Container
from urllib.parse import unquote

from diskfs_formats.errors import CorruptImage, UnsafeReference, UnsupportedFeature
from diskfs_formats.tar import normalised_path, path_problem
from diskfs_formats.text import printable

CHUNK_DIGITS = 9
"""A file with a chunkSize is stored as `href.000000000`, `href.000000001`, ..."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")


def resolve_href(href: str, names: Container[str], descriptor_name: str = "", *, where: str = "") -> str:
    """Return the name under which the file of an `href` lies in the appliance.

    Tried in turn: the text as it is, then percent-decoded; each relative to the descriptor's folder, then to the
    appliance's top. `where` names the descriptor in messages. Raises UnsafeReference for URLs and for paths that lead
    out, CorruptImage if there is no such file, UnsupportedFeature if there are only numbered pieces of it.
    """
    shown = printable(href)
    where = where or printable(descriptor_name)
    if _URL.match(href):
        raise UnsafeReference(f"{where}: the href {shown!r} is a URL; only files of the appliance are opened")
    folder = descriptor_name.rpartition("/")[0]
    candidates: dict[str, None] = {}
    for text in (href, unquote(href, errors="surrogateescape")):
        path = normalised_path(text)
        problem = path_problem(text) or path_problem(path)
        if problem is not None:
            raise UnsafeReference(f"{where}: the href {shown!r} may not be used: {problem}")
        candidates.update(dict.fromkeys((f"{folder}/{path}" if folder else path, path)))
    for candidate in candidates:
        if candidate in names:
            return candidate
    for candidate in candidates:
        if chunk_name(candidate, 0) in names:
            raise UnsupportedFeature(
                f"{where}: the file {shown!r} is not in the appliance, but "
                f"{printable(chunk_name(candidate, 0))!r} is, and no chunkSize says how they belong together: it may "
                "be a snapshot"
            )
    raise CorruptImage(f"{where}: the descriptor refers to the file {shown!r}, which is not in the appliance")


def chunk_name(name: str, number: int) -> str:
    """Return the name of one chunk of a file that is stored in chunks."""
    return f"{name}.{number:0{CHUNK_DIGITS}}"
