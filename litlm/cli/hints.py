"""Suggestions for unknown commands and options: other tools' names for them, abbreviations, typos."""

from __future__ import annotations

import difflib
from collections.abc import Collection

# Our option ("option" or "option=value") -> its names in transformers, TRL, PEFT, LitGPT, torchtune, axolotl, vLLM and
# llama.cpp. If several match, the first that the command has is suggested.
_OPTION_ALIASES = {
    "model": "model_name model_name_or_path model_id base_model pretrained checkpoint checkpoint_dir ckpt "
             "checkpoint_path initial_checkpoint_dir m",
    "adapter": "lora lora_path lora_dir lora_modules peft_model adapter_path adapter_dir adapter_name_or_path",
    "base": "base_model base_model_name_or_path pretrained_checkpoint_dir checkpoint_dir model",
    "tokenizer": "tokenizer_dir tokenizer_path tokenizer_name tokenizer_name_or_path",
    "out_dir": "output output_dir output_path out o save_dir save_path local_dir outdir",
    "data": "dataset datasets dataset_name dataset_path data_path data_dir data_files train_file input files",
    "data.path": "dataset datasets dataset_name dataset_path data_path data_dir data_files train_file train_data "
                 "json_path train_data_path",
    "data.val_path": "eval_dataset eval_file val_data val_file val_data_path validation_file eval_data test_datasets",
    "data.val_fraction": "val_set_size val_split_fraction val_split validation_split eval_fraction test_size",
    "data.max_len": "max_length max_seq_length max_seq_len sequence_len seq_len seq_length cutoff_len max_model_len "
                    "block_size context_length",
    "data.text_key": "text_column text_field dataset_text_field",
    "text_key": "text_column text_field dataset_text_field",
    "data.style": "chat_template prompt_style prompt_template template",
    "data.loss_on": "train_on_inputs mask_prompt mask_inputs assistant_only_loss completion_only_loss "
                    "train_on_input response_only",
    "data.packing": "sample_packing packed",
    "method.r": "lora_r lora_rank rank",
    "method.alpha": "lora_alpha",
    "method.dropout": "lora_dropout",
    "method.targets": "target_modules lora_target_modules lora_target lora_attn_modules lora_target_linear",
    "method.dora": "use_dora",
    "method.rslora": "use_rslora",
    "method.name": "finetuning_type peft_type use_peft use_lora",
    "method.name=qlora": "load_in_4bit",
    "method.quantize=int8": "load_in_8bit",
    "preference.loss": "loss_type pref_loss rl",
    "preference.beta": "dpo_beta pref_beta rl_beta",
    "train.epochs": "num_epochs num_train_epochs n_epochs",
    "train.max_steps": "max_iters num_steps max_train_steps steps",
    "train.batch_size": "global_batch_size train_batch_size",
    "train.micro_batch_size": "per_device_train_batch_size per_device_batch_size device_batch_size",
    "train.lr": "learning_rate",
    "train.schedule": "lr_scheduler lr_scheduler_type scheduler lr_schedule",
    "train.warmup_steps": "lr_warmup_steps num_warmup_steps warmup warmup_iters",
    "train.optimizer": "optim optimizer_name",
    "train.grad_clip": "max_grad_norm gradient_clip_val gradient_clipping clip_grad_norm max_norm",
    "train.precision": "bf16 fp16 mixed_precision dtype torch_dtype amp",
    "train.compile": "torch_compile",
    "train.checkpointing": "gradient_checkpointing activation_checkpointing enable_activation_checkpointing "
                           "use_gradient_checkpointing",
    "train.val_interval": "eval_steps eval_interval evals_per_epoch eval.interval val_check_interval eval_every",
    "train.save_interval": "save_steps saves_per_epoch checkpoint_interval save_every ckpt_interval",
    "train.keep": "save_total_limit keep_last_n_checkpoints",
    "train.early_stop": "early_stopping early_stopping_patience patience",
    "train.logger": "report_to log_with logger_name metric_logger use_wandb wandb",
    "resume": "resume_from_checkpoint resume_from auto_resume_from_checkpoints",
    "overwrite": "overwrite_output_dir force",
    "max_new_tokens": "max_tokens max_length max_gen_toks n_predict max_completion_tokens num_tokens",
    "temperature": "t",
    "repetition_penalty": "repeat_penalty",
    "stop": "stop_sequences stop_strings stop_words",
    "system": "system_prompt",
    "prompt": "input text p",
    "dtype": "torch_dtype precision bf16 fp16",
    "quantize": "quantization",
    "quantize=nf4": "load_in_4bit",
    "quantize=int8": "load_in_8bit",
    "device": "device_map accelerator",
    "token": "hf_token access_token hub_token use_auth_token",
    "revision": "branch commit tag",
    "vocab_size": "vocabulary_size num_tokens",
}  # fmt: skip

