"""Tokenizers: `tokenizer.json`, SentencePiece, and those rebuilt from GGUF files."""

from litlm.tokenizer.tokenizer import TOKENIZER_FILES as TOKENIZER_FILES
from litlm.tokenizer.tokenizer import Batch as Batch
from litlm.tokenizer.tokenizer import Tokenizer as Tokenizer
from litlm.tokenizer.tokenizer import describe_out_of_vocab as describe_out_of_vocab
from litlm.tokenizer.tokenizer import has_tokenizer_files as has_tokenizer_files
from litlm.tokenizer.tokenizer import read_chat_templates as read_chat_templates
