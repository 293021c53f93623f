#!/usr/bin/env bash
# jsonargparse 4.53.0, seen 2026-11-30.
# A parser has a dataclass `train` with fields of its own. A configuration file says `train: 3`.
# Expected: an error at parsing that names the key, as `--train 3` and `train: hello` give.
# Seen: parsing accepts numbers, booleans and lists (Namespace(train=3)); `instantiate` then raises a bare TypeError,
#   "argument after ** must be a mapping, not int", which names neither the key nor the file.
# Why it matters: training tools are configured by nested YAML, where a wrong indent or an old file gives such a value;
#   the user sees a traceback from inside the parser and not the line to mend.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
install jsonargparse==4.53.0 PyYAML==6.0.3
check <<'EOF'
import sys
from dataclasses import dataclass
from pathlib import Path

from jsonargparse import ArgumentError, ArgumentParser


@dataclass
class Train:
    steps: int = 10


parser = ArgumentParser(exit_on_error=False)
parser.add_argument("--config", action="config")
parser.add_argument("--train", type=Train, default=Train())


def outcome(*args):
    try:
        parsed = parser.parse_args(args)
    except ArgumentError as e:
        return f"refused: {e}".splitlines()[0]
    try:
        return f"made {parser.instantiate(parsed).train}"
    except TypeError as e:
        return f"accepted as {parsed.train!r}, then TypeError: {e}"


seen = []
for value in ("3", "true", "[1]", "hello", "{steps: 5}"):
    Path("config.yaml").write_text(f"train: {value}\n")
    seen.append(outcome("--config", "config.yaml"))
    print(f"train: {value}  ->  {seen[-1]}")
flag = outcome("--train", "3")
print(f"--train 3  ->  {flag}")
late = [s.startswith("accepted") and "train" not in s.split("TypeError")[1] for s in seen]
as_stated = late == [True, True, True, False, False] and flag.startswith('refused: Parser key "train"')
sys.exit(not (as_stated and seen[3].startswith("refused") and seen[4] == "made Train(steps=5)"))
EOF
