"""The tree alone, without a kernel."""

import pytest

from diskfs.fuse.tree import ROOT_INODE, Directory, File, Tree
from diskfs_formats.source import MemorySource


def a_file(name: str, data: bytes = b"x") -> File:
    return File(name, MemorySource(data, name))


def test_inodes_are_numbered_breadth_first_in_the_order_given() -> None:
    tree = Tree.build([a_file("b"), Directory("d", (a_file("inner"),)), a_file("a")])
    numbers = {node.name: node.inode for node in tree}
    assert numbers == {"": 1, "b": 2, "d": 3, "a": 4, "inner": 5}


def test_child_finds_files_folders_dot_and_dotdot() -> None:
    tree = Tree.build([Directory("d", (a_file("inner"),))])
    folder = tree.child(ROOT_INODE, "d")
    assert folder is not None
    inner = tree.child(folder.inode, "inner")
    assert inner is not None
    assert inner.name == "inner"
    assert tree.child(folder.inode, "..") is tree.root
    assert tree.child(folder.inode, ".") is folder
    assert tree.child(ROOT_INODE, "..") is tree.root


def test_unknown_names_and_inodes_are_none() -> None:
    tree = Tree.build([a_file("a")])
    assert tree.child(ROOT_INODE, "b") is None
    assert tree.child(99, "a") is None
    assert tree.node(99) is None


def test_two_entries_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two entries"):
        Tree.build([a_file("a"), a_file("a")])
