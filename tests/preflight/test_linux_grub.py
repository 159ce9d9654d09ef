"""GRUB's configurations: the entry and kernel that are booted by default, as the manual and grub-mkconfig have it."""

import subprocess
from pathlib import Path

import pytest

from diskfs.preflight.linux.grub_config import run_config
from diskfs.preflight.linux.grub_legacy import parse_legacy, select_legacy
from diskfs.preflight.linux.grub_menu import MAX_ENTRIES, GrubMenu, matches, select_default
from diskfs.preflight.linux.grub_script import MAX_NESTING, MAX_TOKENS, parse_script
from diskfs.preflight.linux.grubenv import bls_menu, parse_bls, parse_grubenv
from tests.preflight.linux_guest import CONFIG, RELEASE, ROOT_UUID

CFG = "/boot/grub/grub.cfg"
MENU = """
menuentry 'one' --id first { linux /vmlinuz-1 root=/dev/sda1 quiet ; initrd /initrd-1 }
submenu 'more' --id sub {
  menuentry 'two' --id second { linux /vmlinuz-2 }
  menuentry 'three > x' { linux /vmlinuz-3 }
}
menuentry "four" { linuxefi ($root)/vmlinuz-4 a=b; initrdefi /ucode.img /initrd-4 }
"""


def _run(text: str, environment: dict[str, str] | None = None, files: dict[str, str] | None = None) -> GrubMenu:
    return run_config(text, CFG, read=(files or {}).get, environment=environment or {})


def _kernel(text: str, environment: dict[str, str] | None = None) -> str:
    entry = select_default(_run(text, environment, {"/boot/grub/grubenv": "x"}))
    assert entry is not None
    return entry.kernel


def test_the_configuration_of_debian_boots_its_first_entry() -> None:
    menu = _run(CONFIG.read_text(), files={f"{CFG.rpartition('/')[0]}/grubenv": "x"})
    entry = select_default(menu)
    assert entry is not None
    assert entry.title == "Debian GNU/Linux"
    assert entry.kernel == f"/boot/vmlinuz-{RELEASE}"
    assert entry.initrds == (f"/boot/initrd.img-{RELEASE}",)
    assert f"root=UUID={ROOT_UUID}" in entry.options.split()
    assert "net.ifnames=0" in entry.options.split()
    lines = CONFIG.read_text().split("\n")
    assert lines[entry.line - 1].startswith("menuentry 'Debian GNU/Linux'")
    assert lines[entry.kernel_line - 1].strip().startswith("linux\t")
    assert [one.title for one in menu.entries] == ["Debian GNU/Linux", "Advanced options for Debian GNU/Linux"]
    assert len(menu.entries[1].children) == 2
    assert menu.problems == []
    assert menu.searched_uuids[0] == ROOT_UUID


def test_grub_script_check_agrees_that_the_samples_are_scripts(tmp_path: Path) -> None:
    for text in (CONFIG.read_text(), MENU):
        path = tmp_path / "grub.cfg"
        path.write_text(text)
        subprocess.run(["grub-script-check", path], check=True)
        assert parse_script(text).problems == []


@pytest.mark.parametrize(
    ("default", "kernel"),
    [
        ("0", "/vmlinuz-1"), ("first", "/vmlinuz-1"), ("one", "/vmlinuz-1"), ("2", "/vmlinuz-4"),
        ("four", "/vmlinuz-4"),
        ("1>0", "/vmlinuz-2"), ("sub>second", "/vmlinuz-2"), ("more>1", "/vmlinuz-3"), ("1>three >> x", "/vmlinuz-3"),
        ("1", "/vmlinuz-2"), ("7", "/vmlinuz-1"), ("nowhere", "/vmlinuz-1"), ("", "/vmlinuz-1"),
    ],
)  # fmt: skip
def test_default_names_an_entry_by_number_id_or_title(default: str, kernel: str) -> None:
    assert _kernel(f'set default="{default}"\n{MENU}') == kernel


SAVED = """
if [ -s $prefix/grubenv ]; then load_env; fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   set next_entry=
   save_env next_entry
else
   set default="${saved_entry}"
fi
"""


@pytest.mark.parametrize(
    ("environment", "kernel"),
    [
        ({}, "/vmlinuz-1"),
        ({"saved_entry": "four"}, "/vmlinuz-4"),
        ({"saved_entry": "four", "next_entry": "sub>second"}, "/vmlinuz-2"),
    ],
)
def test_the_saved_and_the_next_entry_come_from_the_environment(environment: dict[str, str], kernel: str) -> None:
    assert _kernel(SAVED + MENU, environment) == kernel
    assert _run(SAVED + MENU, environment).default_from_saved


def test_conditions_choose_between_branches() -> None:
    text = 'if [ x$a = xy -o "$b" != "" ]; then set default=2; elif [ ! -e /x ]; then set default=sub; '
    text += "else set default=0; fi"
    assert _run(f"a=y\n{text}").default == "2"
    assert _run(f"set b=1\n{text}").default == "2"
    assert _run(text).default == "sub"
    assert _run(text, files={"/x": ""}).default == "0"


def test_what_an_entry_sets_does_not_count_for_the_menu() -> None:
    assert _run("set default=0\nmenuentry 'x' { set default=5 }").default == "0"


def test_another_configuration_is_followed() -> None:
    menu = _run("configfile ($root)/boot/grub/custom.cfg", files={"/boot/grub/custom.cfg": MENU})
    assert menu.configfiles == [("/boot/grub/custom.cfg", 1)]
    assert len(menu.entries) == 3


