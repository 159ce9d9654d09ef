"""Updates, restarts that are due, .NET, Sysprep and its answer file."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree.ElementTree import ParseError

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import fromstring

from diskfs.guest.files import GuestFiles
from diskfs.preflight.windows.readings import SOFTWARE, SYSTEM, Reading, Registry

COMPONENTS = r"Microsoft\Windows\CurrentVersion\Component Based Servicing"
AUTO_UPDATE = r"Microsoft\Windows\CurrentVersion\WindowsUpdate\Auto Update"
UPDATE_POLICY = r"Policies\Microsoft\Windows\WindowsUpdate\AU"
SESSION_MANAGER = r"CurrentControlSet\Control\Session Manager"
RUN_ONCE = r"Microsoft\Windows\CurrentVersion\RunOnce"
FRAMEWORKS = r"Microsoft\NET Framework Setup\NDP"
SETUP_STATE = r"Microsoft\Windows\CurrentVersion\Setup\State"
NET_4_5 = 378389
"""`Release` of .NET Framework 4.5."""
GENERALIZED = "IMAGE_STATE_GENERALIZE_RESEAL_TO_OOBE"
INSTALLED = 0x70
"""CurrentState of a package that is installed."""
MAX_PACKAGES = 20000
MAX_ANSWER_FILE = 1 << 20
_NAMESPACE = "{urn:schemas-microsoft-com:unattend}"


@dataclass(frozen=True, slots=True)
class AnswerFile:
    """An answer file for Setup: the processors its components are for, by pass; `problem` is why it cannot be read."""

    where: str
    passes: tuple[tuple[str, frozenset[str]], ...] = ()
    problem: str = ""

    def architectures(self, name: str) -> frozenset[str] | None:
        """Return the processors of a pass, such as `oobeSystem`; None without the pass."""
        found = [architectures for pass_, architectures in self.passes if pass_ == name]
        return frozenset().union(*found) if found else None


class Servicing:
    """What is installed and what is due; methods raise what reading the hives and files raises."""

    def __init__(self, registry: Registry, files: GuestFiles, folder: str) -> None:
        self._registry = registry
        self._files = files
        self._folder = folder

    @property
    def net_4(self) -> Reading:
        """`Release` of .NET Framework 4.x."""
        return self._registry.read(SOFTWARE, FRAMEWORKS + r"\v4\Full", "Release")

    @property
    def has_net_4_5(self) -> bool:
        release = self.net_4.integer
        return release is not None and release >= NET_4_5

    @property
    def net_3_5(self) -> tuple[Reading, Reading]:
        """`Install` and `SP` of .NET Framework 3.5."""
        path = FRAMEWORKS + r"\v3.5"
        return self._registry.read(SOFTWARE, path, "Install"), self._registry.read(SOFTWARE, path, "SP")

    @property
    def has_net_3_5_sp1(self) -> bool:
        install, pack = self.net_3_5
        return install.integer == 1 and (pack.integer or 0) >= 1

    @property
    def update_setting(self) -> Reading:
        """`AUOptions`: 2 notify, 3 download and ask, 4 install. The policy goes before the setting."""
        policy = self._registry.read(SOFTWARE, UPDATE_POLICY, "AUOptions")
        return policy if policy.exists else self._registry.read(SOFTWARE, AUTO_UPDATE, "AUOptions")

    @functools.cached_property
    def restart_reasons(self) -> tuple[str, ...]:
        """What Windows will do when it is restarted, as evidence."""
        return tuple(self._restart_reasons())

    def _restart_reasons(self) -> Iterator[str]:
        for path in (
            COMPONENTS + r"\RebootPending",
            COMPONENTS + r"\RebootInProgress",
            AUTO_UPDATE + r"\RebootRequired",
        ):
            if self._registry.has(SOFTWARE, path):
                yield f"{SOFTWARE}\\{path} is there"
        pending = self._registry.key(SOFTWARE, COMPONENTS + r"\PackagesPending")
        if pending is not None and pending.subkey_count:
            yield f"{SOFTWARE}\\{COMPONENTS}\\PackagesPending has {pending.subkey_count} packages"
        for name in ("PendingFileRenameOperations", "PendingFileRenameOperations2", "SetupExecute"):
            reading = self._registry.read(SYSTEM, SESSION_MANAGER, name)
            if reading.texts:
                yield str(reading)
        run_once = self._registry.key(SOFTWARE, RUN_ONCE)
        for value in run_once.values() if run_once is not None else ():
            yield str(Reading(f"{SOFTWARE}\\{RUN_ONCE}", value.name, value))
        path = f"{self._folder}/WinSxS/pending.xml"
        if self._files.entry(path) is not None:
            yield f"{self._files.volume}: {path} is there"

    @functools.cached_property
    def packages(self) -> tuple[str, ...]:
        """The names of the packages in the component store, installed or not; none before Vista."""
        names: list[str] = []
        for name in self._registry.names(SOFTWARE, COMPONENTS + r"\Packages"):
            if len(names) >= MAX_PACKAGES:
                break
            names.append(name)
        return tuple(names)

    def installed(self, text: str) -> tuple[str, ...]:
        """Return the installed packages whose name has `text` in it, such as a hotfix's number."""
        return tuple(name for name in self.packages if text.lower() in name.lower() and self._is_installed(name))

    def _is_installed(self, package: str) -> bool:
        path = rf"{COMPONENTS}\Packages\{package}"
        return self._registry.read(SOFTWARE, path, "CurrentState").integer == INSTALLED

    @property
    def image_state(self) -> Reading:
        """How far Setup or Sysprep has come: `IMAGE_STATE_COMPLETE`, `IMAGE_STATE_GENERALIZE_RESEAL_TO_OOBE`."""
        return self._registry.read(SOFTWARE, SETUP_STATE, "ImageState")

    @property
    def generalization_state(self) -> Reading:
        """`GeneralizationState`: 7 is done, 3 is under way or failed."""
        return self._registry.read(SYSTEM, r"Setup\Status\SysprepStatus", "GeneralizationState")

    @property
    def is_generalized(self) -> bool:
        """Whether Sysprep has made it ready for another machine, and nobody has started it since."""
        return self.image_state.text == GENERALIZED

    @property
    def sysprep_tag(self) -> str:
        """Where Sysprep left word of its success, or nothing. It stays when the system is used on."""
        path = f"{self._folder}/System32/Sysprep/Sysprep_succeeded.tag"
        return f"{self._files.volume}: {path}" if self._files.entry(path) is not None else ""

    @functools.cached_property
    def answer_file(self) -> AnswerFile | None:
        """The user's own answer file in Panther; None without one."""
        path = f"{self._folder}/Panther/unattend.xml"
        if self._files.entry(path) is None:
            return None
        where = f"{self._files.volume}: {path}"
        try:
            root = fromstring(self._files.read(path, limit=MAX_ANSWER_FILE))
        except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
            return AnswerFile(where, problem=f"it is no well-formed XML: {error}")
        if root.tag != f"{_NAMESPACE}unattend":
            return AnswerFile(where, problem=f"its root is {root.tag}, expected unattend of the namespace {_NAMESPACE}")
        return AnswerFile(
            where,
            tuple(
                (
                    settings.get("pass", ""),
                    frozenset(
                        component.get("processorArchitecture", "").lower()
                        for component in settings.iter(f"{_NAMESPACE}component")
                    ),
                )
                for settings in root.iter(f"{_NAMESPACE}settings")
            ),
        )
