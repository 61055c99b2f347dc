"""Generate billaged/wire/{billing,billaged}/v1 from protos/, or check that they are fresh.

    python scripts/generate_protos.py            writes
    python scripts/generate_protos.py --check    exits 1 and says so where something differs

The generated modules live inside billaged.wire, so their imports of each other
are rewritten to say so; the names in the descriptors stay those of the contract.
"""

from __future__ import annotations

import argparse
import importlib.resources
import re
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
WIRE = ROOT / "billaged" / "wire"
OWN_IMPORT = re.compile(r"^from (billing|billaged)\.v1 import ", re.MULTILINE)


def generate(into: Path) -> list[Path]:
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    well_known = importlib.resources.files("grpc_tools") / "_proto"
    arguments = ["protoc", f"-I{PROTOS}", f"-I{well_known}", f"--python_out={into}", f"--pyi_out={into}", *sources]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed; its message is above")
    written = sorted(path for path in into.rglob("*") if path.is_file())
    for path in written:
        path.write_text(OWN_IMPORT.sub(r"from billaged.wire.\1.v1 import ", path.read_text()))
    return written


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 where a file is stale")
    check = parser.parse_args().check
    stale: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for path in generate(Path(folder)):
            relative = path.relative_to(folder)
            target = WIRE / relative
            if not target.exists() or target.read_text() != path.read_text():
                stale.append(str(relative))
                if not check:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_text(path.read_text())
    for name in stale:
        print(f"{'stale' if check else 'wrote'}: billaged/wire/{name}")
    if check and stale:
        print("generated code differs from protos/: run 'make proto' and commit the result", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
