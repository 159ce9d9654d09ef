"""From a path to a file, where a reader knows only how to look up one name in one folder.

Links are followed inside the root, as a chroot does: an absolute one begins there and `..` of the root is the root.
"""

from collections.abc import Callable
from typing import TypeVar

from diskfs.guest.errors import GuestError
from diskfs.guest.files import MAX_LINKS, MAX_PATH, normalised, split_path

Node = TypeVar("Node")


def resolve(
    path: str,
    root: Node,
    *,
    child: Callable[[Node, str], Node | None],
    target: Callable[[Node], str | None],
    follow: bool,
) -> list[Node] | None:
    """Return the nodes from the root to `path`, or None if a name on the way is missing.

    `child` looks a name up in a node (None: not there, or no folder), `target` tells where a link leads (None: no
    link). Raises GuestError after `MAX_LINKS` links, or if they make the path longer than `MAX_PATH`.
    """
    todo = list(reversed(normalised(path)))
    trail = [root]
    links = 0
    while todo:
        name = todo.pop()
        if name == "..":
            if len(trail) > 1:
                trail.pop()
            continue
        node = child(trail[-1], name)
        if node is None:
            return None
        leads = target(node) if todo or follow else None
        if leads is None:
            trail.append(node)
            continue
        links += 1
        if links > MAX_LINKS:
            raise GuestError(f"{path}: over {MAX_LINKS} links are on the way; they lead in a circle")
        if leads.startswith("/"):
            trail = [root]
        todo += reversed(split_path(leads))
        if sum(map(len, todo)) + len(todo) > MAX_PATH:
            raise GuestError(f"{path}: with its links filled in it is over {MAX_PATH} characters long")
    return trail
