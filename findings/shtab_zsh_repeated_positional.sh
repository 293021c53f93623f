#!/usr/bin/env bash
# shtab 1.13.0, seen 2026-11-30.
# An argparse parser takes any number of files: add_argument("files", nargs="*").
# Expected: the zsh script completes the second file as it does the first, with zsh's `*:message:action`.
# Seen: it writes "(*)::files to read:_files". To zsh's _arguments, `(*)` is a list of what is excluded and `::` is an
#   optional argument: the first file is completed and the second is not (tried in zsh; in a subcommand, with
#   "*:files to read:_files" in its place, both are). nargs="+" gets "(*):…", one required argument.
#   This script looks at the text only and needs no zsh.
# Why it matters: commands of LLM tools take several files (data, checkpoints to average, logs to plot), and
#   their completion stops after the first.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
install shtab==1.13.0
check <<'EOF'
import argparse
import sys

import shtab


def line(nargs):
    parser = argparse.ArgumentParser(prog="tool")
    parser.add_argument("files", nargs=nargs, help="files to read").complete = shtab.FILE
    (found,) = [s.strip() for s in shtab.complete(parser, "zsh").splitlines() if "files to read" in s]
    print(f"nargs={nargs!r}: {found}")
    return found


sys.exit((line("*"), line("+")) != ('"(*)::files to read:_files"', '"(*):files to read:_files"'))
EOF