# Options of other tools that litlm has no counterpart of -> (an option, explanation): shown by commands that have it.
_NO_COUNTERPART = {
    "gradient_accumulation_steps": (
        "train.micro_batch_size",
        "Gradients are accumulated over --train.batch_size / --train.micro_batch_size passes.",
    ),
    "warmup_ratio": ("train.warmup_steps", "The warm-up is counted in steps: --train.warmup_steps."),
    "logging_steps": ("train.lr", "Every step is logged."),
    "trust_remote_code": ("model", "litlm never runs code from a checkpoint; leave it out."),
    "do_sample": ("temperature", "A --temperature above 0 samples."),
}
_NO_COUNTERPART["gradient_accumulation_iters"] = _NO_COUNTERPART["gradient_accumulation_steps"]

_COMMAND_ALIASES = {
    "sft": "finetune", "train": "finetune", "tune": "finetune", "lora": "finetune", "qlora": "finetune",
    "finetune_lora": "finetune --method lora", "finetune_full": "finetune --method full",
    "finetune_qlora": "finetune --method qlora", "orpo": "dpo --preference orpo", "ipo": "dpo --preference ipo",
    "tokenize": "prepare", "preprocess": "prepare", "run": "chat", "infer": "generate", "inference": "generate",
    "complete": "generate", "list": "models", "ls": "models", "show": "describe", "info": "describe",
    "pull": "download", "merge_lora": "merge", "export": "merge",
}  # fmt: skip
_PLANNED = {"serve": "serve", "server": "serve", "evaluate": "evaluate", "eval": "evaluate"}


def unknown_command(typed: str, commands: Collection[str]) -> str:
    """The answer to a command that does not exist, with a suggestion."""
    name = typed.lower().replace("_", "-")
    planned = _PLANNED.get(name)
    if planned and planned not in commands:
        return f"litlm has no command {typed!r} yet."
    if typed.startswith("-"):
        return f"{typed} comes after a command, as in litlm COMMAND {typed}."
    known = [*commands]
    meant = planned or _COMMAND_ALIASES.get(name.replace("-", "_")) or (name if name in known else None)
    close = [meant] if meant else difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    close = close or [c for c in known if len(name) > 2 and c.startswith(name)]
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    return f"litlm has no command {typed!r}.{hint}"


def suggest_options(typed: str, options: Collection[str], switches: Collection[str] = ()) -> tuple[list[str], str]:
    """Options ("name" or "name=value") that an unknown option may be meant for, best first; or an explanation why
    litlm has no such option.

    typed: without leading dashes, as in train.learning_rate. options: the command's. switches: those that are bools.
    """
    name = typed.lower().replace("-", "_")
    leaf = name.rpartition(".")[2]
    leaves = {option: option.rpartition(".")[2] for option in options}
    flat = name.replace(".", "_")  # train_lr, data-path
    if found := [o for o in options if o.lower().replace(".", "_") == flat or leaves[o].lower() == leaf]:
        return found, ""
    needed, sentence = _NO_COUNTERPART.get(leaf, ("", ""))
    if needed in options:
        return [], sentence
    for word in (name, leaf):
        found = [ours for ours, theirs in _OPTION_ALIASES.items() if word in theirs.split()]
        if found := [ours for ours in found if ours.partition("=")[0] in options]:
            return found[:1], ""
    for prefix in ("no_", "no", "disable_"):
        if found := [s for s in switches if s.rpartition(".")[2] == leaf.removeprefix(prefix) and leaf != s]:
            return [f"{found[0]}=false"], ""
    if found := [o for o in options if o.startswith(name) or leaves[o].startswith(leaf)]:
        return found[:3], ""
    near = difflib.get_close_matches(leaf, leaves.values(), n=1, cutoff=0.75)
    return [option for option in options if leaves[option] in near], ""
