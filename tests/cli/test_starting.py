"""What starting a command costs, and that modules which are put off are whole once they are used."""

import subprocess
import sys


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_a_deferred_module_is_the_real_one_once_it_is_used() -> None:
    assert run(
        "from diskfs.cli.deferred import defer\n"
        "defer('pdb', 'hashlib')\n"
        "import hashlib\n"
        "assert type(hashlib).__name__ == 'DeferredModule'\n"
        "print(hashlib.sha256(b'abc').hexdigest())\n"
        "import hashlib as again\n"
        "assert type(again).__name__ == 'module'\n"
        "from pdb import Pdb\n"
        "print(Pdb.__module__)\n"
    ).split() == ["ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", "pdb"]


def test_a_deferred_module_loads_once_for_many_threads() -> None:
    assert run(
        "from diskfs.cli.deferred import defer\n"
        "defer('hashlib')\n"
        "import hashlib\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "with ThreadPoolExecutor(8) as pool:\n"
        "    print(set(pool.map(lambda _: hashlib.sha256(b'abc').hexdigest()[:8], range(64))))\n"
    ).split() == ["{'ba7816bf'}"]


def test_a_deferred_module_gives_all_its_names() -> None:
    assert run(
        "from diskfs.cli.deferred import defer\n"
        "defer('hashlib')\n"
        "from hashlib import *\n"
        "print(sha256(b'abc').hexdigest()[:8])\n"
    ).split() == ["ba7816bf"]


def test_info_loads_nothing_that_only_other_commands_need() -> None:
    loaded = (
        run(
            "import sys\n"
            "from diskfs.cli.main import main\n"
            "code = main(['info', '--json', sys.executable, '--format', 'raw'])\n"
            "assert code == 0\n"
            "print('\\nMODULES', *sorted(sys.modules))\n"
        )
        .rpartition("MODULES")[2]
        .split()
    )
    unwanted = {"trio", "pyfuse3", "boto3", "botocore", "urllib3", "logging", "asyncio", "http.client", "xml.sax",
                "concurrent.futures", "cmd", "_hashlib", "diskfs_formats.vmdk", "diskfs_formats.ova"}  # fmt: skip
    assert unwanted.isdisjoint(loaded)
