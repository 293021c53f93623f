#!/usr/bin/env bash
# datasets 5.2.0 with pyarrow 26.0.1, seen 2026-11-30.
# Chat data whose `content` is a string in some messages and a list of parts in others: the column becomes Json().
# Expected: what went in comes out.
# Seen: a string that happens to be JSON comes back as its value: "42" as the number 42, "null" as None,
#   '{"a": 1}' as a dict. Other strings are kept. The same from load_dataset("json") and from
#   Dataset.from_list(…, on_mixed_types="use_json").
# Why it matters: answers such as "42", "true" or a JSON object are common in training data. They become numbers, None or
#   dicts only where another row has a list, and a chat template then fails, or renders "None" or {'a': 1}.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
install datasets==5.2.0 pyarrow==26.0.1
check <<'EOF'
import json
import sys
from pathlib import Path

from datasets import Dataset, disable_progress_bars, load_dataset

disable_progress_bars()
contents = ["hello", "42", "null", '{"a": 1}', [{"type": "text", "text": "hi"}]]
rows = [{"messages": [{"role": "assistant", "content": c}]} for c in contents]
Path("data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
ways = {
    'load_dataset("json")': load_dataset("json", data_files="data.jsonl", split="train", cache_dir="cache"),
    "Dataset.from_list": Dataset.from_list(rows, on_mixed_types="use_json"),
}
seen = []
for way, data in ways.items():
    seen.append([row["messages"][0]["content"] for row in data])
    print(f"{way}: {data.features['messages']}")
    for before, after in zip(contents, seen[-1]):
        print(f"  {before!r}  ->  {after!r}")
sys.exit(seen != [["hello", 42, None, {"a": 1}, [{"type": "text", "text": "hi"}]]] * 2)
EOF
