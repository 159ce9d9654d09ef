"""GRUB 2's script language, parsed: what grub.cfg is written in.

Specification: GNU GRUB manual 2.06, "Writing full configuration files directly". Words are kept in parts, so that the
evaluator (`grub_config`) can fill in variables when a command runs. Nesting and length are bounded; what cannot be
parsed ends the script there, and says so.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

MAX_TOKENS = 100_000
MAX_NESTING = 50

_SEPARATORS = "\n;"
_VARIABLE_SPECIALS = "?#*@"


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a word: text as it is, or the name of a variable; only an unquoted variable may vanish or split."""

    text: str
    is_variable: bool = False
    is_quoted: bool = False


@dataclass(frozen=True, slots=True)
class Word:
    parts: tuple[Part, ...]
    line: int

    @property
    def bare(self) -> str | None:
        """The text of a word that has neither variables nor quotes: what a keyword must be."""
        if len(self.parts) == 1 and not self.parts[0].is_variable and not self.parts[0].is_quoted:
            return self.parts[0].text
        return None


@dataclass(frozen=True, slots=True)
class Command:
    """A command with its words; `body` is the block of a menuentry, submenu or function."""

    words: tuple[Word, ...]
    line: int
    body: "tuple[Statement, ...] | None" = None


@dataclass(frozen=True, slots=True)
class If:
    branches: "tuple[tuple[tuple[Statement, ...], tuple[Statement, ...]], ...]"
    otherwise: "tuple[Statement, ...]"


@dataclass(frozen=True, slots=True)
class Loop:
    """for, while and until: none of them is repeated, their bodies are run once."""

    body: "tuple[Statement, ...]"


Statement: TypeAlias = Command | If | Loop


@dataclass(slots=True)
class Script:
    statements: tuple[Statement, ...]
    problems: list[str] = field(default_factory=list)


class _ScriptError(Exception):
    """The script cannot be parsed on from here."""


def parse_script(text: str) -> Script:
    """Parse a grub.cfg; never raises. What stands before a mistake is kept, and `problems` says where it is."""
    parser = _Parser(list(_tokens(text)))
    statements: list[Statement] = []
    problems: list[str] = []
    try:
        while parser.peek() is not None:
            statements += parser.statements(frozenset(), 0)
            if parser.peek() is not None:
                word = parser.take()
                problems.append(f"line {word.line}: {word.bare!r} stands where no block is open")
    except _ScriptError as error:
        statements += parser.finished
        problems.append(str(error))
    if len(parser.tokens) >= MAX_TOKENS:
        problems.append(f"it has over {MAX_TOKENS} words; the rest was not looked at")
    return Script(tuple(statements), problems)


def _tokens(text: str) -> Iterator[Word]:
    """Yield words; a separator is a word of one newline or semicolon."""
    line, index, count = 1, 0, 0
    parts: list[Part] = []
    literal: list[str] = []
    started = 0

    def flush() -> None:
        if literal:
            parts.append(Part("".join(literal)))
            literal.clear()

    length = len(text)
    while index <= length and count < MAX_TOKENS:
        char = text[index] if index < length else "\n"
        is_end = char.isspace() or char in "{};|&"
        if is_end and not (char == "{" and index and text[index - 1] == "$"):
            flush()
            if parts:
                yield Word(tuple(parts), started)
                count += 1
                parts = []
            if char in "\n;{}":
                yield Word((Part(char),), line)
                count += 1
            line += char == "\n"
            index += 1
            continue
        if not parts and not literal:
            started = line
            if char == "#":
                end = text.find("\n", index)
                index = length if end < 0 else end
                continue
        if char == "\\" and index + 1 < length:
            if text[index + 1] == "\n":
                line += 1
            else:
                flush()
                parts.append(Part(text[index + 1], is_quoted=True))
            index += 2
        elif char == "'":
            flush()
            end = text.find("'", index + 1)
            end = length if end < 0 else end
            parts.append(Part(text[index + 1 : end], is_quoted=True))
            line += text.count("\n", index, end)
            index = end + 1
        elif char == '"':
            flush()
            quoted, index, lines = _double_quoted(text, index + 1)
            parts += quoted
            line += lines
        elif char == "$":
            flush()
            name, index = _variable(text, index)
            parts.append(Part(name, is_variable=True) if name else Part("$"))
        else:
            literal.append(char)
            index += 1


