"""What a grub.cfg does: the menu that it makes, and the kernels that its entries load.

The script is run with every command that does not bear on that left out. Conditions on files and variables are decided
as GRUB would on this disk; a command that is not known succeeds. Steps are bounded.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from diskfs.preflight.linux.grub_menu import MAX_ENTRIES, GrubMenu, MenuEntry, device_free
from diskfs.preflight.linux.grub_script import Command, If, Loop, Statement, Word, parse_script

MAX_STEPS = 20_000
MAX_CALLS = 20
MAX_SOURCED = 8
MAX_VALUE = 16 << 10
"""Characters of a variable: kernel options are at most 4,096."""


LINUX_COMMANDS = frozenset({"linux", "linux16", "linuxefi", "linux32"})
MODULE_COMMANDS = frozenset({"module", "module2"})
"""Behind `multiboot` of a hypervisor: the first one loads the kernel, the second the initramfs."""
INITRD_COMMANDS = frozenset({"initrd", "initrd16", "initrdefi", "initrd32"})


ReadText = Callable[[str], "str | None"]
"""Returns the text of a file by its path in GRUB's view without the device, or None if there is none."""


def run_config(
    text: str,
    path: str,
    *,
    read: ReadText,
    environment: Mapping[str, str],
    exists: Callable[[str], bool] | None = None,
    bls_entries: Callable[[Mapping[str, str]], Sequence[MenuEntry]] | None = None,
    platform: str = "pc",
) -> GrubMenu:
    """Run the configuration that stands at `path`; `environment` is what grubenv holds. Never raises.

    `exists` tells whether there is a file, where that is cheaper than to read it.
    """
    run = _Run(read, exists or (lambda wanted: read(wanted) is not None), environment, bls_entries, platform)
    run.source(text, path)
    run.menu.timeout = run.menu.variables.get("timeout", "")
    return run.menu


class _Stop(Exception):
    """A limit was reached."""


