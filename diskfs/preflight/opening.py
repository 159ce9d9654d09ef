"""From a location and a request to the facts: a source that cannot be opened is one to report on, too."""

from collections.abc import Sequence

from diskfs.disks.opening import open_source
from diskfs.errors import SourceError
from diskfs.preflight.facts import Facts
from diskfs.preflight.request import Request
from diskfs.sources.locate import open_location
from diskfs.sources.locations import RemoteOptions
from diskfs_formats.errors import DiskfsError


def open_facts(
    location: str,
    request: Request,
    *,
    format_name: str | None = None,
    parents: Sequence[str] = (),
    deep: bool = False,
    remote: RemoteOptions | None = None,
) -> Facts:
    """Open a source for the rules; with `deep`, a rule may read all of it.

    Raises SourceError if the file cannot be read; that its content cannot be understood is a fact for the rules.
    """
    try:
        opened = open_source(location, format_name=format_name, parents=parents, remote=remote)
    except SourceError:
        raise
    except DiskfsError as error:
        return Facts(request, location, None, opening_error=error, stored=open_location(location, remote), deep=deep)
    return Facts(request, location, opened, deep=deep)