def _double_quoted(text: str, index: int) -> tuple[list[Part], int, int]:
    parts: list[Part] = []
    literal: list[str] = []
    lines = 0
    while index < len(text) and text[index] != '"':
        char = text[index]
        if char == "\\" and index + 1 < len(text) and text[index + 1] in '"\\$':
            literal.append(text[index + 1])
            index += 2
        elif char == "$":
            name, after = _variable(text, index)
            if name:
                parts += [Part("".join(literal), is_quoted=True), Part(name, is_variable=True, is_quoted=True)]
                literal = []
            else:
                literal.append("$")
            index = after
        else:
            lines += char == "\n"
            literal.append(char)
            index += 1
    return [*parts, Part("".join(literal), is_quoted=True)], index + 1, lines


def _variable(text: str, index: int) -> tuple[str, int]:
    """Return the name after the `$` at `index`, empty if there is none, and where the text goes on."""
    if text.startswith("${", index):
        end = text.find("}", index, index + 260)
        return (text[index + 2 : end], end + 1) if end > 0 else ("", index + 1)
    end = index + 1
    if end < len(text) and (text[end] in _VARIABLE_SPECIALS or text[end].isdigit()):
        return text[end], end + 1
    while end < len(text) and (text[end].isalnum() or text[end] == "_"):
        end += 1
    return text[index + 1 : end], end


class _Parser:
    def __init__(self, tokens: list[Word]) -> None:
        self.tokens = tokens
        self.at = 0
        self.finished: list[Statement] = []
        """Statements of the outermost level that were complete when parsing had to stop."""

    def peek(self) -> Word | None:
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def take(self) -> Word:
        word = self.peek()
        if word is None:
            last = self.tokens[-1].line if self.tokens else 1
            raise _ScriptError(f"line {last}: the script ends inside a block")
        self.at += 1
        return word

    def statements(self, ends: frozenset[str], depth: int) -> tuple[Statement, ...]:
        """Parse until one of the words in `ends`, or `}`, begins a statement; it is left to the caller."""
        found: list[Statement] = []
        if depth == 0:
            self.finished = found
        while (word := self.peek()) is not None:
            bare = word.bare
            if bare is not None and bare in _SEPARATORS:
                self.at += 1
                continue
            if bare is not None and (bare in ends or bare == "}"):
                break
            found.append(self._statement(depth))
        return tuple(found)

    def _statement(self, depth: int) -> Statement:
        if depth > MAX_NESTING:
            raise _ScriptError(f"line {self.tokens[self.at].line}: blocks are nested over {MAX_NESTING} deep")
        word = self.take()
        bare = word.bare
        if bare == "if":
            return self._if(depth)
        if bare in {"for", "while", "until"}:
            self._until({"do"}, depth)
            body = self.statements(frozenset({"done"}), depth + 1)
            self._expect("done")
            return Loop(body)
        words = [word]
        while (following := self.peek()) is not None:
            text = following.bare
            if text is not None and text in _SEPARATORS:
                break
            if text == "}":
                break
            self.at += 1
            if text == "{":
                body = self.statements(frozenset(), depth + 1)
                self._expect("}")
                return Command(tuple(words), word.line, body)
            words.append(following)
        return Command(tuple(words), word.line)

    def _if(self, depth: int) -> If:
        branches = []
        otherwise: tuple[Statement, ...] = ()
        while True:
            condition = self.statements(frozenset({"then"}), depth + 1)
            self._expect("then")
            body = self.statements(frozenset({"elif", "else", "fi"}), depth + 1)
            branches.append((condition, body))
            word = self.take()
            if word.bare == "elif":
                continue
            if word.bare == "else":
                otherwise = self.statements(frozenset({"fi"}), depth + 1)
                self._expect("fi")
            elif word.bare != "fi":
                raise _ScriptError(f"line {word.line}: {word.bare!r} stands where fi, else or elif must")
            return If(tuple(branches), otherwise)

    def _until(self, ends: set[str], depth: int) -> None:
        del depth
        while self.take().bare not in ends:
            pass

    def _expect(self, text: str) -> None:
        word = self.take()
        if word.bare != text:
            raise _ScriptError(f"line {word.line}: {word.bare!r} stands where {text!r} must")