class _Run:
    def __init__(
        self,
        read: ReadText,
        exists: Callable[[str], bool],
        environment: Mapping[str, str],
        bls_entries: Callable[[Mapping[str, str]], Sequence[MenuEntry]] | None,
        platform: str,
    ) -> None:
        self.menu = GrubMenu()
        self._read = read
        self._exists = exists
        self._environment = environment
        self._bls = bls_entries
        self._platform = platform
        self._steps = 0
        self._depth = 0
        self._sourced = 0
        self._functions: dict[str, tuple[Statement, ...]] = {}
        self._entries = self.menu.entries
        self._entry: dict[str, object] | None = None
        self._path = ""
        self._from_environment = False

    def source(self, text: str, path: str) -> None:
        script = parse_script(text)
        self.menu.problems += [f"{path}: {problem}" for problem in script.problems]
        folder = path.rpartition("/")[0]
        variables = self.menu.variables
        variables.setdefault("prefix", folder)
        variables.setdefault("root", "hd0")
        variables.setdefault("grub_platform", self._platform)
        variables.setdefault("grub_cpu", "x86_64" if self._platform == "efi" else "i386")
        for feature in (
            "menuentry_id",
            "default_font_path",
            "timeout_style",
            "platform_search_hint",
            "all_video_module",
        ):
            variables.setdefault(f"feature_{feature}", "y")
        variables["config_directory"] = folder
        outer, self._path = self._path, path
        try:
            self._run_all(script.statements)
        except _Stop as stop:
            self.menu.problems.append(f"{path}: {stop}")
        finally:
            self._path = outer

    def _run_all(self, statements: Sequence[Statement]) -> bool:
        result = True
        self._depth += 1
        if self._depth > MAX_CALLS * 4:
            raise _Stop("functions or blocks call each other too deep")
        try:
            for statement in statements:
                result = self._run_one(statement)
        finally:
            self._depth -= 1
        return result

    def _run_one(self, statement: Statement) -> bool:
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise _Stop(f"it takes over {MAX_STEPS} steps")
        if isinstance(statement, If):
            for condition, body in statement.branches:
                if self._run_all(condition):
                    return self._run_all(body)
            return self._run_all(statement.otherwise)
        if isinstance(statement, Loop):
            return self._run_all(statement.body)
        if statement.body is not None:
            return self._block(statement, statement.body)
        words = self._expand(statement.words)
        if not words:
            return True
        return self._command(words, statement)

    def _block(self, command: Command, body: tuple[Statement, ...]) -> bool:
        words = self._expand(command.words)
        name = words[0] if words else ""
        if name == "function" and len(words) > 1:
            self._functions[words[1]] = body
        elif name in {"menuentry", "submenu"}:
            if len(self._entries) >= MAX_ENTRIES:
                raise _Stop(f"the menu has over {MAX_ENTRIES} entries")
            self._entries.append(self._menu_entry(name, words[1:], command, body))
        return True

    def _menu_entry(self, name: str, words: list[str], command: Command, body: tuple[Statement, ...]) -> MenuEntry:
        title, entry_id, index = "", "", 0
        while index < len(words):
            word = words[index]
            if word == "--id" and index + 1 < len(words):
                entry_id = words[index + 1]
                index += 1
            elif word.startswith("--id="):
                entry_id = word[5:]
            elif word in {"--class", "--users", "--hotkey", "--source"}:
                index += 1
            elif not word.startswith("--") and not title:
                title = word
            index += 1
        entry = MenuEntry(title, entry_id or title, command.line, self._path, is_submenu=name == "submenu")
        kept = dict(self.menu.variables)
        lines, from_saved = list(self.menu.default_lines), self.menu.default_from_saved
        try:
            if entry.is_submenu:
                outer, self._entries = self._entries, []
                try:
                    self._run_all(body)
                    return replace(entry, children=tuple(self._entries))
                finally:
                    self._entries = outer
            outer_entry, self._entry = self._entry, {}
            try:
                self._run_all(body)
                loaded = self._entry
            finally:
                self._entry = outer_entry
            return replace(entry, **loaded)  # type: ignore[arg-type]  # the names below are its fields
        finally:
            # A menu entry runs when it is chosen: what it sets does not count for the menu.
            self.menu.variables = kept
            self.menu.default_lines, self.menu.default_from_saved = lines, from_saved

    def _command(self, words: list[str], command: Command) -> bool:
        name, arguments = words[0], words[1:]
        if name in {"[", "test"}:
            return self._test(arguments[:-1] if name == "[" and arguments[-1:] == ["]"] else arguments)
        if name == "!":
            return not (self._command(arguments, command) if arguments else True)
        if name in {"false", "cmostest"}:
            return False
        if name == "set" and arguments:
            self._set(arguments[0], command)
        elif name.partition("=")[0].isidentifier() and "=" in name:
            self._set(name, command)
        elif name == "unset" and arguments:
            self.menu.variables.pop(arguments[0], None)
        elif name == "load_env":
            self._load_env(arguments)
        elif name in {"source", ".", "configfile", "extract_entries_configfile"} and arguments:
            return self._source_file(name, arguments[-1], command.line)
        elif name == "blscfg":
            self._blscfg(command.line)
        elif name.startswith("search"):
            self._search(name, arguments)
        elif name in self._functions:
            return self._run_all(self._functions[name])
        elif self._entry is not None:
            self._load(name, arguments, command.line)
        return True

    def _set(self, assignment: str, command: Command) -> None:
        name, separator, value = assignment.partition("=")
        if not separator:
            return
        if len(value) > MAX_VALUE or len(self.menu.variables) > 4_000:
            raise _Stop(f"line {command.line}: a variable is longer than {MAX_VALUE} characters")
        self.menu.variables[name] = value
        if name == "default":
            self.menu.default_lines.append(command.line)
            used = {part.text for word in command.words for part in word.parts if part.is_variable}
            self.menu.default_from_saved = bool(used & {"saved_entry", "next_entry"})

    def _load_env(self, arguments: list[str]) -> None:
        names = [word for word in arguments if not word.startswith("-") and "/" not in word]
        for key, value in self._environment.items():
            if not names or key in names:
                self.menu.variables[key] = value

    def _source_file(self, name: str, target: str, line: int) -> bool:
        path = device_free(target)
        if name == "configfile":
            self.menu.configfiles.append((path, line))
        text = self._read(path)
        if text is None:
            return False
        self._sourced += 1
        if self._sourced > MAX_SOURCED:
            raise _Stop(f"line {line}: over {MAX_SOURCED} configuration files lead to each other")
        self.source(text, path)
        return True

    def _blscfg(self, line: int) -> None:
        self.menu.uses_blscfg = True
        self.menu.blscfg_line = self.menu.blscfg_line or line
        if self._bls is not None:
            self._entries += list(self._bls(self.menu.variables))[: MAX_ENTRIES - len(self._entries)]

    def _search(self, name: str, arguments: list[str]) -> None:
        by_uuid = name == "search.fs_uuid" or "--fs-uuid" in arguments or "-u" in arguments
        values = [word for word in arguments if not word.startswith("-")]
        if by_uuid and values:
            self.menu.searched_uuids += [word for word in values if word != "root"][-1:]

    def _load(self, name: str, arguments: list[str], line: int) -> None:
        entry = self._entry
        assert entry is not None
        if name in LINUX_COMMANDS and arguments:
            entry.update(
                kernel=device_free(arguments[0]), options=" ".join(arguments[1:])[:MAX_VALUE], kernel_line=line
            )
        elif name in MODULE_COMMANDS and arguments:
            words = [word for word in arguments if not word.startswith("--")]
            if "kernel" not in entry and words:
                entry.update(kernel=device_free(words[0]), options=" ".join(words[1:])[:MAX_VALUE], kernel_line=line)
            else:
                entry["initrds"] = tuple(device_free(word) for word in words[:1])
        elif name in INITRD_COMMANDS and arguments:
            entry["initrds"] = tuple(device_free(word) for word in arguments[:16])
        elif name == "chainloader" and arguments:
            entry["chainloads"] = arguments[-1]

    def _test(self, words: list[str]) -> bool:
        """Evaluate `[ ... ]`: -a and -o from left to right, as GRUB does without parentheses."""
        result, operator, index = True, "-a", 0
        while index < len(words):
            negated = False
            while index < len(words) and words[index] == "!":
                negated, index = not negated, index + 1
            value, index = self._primary(words, index)
            value ^= negated
            result = (result and value) if operator == "-a" else (result or value)
            operator = words[index] if index < len(words) else ""
            index += 1
        return result if words else False

    def _primary(self, words: list[str], index: int) -> tuple[bool, int]:
        rest = words[index:]
        if len(rest) >= 3 and rest[1] in {"=", "==", "!="}:
            return (rest[0] == rest[2]) is (rest[1] != "!="), index + 3
        if len(rest) >= 3 and rest[1] in {"-eq", "-ne", "-lt", "-gt", "-le", "-ge"}:
            return _compare(rest[0], rest[1], rest[2]), index + 3
        if len(rest) >= 2 and rest[0] in {"-f", "-s", "-e", "-d"}:
            return self._exists(device_free(rest[1])), index + 2
        if len(rest) >= 2 and rest[0] in {"-n", "-z"}:
            return bool(rest[1]) is (rest[0] == "-n"), index + 2
        return bool(rest and rest[0]), index + 1

    def _expand(self, words: Sequence[Word]) -> list[str]:
        expanded = []
        total = 0
        for word in words:
            pieces, is_kept = [], False
            for part in word.parts:
                text = self.menu.variables.get(part.text, "") if part.is_variable else part.text
                # An unquoted variable without a value is no word at all.
                is_kept = is_kept or bool(text) or part.is_quoted
                pieces.append(text)
                total += len(text)
            if total > 8 * MAX_VALUE:
                raise _Stop(f"line {word.line}: a command is longer than {8 * MAX_VALUE} characters")
            if is_kept:
                expanded.append("".join(pieces))
        return expanded


def _compare(left: str, operator: str, right: str) -> bool:
    try:
        one, two = int(left[:18] or "0"), int(right[:18] or "0")
    except ValueError:
        return False
    return {
        "-eq": one == two, "-ne": one != two, "-lt": one < two, "-gt": one > two, "-le": one <= two, "-ge": one >= two,
    }[operator]  # fmt: skip
