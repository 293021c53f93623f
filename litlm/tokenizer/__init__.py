"""Tokenizers: `tokenizer.json`, SentencePiece, and those rebuilt from GGUF files."""

from litlm.tokenizer.tokenizer import FILES as FILES
from litlm.tokenizer.tokenizer import Batch as Batch
from litlm.tokenizer.tokenizer import Tokenizer as Tokenizer
from litlm.tokenizer.tokenizer import chat_templates_in as chat_templates_in
from litlm.tokenizer.tokenizer import holds_tokenizer as holds_tokenizer
from litlm.tokenizer.tokenizer import outside as outside
