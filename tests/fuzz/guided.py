"""Coverage-guided fuzzing of one reader, or of all in turn, by hand (needs `pip install -e '.[fuzz]'`):

    python tests/fuzz/guided.py custom-triplets --seconds 60
    python tests/fuzz/guided.py all --seconds 20

Atheris watches which branches of `cirbench` an input reaches and keeps those that reach new ones. Half of the inputs
drive the mutations of mutations.py, which keep a format's shape; the other half are the file itself. What a reader raises and
should not is written to a file under --found and told; name it after what it is and put it into corpus/READER/refused.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent.parent)]

class Given(random.Random):
    """Draws are read from the fuzzer's bytes, so that it learns what they do; then from a fixed seed."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0
        super().__init__(0)

    def random(self) -> float:
        return self.getrandbits(16) / (1 << 16)

    def getrandbits(self, k: int) -> int:
        size = (k + 7) // 8
        part = self.data[self.at : self.at + size]
        self.at += size
        if len(part) < size:
            return super().getrandbits(k)
        return int.from_bytes(part, "little") & ((1 << k) - 1)


def one(name: str, seconds: int, found: Path) -> None:
    """Fuzz a reader in this process, which libFuzzer ends."""
    import atheris

    with atheris.instrument_imports(include=["cirbench"]):
        from mutations import mutate
        from readers import BY_NAME, Tried, little_memory
    counts = {"accepted": 0, "refused": 0, "defects": 0}
    seen: set[tuple[Any, ...]] = set()
    with tempfile.TemporaryDirectory() as folder:
        tried = Tried(BY_NAME[name], Path(folder))
        assert tried(tried.valid) == "accepted"
        little_memory().__enter__()
        end = time.monotonic() + seconds

        def attack(data: bytes) -> None:
            if time.monotonic() > end:
                print(f"{name}: {sum(counts.values())} inputs, {counts}", flush=True)
                os._exit(1 if seen else 0)  # libFuzzer has no other way to be told
            body = mutate(tried.reader.kind, tried.valid, Given(data[1:])) if data[:1] < b"\x80" else data[1:]
            try:
                said = tried(body)
                counts["accepted" if said == "accepted" else "refused"] += 1
            except Exception as error:
                counts["defects"] += 1
                trace = error.__traceback__
                while trace is not None and trace.tb_next is not None and "cirbench" in trace.tb_next.tb_frame.f_code.co_filename:
                    trace = trace.tb_next
                key = (type(error).__name__, trace and trace.tb_frame.f_code.co_name, trace and trace.tb_lineno)
                if key not in seen:
                    seen.add(key)
                    place = found / name / f"{key[0]}-{key[1]}-{key[2]}"
                    place.parent.mkdir(parents=True, exist_ok=True)
                    place.write_bytes(body)
                    print(f"{name}: {type(error).__name__}: {str(error)[:200]!r} in {key[1]}, line {key[2]}: {place}", flush=True)

        seeds = Path(folder, "seeds")
        seeds.mkdir()
        (seeds / "valid").write_bytes(b"\xff" + tried.valid)
        for n in range(40):
            (seeds / str(n)).write_bytes(b"\0" + random.Random(n).randbytes(24))
        atheris.Setup([sys.argv[0], "-rss_limit_mb=0", "-timeout=60", "-max_len=4096", "-verbosity=0", "-print_final_stats=0", str(seeds)], attack)
        atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reader", help="a name of readers.READERS, or all")
    parser.add_argument("--seconds", type=int, default=60, help="of each reader")
    parser.add_argument("--found", type=Path, default=Path("fuzz-found"), help="folder for inputs that break a reader")
    given = parser.parse_args()
    if given.reader != "all":
        one(given.reader, given.seconds, given.found)
        return 0
    from readers import READERS

    failed = 0
    for reader in READERS:
        command = [sys.executable, __file__, reader.name, "--seconds", str(given.seconds), "--found", str(given.found)]
        code = subprocess.run(command, check=False).returncode
        if code not in (0, 1):
            print(f"{reader.name}: the process ended with {code}, a crash of Python itself or a signal", flush=True)
        failed += code != 0
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
