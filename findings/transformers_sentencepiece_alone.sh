#!/usr/bin/env bash
# transformers 5.23.0 with sentencepiece 0.2.3, seen 2026-11-30.
# A folder holds a SentencePiece model alone, as `tokenizer.model` (here the one in mistral-common's package data).
# Expected: AutoTokenizer gives the ids that sentencepiece gives, or refuses; LlamaTokenizer adds BOS, since its docstring
#   says "add_bos_token (bool, optional, defaults to True)".
# Seen, without a warning: AutoTokenizer loses the space that SentencePiece puts in front of the text ("Hello" is
#   another token than the "▁Hello" of sentencepiece). LlamaTokenizer gives the right pieces and no BOS.
# Why it matters: original releases and converters leave such folders; a model that sees another first token and no BOS
#   works, but measurably worse, and nothing says so.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
install transformers==5.23.0 sentencepiece==0.2.3 protobuf==7.36.2
# Only its data are needed, and where transformers can't import it.
"$work/venv/bin/python" -m pip install --quiet --no-deps --target "$work/data" mistral-common==1.13.1 || exit 2
mkdir "$work/model"
cp "$work/data/mistral_common/data/tokenizer.model.v1" "$work/model/tokenizer.model"
check <<'EOF'
import sys

from sentencepiece import SentencePieceProcessor
from transformers import AutoTokenizer, LlamaTokenizer

reference = SentencePieceProcessor(model_file="model/tokenizer.model")
auto, llama = AutoTokenizer.from_pretrained("model"), LlamaTokenizer.from_pretrained("model")
text = "Hello world"
print(f"sentencepiece: {reference.encode(text)} {reference.encode(text, out_type=str)}")
for name, tokenizer in (("AutoTokenizer", auto), ("LlamaTokenizer", llama)):
    ids = tokenizer(text).input_ids
    print(f"{name} ({type(tokenizer).__name__}): {ids} {tokenizer.convert_ids_to_tokens(ids)}")
(line,) = [s.strip() for s in LlamaTokenizer.__doc__.splitlines() if "add_bos_token (" in s]
print(f"docstring of LlamaTokenizer: {line}")
pieces = reference.encode(text)
no_bos = "defaults to `True`" in line and llama(text).input_ids == pieces
sys.exit(not (no_bos and auto(text).input_ids[0] == reference.piece_to_id("Hello") != pieces[0]))
EOF
