#!/usr/bin/env bash
# tokenizers 0.23.3, seen 2026-11-30.
# A special token is added again with special=False.
# Expected: decode(skip_special_tokens=True) keeps it from then on, or the second call changes nothing at all.
# Seen: get_added_tokens_decoder() says special=False, decode still leaves it out, and after a save and load of the same
#   tokenizer decode keeps it: the two copies disagree.
# Why it matters: this is how a token such as "<think>" or "<tool_call>" is made visible in answers; it seems to fail in
#   the running process and works in the next one.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
install tokenizers==0.23.3
check <<'EOF'
import sys

from tokenizers import AddedToken, Tokenizer, models

tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]"))
tokenizer.add_tokens([AddedToken("<think>", special=True, normalized=False)])
first = tokenizer.decode([0, 3, 1])
tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
special = tokenizer.get_added_tokens_decoder()[3].special
again = tokenizer.decode([0, 3, 1])
loaded = Tokenizer.from_str(tokenizer.to_str()).decode([0, 3, 1])
print(f"special: {first!r};  added again, special={special}: {again!r};  saved and loaded: {loaded!r}")
sys.exit((first, special, again, loaded) != ("a b", False, "a b", "a <think> b"))
EOF