def test_the_kernel_behind_a_hypervisor() -> None:
    text = (
        "menuentry Xen { multiboot2 /boot/xen.gz x ; module2 /boot/vmlinuz-1 a=b ; module2 --nounzip /boot/initrd-1 }"
    )
    (entry,) = _run(text).entries
    assert (entry.kernel, entry.options, entry.initrds) == ("/boot/vmlinuz-1", "a=b", ("/boot/initrd-1",))


def test_matching_follows_submenus() -> None:
    entries = _run(MENU).entries
    assert matches(entries, "sub>second")
    assert not matches(entries, "sub>third")


# Hostile


def test_configurations_that_lead_to_themselves_end() -> None:
    menu = _run("source /a", files={"/a": "source /a"})
    assert any("lead to each other" in problem for problem in menu.problems)


def test_a_function_that_calls_itself_ends() -> None:
    assert _run("function f { f; f; }\nf").problems


def test_nesting_is_bounded() -> None:
    assert _run("if true; then " * (MAX_NESTING + 10)).problems
    assert _run("{" * 100_000).problems
    assert not parse_script("if true; then " * (MAX_NESTING - 1) + "set a=b; " + "fi; " * (MAX_NESTING - 1)).problems


def test_doubling_variables_end() -> None:
    menu = _run("set a=xxxxxxxx\n" + 'set a="$a$a"\n' * 100)
    assert any("longer than" in problem for problem in menu.problems)


def test_entries_and_words_are_bounded() -> None:
    menu = _run("menuentry x { true }\n" * (MAX_ENTRIES + 1))
    assert len(menu.entries) == MAX_ENTRIES
    assert any("the rest was not looked at" in problem for problem in parse_script("a " * (MAX_TOKENS + 1)).problems)


def test_open_quotes_and_blocks_are_problems_and_what_was_before_counts() -> None:
    for end in ('"', "'", "${", "menuentry x {", "if"):
        menu = _run(f"set default=3\n{end}")
        assert menu.default == "3"


# Environment block and BLS


def test_grubenv_is_what_grub_editenv_writes(tmp_path: Path) -> None:
    path = tmp_path / "grubenv"
    subprocess.run(["grub-editenv", path, "create"], check=True)
    subprocess.run(["grub-editenv", path, "set", "saved_entry=a b\\c", "kernelopts=root=UUID=1 ro"], check=True)
    environment = parse_grubenv(path.read_bytes(), "/grubenv")
    assert environment.values == {"saved_entry": "a b\\c", "kernelopts": "root=UUID=1 ro"}
    assert environment.problem == ""
    assert "1023 bytes" in parse_grubenv(path.read_bytes()[:-1], "/grubenv").problem
    assert "begin" in parse_grubenv(bytes(1024), "/grubenv").problem


def test_bls_entries_are_shown_newest_first_with_variables_filled_in() -> None:
    ids = ["m-4.18.0-80.el8", "m-4.18.0-193.el8", "m-4.18.0-80.1.2.el8", "m-0-rescue"]
    entries = [
        parse_bls(
            f"title T {name}\nlinux /vmlinuz-{name}\ninitrd /i-{name} $tuned\noptions $kernelopts x\n",
            f"/e/{name}.conf",
        )
        for name in ids
    ]
    menu = bls_menu(entries, {"kernelopts": "root=/dev/sda1"})
    assert [one.id for one in menu] == ["m-4.18.0-193.el8", "m-4.18.0-80.1.2.el8", "m-4.18.0-80.el8", "m-0-rescue"]
    assert menu[0].options == "root=/dev/sda1 x"
    assert menu[0].initrds == ("/i-m-4.18.0-193.el8",)


# GRUB Legacy

LEGACY = """default={}
timeout=5
splashimage=(hd0,0)/grub/splash.xpm.gz
title CentOS (2.6.32-754.el6.x86_64)
\troot (hd0,0)
\tkernel /vmlinuz-2.6.32-754.el6.x86_64 ro root=UUID=1 rhgb
\tinitrd /initramfs-2.6.32-754.el6.x86_64.img
title Xen
\troot (hd0,0)
\tkernel /xen.gz-2.6.18 dom0_mem=1G
\tmodule /vmlinuz-2.6.18xen ro root=/dev/sda2
\tmodule /initrd-2.6.18xen.img
title Other
\trootnoverify (hd0,1)
\tchainloader +1
"""


@pytest.mark.parametrize(
    ("default", "saved", "title"),
    [("0", None, "CentOS"), ("1", None, "Xen"), ("saved", "2\n", "Other"), ("9", None, "CentOS")],
)  # fmt: skip
def test_the_default_of_a_legacy_menu(default: str, saved: str | None, title: str) -> None:
    entry = select_legacy(parse_legacy(LEGACY.format(default), "/boot/grub/menu.lst"), saved)
    assert entry is not None
    assert entry.title.split()[0] == title


def test_the_kernels_of_a_legacy_menu() -> None:
    menu = parse_legacy(LEGACY.format(0), "/boot/grub/menu.lst")
    assert [(one.kernel, one.options, one.initrds, one.chainloads) for one in menu.entries] == [
        ("/vmlinuz-2.6.32-754.el6.x86_64", "ro root=UUID=1 rhgb", ("/initramfs-2.6.32-754.el6.x86_64.img",), ""),
        ("/vmlinuz-2.6.18xen", "ro root=/dev/sda2", ("/initrd-2.6.18xen.img",), ""),
        ("", "", (), "+1"),
    ]
    assert (menu.timeout, menu.default_line) == ("5", 1)
