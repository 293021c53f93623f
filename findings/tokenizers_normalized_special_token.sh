#!/usr/bin/env bash
# tokenizers 0.23.3, seen 2026-11-30.
# A special token with normalized=True, in a tokenizer whose normalizer changes its text: "wOrd" under Lowercase, or
#   "<s>" under Llama's Prepend("▁").
# Expected: its id decodes as the token's content, and skip_special_tokens leaves it out.
# Seen: it decodes as the normalized text, "word" or "▁<s>" (id_to_token says so too, while token_to_id("wOrd") gives the
#   id), and skip_special_tokens keeps it, though get_added_tokens_decoder() calls it special. With normalized=False, which
#   is the default for special tokens, both are right.
# Why it matters: there are published tokenizers that write "normalized": true, "special": true. Where a normalizer
#   touches such a token, control tokens show up in the text of an answer.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
install tokenizers==0.23.3
check <<'EOF'
import sys

from tokenizers import AddedToken, Tokenizer, models, normalizers


def decoded(token, normalizer, normalized):
    """What the id of `token`, between those of a and b, decodes as: kept, and with skip_special_tokens."""
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=normalized)])
    assert tokenizer.encode(token).ids == [3] == [tokenizer.token_to_id(token)]
    assert tokenizer.get_added_tokens_decoder()[3].special
    kept, skipped = (tokenizer.decode([0, 3, 1], skip_special_tokens=skip) for skip in (False, True))
    print(f"{token}, normalized={normalized}: id_to_token {tokenizer.id_to_token(3)!r}, decoded {kept!r}, "
          f"with skip_special_tokens {skipped!r}")  # fmt: skip
    return kept, skipped


seen = [
    decoded(token, normalizer, normalized)
    for token, normalizer in (("wOrd", normalizers.Lowercase()), ("<s>", normalizers.Prepend("▁")))
    for normalized in (True, False)
]
stated = [("a word b", "a word b"), ("a wOrd b", "a b"), ("a ▁<s> b", "a ▁<s> b"), ("a <s> b", "a b")]
sys.exit(seen != stated)
EOF
